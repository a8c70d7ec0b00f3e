"""Bounds the requests that are in memory: those in flight, and those next in line."""

import threading
from collections.abc import Callable

MAX_BYTES = 1 << 30
"""Bytes of the bodies of all requests in memory, each of which holds its images."""

_FEW = 16
"""So many requests may be in memory, however large they are."""


class RequestBudget:
    """Makes threads wait before they build a request as long as too many are in memory.

    The size of a request is known only when it is built, so each thread may exceed the budget once.

    Args:
        max_requests: limit of the requests in memory, as it is now.
    """

    def __init__(self, max_requests: Callable[[], int]) -> None:
        self._max_requests = max_requests
        self._changed = threading.Condition(threading.Lock())
        self._requests = self._bytes = self._waiting = 0

    def acquire(self) -> "Place":
        """Wait until another request may be built."""
        with self._changed:
            while not self._has_room(self._max_requests()):
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
            self._requests += 1
        return Place(self)

    def change(self, requests: int, size: int) -> None:
        """Add to the number and the bytes of the requests in memory; both may be negative."""
        with self._changed:
            self._requests += requests
            self._bytes += size
            self._wake()

    def wake(self) -> None:
        """The limit may have grown."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Let the threads go on, if there is room for several requests: to change threads costs."""
        if self._waiting:
            limit = self._max_requests()
            if self._has_room(limit - limit // 8):
                self._changed.notify_all()

    def _has_room(self, limit: int) -> bool:
        fits = self._requests < _FEW or self._bytes < MAX_BYTES
        return fits and self._requests < limit


class Place:
    """A request's place in memory."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: RequestBudget) -> None:
        self._budget: RequestBudget | None = budget
        self._size = 0

    def add(self, size: int) -> None:
        """Tell the size of the body when it is built."""
        if self._budget is not None:
            self._size += size
            self._budget.change(0, size)

    def free(self) -> None:
        """The request is no longer in memory; from the second call on, this does nothing."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.change(-1, -self._size)
