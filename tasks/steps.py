"""What all Prefect tasks of a run have in common."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.tasks import Task
from prefect.utilities.annotations import opaque, quote

T = TypeVar("T")
R = TypeVar("R")

READERS = 16
"""Threads that read images for one batch: enough to hide an object store's latency."""


def never(task: "Task[..., Any]", run: TaskRun, state: "State[Any]") -> bool:  # noqa: ARG001
    """Never retry."""
    return False


STEP: dict[str, Any] = {
    # Rows and images must never become persisted results, nor be looked up by them.
    "persist_result": False,
    "cache_policy": NO_CACHE,
    # Prefect logs a traceback when it runs out of retries by itself, even for a user's mistake
    # with a clear message. Refusing the one retry there is ends the task quietly; the flow
    # says what was wrong.
    "retries": 1,
    "retry_condition_fn": never,
}
"""Options of a step that is neither cached nor retried."""


def whole(value: T) -> T:
    """Hand a task a value as it is: Prefect would walk through every row in search of futures."""
    return cast("T", quote(value))


def result_of(future: PrefectFuture[T]) -> T:
    """Hand a task what an earlier one returns, likewise without walking through it."""
    return cast("T", opaque(future))


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[tuple[T, Future[R]]]:
    """Work on items in a pool, at most `count` ahead of what is consumed, in their order."""
    window: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        window.append((item, pool.submit(function, item)))
        if len(window) > count:
            yield window.popleft()
    yield from window
