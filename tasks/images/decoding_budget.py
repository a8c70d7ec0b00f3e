"""Budgets of memory for all images that a process decodes, and the work that each may take."""

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BYTES = 512 * 2**20
"""Memory of all images that are decoded at the same time."""

MAX_SECONDS = 2.0
"""Estimated CPU time to decode one image, on a slow core."""


_TRIM_BYTES = 128 * 2**20
"""After images of so many bytes in total, what they held is returned to the system."""

_LIBC = ctypes.CDLL(None)


def _return_freed_memory() -> None:
    """Ask the C library for it: it would keep freed memory for each thread that has used some."""
    if hasattr(_LIBC, "malloc_trim"):  # in the GNU C library
        _LIBC.malloc_trim(0)


class MemoryBudget:
    """Lets threads wait until there is memory for their image. First come, first served.

    Otherwise a large image would wait as long as small ones keep coming.

    Args:
        total: bytes.
    """

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._freed = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self._free

    @property
    def waiting(self) -> int:
        """Number of threads that wait."""
        return len(self._queue)

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold some bytes; more than there are in total means all."""
        count, turn = min(count, self._total), object()
        with self._changed:
            self._queue.append(turn)
            try:
                self._changed.wait_for(lambda: self._queue[0] is turn and self._free >= count)
                self._free -= count
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            self._trim(count)
            with self._changed:
                self._free += count
                self._changed.notify_all()

    def _trim(self, count: int) -> None:
        with self._changed:
            self._freed += count
            is_due = self._freed >= _TRIM_BYTES
            self._freed = 0 if is_due else self._freed
        if is_due:
            _return_freed_memory()


MEMORY = MemoryBudget(MAX_BYTES)
"""Of this process."""

FILES = MemoryBudget(MAX_BYTES // 2)
"""The same for encoded files that are read to be decoded. A thread takes from this budget first."""
