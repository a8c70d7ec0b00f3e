"""Bring a server of our own back when it has died, and know when to leave it."""

import logging
import threading
import time
from collections.abc import Callable

from ..errors import ServerError
from .server import VLLMServer

_LOGGER = logging.getLogger("prefect_imageqa.serving")

RESTARTS = 5
"""Restarts in a row without a single completion in between; then the server is given up."""

RESTARTS_IN_ALL = 60
"""Restarts at most, whatever comes in between: about an hour of loading even a small model."""

_HANG_SECONDS = 60.0
"""How long a server that runs may be silent before it counts as dead. Busy ones are slow."""

_POLL_SECONDS = 0.25

_PAUSE_SECONDS = 1.0
"""After a restart that failed: what holds the port or the memory may be about to let go."""


class Recovery:
    """Restarts a server that has died. Threads share it and wait for the same restart.

    Args:
        server: the server, started; who owns it stops it, also in the middle of a restart.
        completions: gives how many completions there were so far: the sign of progress.
    """

    def __init__(self, server: VLLMServer, completions: Callable[[], int]) -> None:
        self._server = server
        self._completions = completions
        self._lock = threading.Lock()
        self._seen = 0
        self._in_vain = 0
        self._restarts = 0

    def recover(self, *, expected: bool = False) -> None:
        """Return when the server is healthy: at once if it is, else after a restart.

        Where its death is `expected`, since the caller looks for what kills it, a death without
        progress is no sign that there is none to be had; only `RESTARTS_IN_ALL` holds.

        Raises:
            ServerError: it died too often, or it was stopped.
        """
        failed: ServerError | None = None
        with self._lock:
            while not self._is_well():
                self._count(failed or self._death(), expected)
                try:
                    self._server.restart()
                    failed = None
                except ServerError as error:
                    failed = error
                    time.sleep(_PAUSE_SECONDS)

    def _is_well(self) -> bool:
        """Whether the server is healthy; one that runs but is not gets time to decide."""
        deadline = time.monotonic() + _HANG_SECONDS
        while self._server.process.exit_code is None and time.monotonic() < deadline:
            if self._server.is_healthy():
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _death(self) -> ServerError:
        try:
            self._server.check()
        except ServerError as death:
            return death
        return self._server.error("does not answer any more")

    def _count(self, death: ServerError, expected: bool) -> None:
        completions = self._completions()
        if completions > self._seen:
            self._seen, self._in_vain = completions, 0
        if self._in_vain >= RESTARTS and not expected:
            raise ServerError(f"given up after {RESTARTS} restarts without an answer: {death}")
        if self._restarts >= RESTARTS_IN_ALL:
            raise ServerError(f"given up after {RESTARTS_IN_ALL} restarts: {death}")
        self._in_vain += not expected
        self._restarts += 1
        told = str(death).partition(" Log: ")[0] if expected else death
        _LOGGER.warning("restart %d: %s", self._restarts, told)
