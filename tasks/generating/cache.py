"""Prefect's task cache for batches: keyed by batch key, and written so that failures are reported.

Prefect treats every error of a cache look-up as a miss, and only logs a failed write. So the task
checks the cache again before it sends requests, and writes its result itself.
"""

from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any, cast

from prefect import get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.exceptions import SerializationError
from prefect.transactions import get_transaction

from ..errors import ObjectMissingError, RecordCorruptedError, RecordRefusedError
from ..object_store.prefect_results import RESULT_SERIALIZER, parse_result_record
from ..object_store.store import ObjectStore
from ..records import Batch
from .completions import Completions


@dataclass
class BatchKeyPolicy(CachePolicy):
    """Identifies a batch by its key, regardless of the task's other arguments.

    Attributes:
        folder: path of the completions within the result storage.
    """

    folder: str = ""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> str:
        """Path of the object with the completions of the task's `batch`."""
        return f"{self.folder}/{cast('Batch', inputs['batch']).key}".lstrip("/")


def batch_cache(completions: ObjectStore) -> dict[str, Any]:
    """Options of a task that caches its results in a store, one object per batch key.

    The task takes a `batch` and returns its `Completions`; those found in the cache are plain JSON.
    """
    results, folder = completions.result_storage()
    return {
        "persist_result": True,
        "result_storage": results.with_record_check(check_completions),
        "result_serializer": RESULT_SERIALIZER,
        "cache_policy": BatchKeyPolicy(folder=folder),
        "cache_result_in_memory": False,
    }


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
    store: ObjectStore, name: str, logger: "Logger | LoggerAdapter[Any]"
) -> Completions | None:
    """Read the object whose name ends with its batch key; None if it is missing or corrupted."""
    try:
        return check_completions(name, store.read(name))
    except ObjectMissingError:
        return None
    except (RecordRefusedError, RecordCorruptedError) as error:
        logger.warning("%s: %s; its rows are sent to the model again", store.uri_of(name), error)
        return None


def load_cached() -> Completions | None:
    """The cached result of the current task run, which Prefect's look-up may have missed."""
    entry = _cache_entry()
    return None if entry is None else read_completions(*entry, get_run_logger())


def store_in_cache(completions: Completions) -> None:
    """Write the result of the current task run to its cache, if it has one."""
    context, transaction = TaskRunContext.get(), get_transaction()
    if (entry := _cache_entry()) is None or context is None or transaction is None:
        return
    _, name = entry
    try:
        context.result_store.write(completions, key=name)
    except SerializationError:
        context.result_store.write(completions.encodable(), key=name)
    transaction.write_on_commit = False  # it has been written already


def _cache_entry() -> tuple[ObjectStore, str] | None:
    """Store and object name under which the current task run caches its result."""
    context, transaction = TaskRunContext.get(), get_transaction()
    if context is None or not context.persist_result or transaction is None:
        return None
    storage = context.result_store.result_storage
    if not isinstance(storage, ObjectStore) or transaction.key is None:
        return None
    return storage, transaction.key
