"""Prefect's task cache for batches: found by batch key, and written so that a failure is told.

Prefect takes every error in a look-up for a cache miss, and only logs a failed write. So the task
looks again before it asks, and writes its result itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any, cast

from prefect import get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.transactions import get_transaction

from ..errors import ObjectMissingError, RecordCorruptedError, RecordRefusedError
from ..object_store.prefect_results import RESULT_SERIALIZER, record_result
from ..object_store.store import ObjectStore
from ..records import Batch
from .completions import Completions


@dataclass
class BatchKeyPolicy(CachePolicy):
    """A batch is found by its key, whatever else the task is given.

    Attributes:
        folder: path of the completions in the result storage.
    """

    folder: str = ""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> str:
        """Where the completions of the task's `batch` are kept."""
        return f"{self.folder}/{cast('Batch', inputs['batch']).key}".lstrip("/")


def batch_cache(completions: ObjectStore) -> dict[str, Any]:
    """The options of a task whose results are kept in a store, one object a batch key.

    The task takes a `batch` and returns plain JSON.
    """
    results, folder = completions.result_storage()
    return {
        "persist_result": True,
        "result_storage": results.accepting(check_completions),
        "result_serializer": RESULT_SERIALIZER,
        "cache_policy": BatchKeyPolicy(folder=folder),
        "cache_result_in_memory": False,
    }


def check_completions(name: str, record: bytes) -> Completions:
    """Read a stored result record, whose name ends with its batch key.

    Raises:
        RecordRefusedError: it wants to be read in another way than this program's.
        RecordCorruptedError: it is not such a record, or does not hold the replies to that batch.
    """
    completions = Completions.load(record_result(record))
    if completions.key != name.rpartition("/")[2]:
        raise RecordCorruptedError("stored replies are those of another batch")
    return completions


def read_completions(
    store: ObjectStore, name: str, logger: "Logger | LoggerAdapter[Any]"
) -> Completions | None:
    """Read what is stored under a name that ends with its batch key; warn where it is corrupted."""
    try:
        return check_completions(name, store.read(name))
    except ObjectMissingError:
        return None
    except (RecordRefusedError, RecordCorruptedError) as error:
        logger.warning("%s: %s; its rows are asked again", store.uri_of(name), error)
        return None


def load_cached() -> Mapping[str, Any] | None:
    """What is stored for the task run that Prefect has not found: most likely nothing."""
    if (found := _cache_entry()) is None:
        return None
    stored = read_completions(*found, get_run_logger())
    return None if stored is None else stored.dump()


def store_in_cache(result: Mapping[str, Any]) -> None:
    """Store the result of the current task run in its cache, if it has one."""
    context, transaction = TaskRunContext.get(), get_transaction()
    if (found := _cache_entry()) is None or context is None or transaction is None:
        return
    _, name = found
    context.result_store.write(dict(result), key=name)
    transaction.write_on_commit = False  # it is written


def _cache_entry() -> tuple[ObjectStore, str] | None:
    """Where the current task run keeps its result, and under which name."""
    context, transaction = TaskRunContext.get(), get_transaction()
    if context is None or not context.persist_result or transaction is None:
        return None
    storage = context.result_store.result_storage
    if not isinstance(storage, ObjectStore) or transaction.key is None:
        return None
    return storage, transaction.key
