"""The cache of completions: one object per batch key, so that no batch is asked twice.

The objects are records as Prefect stores the result of a task: plain JSON, never a pickle.
"""

import logging
from dataclasses import dataclass
from typing import Any

from prefect.exceptions import SerializationError
from prefect.results import ResultStore

from ..errors import ObjectMissingError, RecordCorruptedError, RecordRefusedError
from ..object_store.prefect_results import RESULT_SERIALIZER, parse_result_record
from ..object_store.store import ObjectStore
from ..records import Batch
from .completions import Completions

_LOGGER = logging.getLogger("prefect_imageqa.generating")


@dataclass(frozen=True)
class CompletionsCache:
    """The completions of the batches asked so far.

    Attributes:
        completions: where they are stored, and nothing else.
    """

    completions: ObjectStore

    def read(self, batch: Batch) -> Completions | None:
        """The completions of a batch; None if they are missing or corrupted.

        Raises:
            StoreError: the store cannot be read.
        """
        return read_completions(self.completions, batch.key, _LOGGER)

    def write(self, completions: Completions) -> None:
        """Store the completions of a batch under its key.

        Raises:
            StoreError: the store cannot be written.
        """
        results = ResultStore(result_storage=self.completions, serializer=RESULT_SERIALIZER)
        key = completions.key
        try:
            record = results.create_result_record(completions, key).serialize()
        except SerializationError:
            record = results.create_result_record(completions.encodable(), key).serialize()
        self.completions.write(key, record)


def check_completions(name: str, record: bytes) -> Completions:
    """Deserialize a stored result record whose name ends with its batch key.

    Raises:
        RecordRefusedError: it names a serializer that this package does not use.
        RecordCorruptedError: it is not such a record, or does not hold the replies to that batch.
    """
    completions = Completions.load(parse_result_record(record))
    if completions.key != name.rpartition("/")[2]:
        raise RecordCorruptedError("the stored replies belong to another batch")
    return completions


def read_completions(
    store: ObjectStore, name: str, logger: "logging.Logger | logging.LoggerAdapter[Any]"
) -> Completions | None:
    """Read the object whose name ends with its batch key; None if it is missing or corrupted."""
    try:
        return check_completions(name, store.read(name))
    except ObjectMissingError:
        return None
    except (RecordRefusedError, RecordCorruptedError) as error:
        logger.warning("%s: %s; its rows are sent to the model again", store.uri_of(name), error)
        return None
