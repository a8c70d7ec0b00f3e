"""`Outcomes`: the outcomes of one caller's requests, for which it waits once."""

import asyncio
import threading
from collections.abc import Callable

from ..errors import EndpointError
from ..types import Outcome

CLOSED = "the client was closed before the server answered"


class Outcomes:
    """Collects outcomes on the event loop's thread, while the caller's thread sends requests.

    Attributes:
        error: the first error, after which no more requests should be sent.

    Args:
        on_outcome: called with position and outcome, on the event loop's thread.
    """

    def __init__(self, on_outcome: Callable[[int, Outcome], None] | None) -> None:
        self.error: BaseException | None = None
        self._on_outcome = on_outcome
        self._outcomes: dict[int, Outcome] = {}
        self._ended = 0
        self._expected = -1
        self._all_ended = threading.Event()

    def add(self, position: int, outcome: Outcome) -> None:
        """A request has ended with an outcome; an error of `on_outcome` counts as its error."""
        try:
            if self._on_outcome:
                self._on_outcome(position, outcome)
            self._outcomes[position] = outcome
        except BaseException as error:
            self.error = self.error or error
        self._end()

    def fail(self, error: BaseException) -> None:
        """A request has ended with an error, or was cancelled."""
        if isinstance(error, asyncio.CancelledError):
            error = EndpointError(CLOSED)
        self.error = self.error or error
        self._end()

    def _end(self) -> None:
        self._ended += 1
        if self._ended == self._expected:
            self._all_ended.set()

    def wait(self, count: int) -> None:
        """Wait until all requests have ended, which are that many."""
        self._expected = count
        if self._ended < count:  # the one that ends last will see how many there are
            self._all_ended.wait()

    def result(self, count: int) -> list[Outcome]:
        """The outcomes of all requests, which are that many; waits for them.

        Raises:
            BaseException: the first error.
        """
        self.wait(count)
        if self.error is not None:
            raise self.error
        return [self._outcomes[position] for position in range(count)]
