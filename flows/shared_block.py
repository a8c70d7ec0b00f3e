"""A block that several runs of a process are in at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


def shared_block(
    opened: Callable[[], AbstractContextManager[object]],
) -> Callable[[], AbstractContextManager[None]]:
    """A context manager for settings of the whole process.

    They change with the first of several blocks that overlap, and are restored with the last.
    """
    lock = threading.Lock()
    inside: list[AbstractContextManager[object]] = []
    count = 0

    @contextmanager
    def block() -> Iterator[None]:
        nonlocal count
        with lock:
            if count == 0:
                first = opened()
                first.__enter__()
                inside.append(first)
            count += 1
        try:
            yield
        finally:
            with lock:
                count -= 1
                if count == 0:
                    inside.pop().__exit__(None, None, None)

    return block
