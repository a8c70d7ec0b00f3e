"""Prefect's task cache for batches: found by batch key, and written so that a failure is told.

Prefect takes every error in a look-up for a cache miss, and only logs a failed write. So the task
looks again before it asks, and writes its result itself.
"""

from collections.abc import Mapping
from typing import Any, ParamSpec, TypeVar, cast

from prefect import get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.tasks import Task
from prefect.transactions import get_transaction

from .completions import Completions, CompletionsDamagedError
from .filesystems import ObjectMissingError
from .object_store import ObjectStore
from .records import Batch
from .result_records import (
    RESULT_SERIALIZER,
    RecordDamagedError,
    RecordRefusedError,
    record_result,
)

P = ParamSpec("P")
R = TypeVar("R")


class BatchKeyPolicy(CachePolicy):
    """The key of a batch is its name in the cache, whatever else the task is given."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> str:
        """The batch key of the task's `batch`."""
        return cast("Batch", inputs["batch"]).key


def cached(task: Task[P, R], completions: ObjectStore) -> Task[P, R]:
    """The task with its results kept in, and taken from, a store.

    Args:
        task: takes a `batch` and returns plain JSON.
        completions: where the results are, one object a batch key.
    """
    return task.with_options(
        persist_result=True,
        result_storage=completions.saved().accepting(check_completions),
        result_serializer=RESULT_SERIALIZER,
        cache_policy=BatchKeyPolicy(),
        cache_result_in_memory=False,
    )


def check_completions(key: str, record: bytes) -> Completions:
    """Read a stored result record.

    Raises:
        RecordRefusedError: it wants to be read in another way than this program's.
        RecordDamagedError: it is not such a record.
        CompletionsDamagedError: it does not hold the replies to that batch.
    """
    completions = Completions.load(record_result(record))
    if completions.key != key:
        raise CompletionsDamagedError("stored replies are those of another batch")
    return completions


def look_again(batch: Batch) -> Mapping[str, Any] | None:
    """What is stored for a batch that Prefect has not found: most likely nothing.

    Raises:
        StoreError: the cache cannot be read now.
    """
    found = _storage()
    if found is None:
        return None
    try:
        return check_completions(batch.key, found.read(batch.key)).dump()
    except ObjectMissingError:
        return None
    except (RecordRefusedError, RecordDamagedError, CompletionsDamagedError) as error:
        where = found.uri_of(batch.key)
        get_run_logger().warning("%s: %s; its rows are asked again", where, error)
        return None


def keep(batch: Batch, result: Mapping[str, Any]) -> None:
    """Store a batch's result in the cache, if it has one.

    Raises:
        StoreError: it cannot be written.
    """
    context = TaskRunContext.get()
    if _storage() is None or context is None:
        return
    context.result_store.write(dict(result), key=batch.key)
    transaction = get_transaction()
    if transaction is not None:
        transaction.write_on_commit = False  # it is written


def _storage() -> ObjectStore | None:
    context = TaskRunContext.get()
    if context is None or not context.persist_result:
        return None
    storage = context.result_store.result_storage
    return storage if isinstance(storage, ObjectStore) else None
