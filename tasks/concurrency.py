"""What all Prefect tasks of a run have in common."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar, cast

from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.utilities import annotations

from .errors import ImageQAError

T = TypeVar("T")
R = TypeVar("R")

STORE_THREADS = 16
"""Objects that are read at the same time: enough to hide a store's latency."""


TASK_OPTIONS: dict[str, Any] = {
    # Rows and images must never become persisted results, nor be looked up by them.
    "persist_result": False,
    "cache_policy": NO_CACHE,
}
"""Options of a step that is not cached."""


def quote(value: T) -> T:
    """Prefect's `quote`, typed: a task gets the value as it is, unsearched for futures."""
    return cast("T", annotations.quote(value))


def opaque(future: PrefectFuture[T]) -> T:
    """Prefect's `opaque`, typed: a task gets what the future gives, likewise unsearched."""
    return cast("T", annotations.opaque(future))


def prefetch_results(futures: Iterable[PrefectFuture[list[T]]], count: int) -> Iterator[T]:
    """The results of task runs one by one, of which `count` are submitted ahead of the present one.

    Where no further one can be submitted, what came before is still given.
    """
    window: deque[PrefectFuture[list[T]]] = deque()
    upcoming = iter(futures)
    error: ImageQAError | None = None
    more = True
    while more or window:
        if more and len(window) <= count:
            try:
                window.append(next(upcoming))
            except StopIteration:
                more = False
            except ImageQAError as failed:
                error, more = failed, False
        else:
            yield from window.popleft().result()
    if error is not None:
        raise error


def chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Cut what comes into lists of a size; the last one may be shorter."""
    return iter(lambda: list(islice(items, size)), [])


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[tuple[T, Future[R]]]:
    """Work on items in a pool, at most `count` ahead of what is consumed, in their order."""
    window: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        window.append((item, pool.submit(function, item)))
        if len(window) > count:
            yield window.popleft()
    yield from window
