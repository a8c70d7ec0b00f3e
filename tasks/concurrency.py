"""Shared by the Prefect tasks of a run: task options, typed annotations, bounded prefetching."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from PIL import Image
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.utilities import annotations

from .errors import ImageQAError

T = TypeVar("T")
R = TypeVar("R")

STORE_THREADS = 16
"""Objects read concurrently: enough to hide a store's latency."""

MAX_CHUNK_BYTES = 64 << 20
"""Rows that are processed together hold no more than this, unless a single one does."""

_CONTAINER_BYTES = 64


TASK_OPTIONS: dict[str, Any] = {
    # Rows and images must neither be persisted as results nor be hashed into a cache key.
    "persist_result": False,
    "cache_policy": NO_CACHE,
}
"""Options of every task."""

Pending = PrefectFuture[T] | Future[T]
"""What a task run, or a plain call in another thread, will return."""


def quote(value: T) -> T:
    """Prefect's `quote`, typed: passes a value to a task without searching it for futures."""
    return cast("T", annotations.quote(value))


def opaque(future: PrefectFuture[T]) -> T:
    """Prefect's `opaque`, typed: passes a future's result to a task without searching it."""
    return cast("T", annotations.opaque(future))


def freed_when_done(future: PrefectFuture[T]) -> PrefectFuture[T]:
    """The future, which will be freed with its result as soon as nobody refers to it.

    The callbacks of a future of Prefect refer to the future itself. Without this, it lasts until
    the garbage collector finds such a cycle, which may be tens of thousands of rows later.
    """
    wrapped = getattr(future, "wrapped_future", None)
    if isinstance(wrapped, Future):  # not that of a task runner for several machines
        wrapped.add_done_callback(_drop_callbacks)
    return future


def _drop_callbacks(future: Future[Any]) -> None:
    # Those that are being called are in the old list.
    future._done_callbacks = []  # type: ignore[attr-defined] # private


def prefetch_results(futures: Iterable[Pending[T]], count: int) -> Iterator[T]:
    """Yield each future's result, with up to `count` further ones submitted.

    If submitting fails, the results of those before are yielded first, then the error is raised.
    """
    window: deque[Pending[T]] = deque()
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
            yield window.popleft().result()
    if error is not None:
        raise error


def chunks(
    items: Iterable[T],
    size: int,
    memory: Callable[[T], int] = lambda _: 0,
    *,
    max_bytes: int = MAX_CHUNK_BYTES,
    grows_to: int = 0,
) -> Iterator[list[T]]:
    """Split items into lists of `size`; the last one may be shorter.

    If there is an error instead of the next item, the items before it come first.

    Args:
        items: the items.
        size: items in a list.
        memory: bytes of an item.
        max_bytes: a list also ends with the item that takes it to this.
        grows_to: each list is twice as long as the one before, up to this, if it is larger.
    """
    chunk: list[T] = []
    total = 0
    error: ImageQAError | None = None
    try:
        for item in items:
            chunk.append(item)
            total += memory(item)
            if len(chunk) >= size or total >= max_bytes:
                yield chunk
                chunk, total, size = [], 0, max(size, min(2 * size, grows_to))
    except ImageQAError as failed:
        error = failed
    if chunk:
        yield chunk
    if error is not None:
        raise error


def memory_of(value: Any) -> int:
    """About how many bytes the texts, images and lists of a value take, up to `MAX_CHUNK_BYTES`.

    Args:
        value: a record, a message, or anything else made of dicts and lists.
    """
    total, found = 0, [value]
    for part in found:  # grows meanwhile
        kind = type(part)
        if kind is str or kind is bytes:
            total += len(part)
        elif kind is dict:
            total += _CONTAINER_BYTES
            found += part
            found += part.values()
        elif kind is list or kind is tuple:
            total += _CONTAINER_BYTES + 8 * len(part)
            found += part
        elif isinstance(part, Image.Image):
            total += 4 * part.width * part.height
        if total >= MAX_CHUNK_BYTES:
            break
    return total


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[tuple[T, Future[R]]]:
    """Process items in a pool, in order, at most `count` ahead of the consumer."""
    window: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        window.append((item, pool.submit(function, item)))
        if len(window) > count:
            yield window.popleft()
    yield from window
