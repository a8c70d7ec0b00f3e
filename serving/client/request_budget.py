"""Bounds the requests that are in memory: those in flight, and those next in line."""

import threading

MAX_BYTES = 1 << 30
"""Bytes of the bodies of all requests in memory, each of which holds its images."""

_FEW = 16
"""So many requests may be in memory, however large they are."""


class RequestBudget:
    """Makes threads wait before they build a request as long as too many are in memory.

    The size of a request is known only when it is built, so each thread may exceed the budget once.

    Args:
        limit: how many requests may be in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._has_changed = threading.Condition(self._lock)
        self._requests = self._bytes = self._waiting = 0

    def acquire(self) -> None:
        """Wait until another request may be built, and count it."""
        with self._lock:
            while not self._has_room(self._limit):
                self._waiting += 1
                self._has_changed.wait()
                self._waiting -= 1
            self._requests += 1

    def grow(self, size: int) -> None:
        """A request was built, which has that many bytes."""
        with self._lock:
            self._bytes += size

    def release(self, size: int) -> None:
        """A request of that many bytes is no longer in memory."""
        with self._lock:
            self._requests -= 1
            self._bytes -= size
            self._wake()

    def resize(self, limit: int) -> None:
        """Change how many requests may be in memory."""
        with self._lock:
            self._limit = limit
            self._wake()

    def _wake(self) -> None:
        """Let the threads go on, if there is room for several requests: to change threads costs."""
        if self._waiting and self._has_room(self._limit - self._limit // 8):
            self._has_changed.notify_all()

    def _has_room(self, limit: int) -> bool:
        fits = self._requests < _FEW or self._bytes < MAX_BYTES
        return fits and self._requests < limit
