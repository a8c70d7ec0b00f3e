"""Restarts a server that was started by us when it dies, up to a limit."""

import logging
import threading
import time
from collections.abc import Callable

from ..errors import ServerError
from .server import VLLMServer

_LOGGER = logging.getLogger("prefect_imageqa.serving")

MAX_RESTARTS_WITHOUT_PROGRESS = 5
"""Restarts in a row without a single completion in between, until we give up."""

MAX_RESTARTS = 60
"""Restarts in total, progress or not: about an hour of loading even for a small model."""

_HANG_TIMEOUT = 60.0
"""Seconds a running server may not answer before it counts as dead; a busy one answers slowly."""

_POLL_SECONDS = 0.25

_RETRY_DELAY = 1.0
"""Seconds after a failed restart: the port or the memory may be about to be released."""


class Recovery:
    """Restarts a server that has died. Threads share it and wait for the same restart.

    Args:
        server: the started server. Its owner stops it, even in the middle of a restart.
        completions: returns the number of completions so far, which measures progress.
    """

    def __init__(self, server: VLLMServer, completions: Callable[[], int]) -> None:
        self._server = server
        self._completions = completions
        self._lock = threading.Lock()
        self._completions_before = 0
        self._restarts_without_progress = 0
        self._restarts = 0

    def recover(self, *, expected: bool = False) -> None:
        """Return when the server is healthy: immediately if it is, otherwise after a restart.

        Args:
            expected: the caller is searching for the request that crashes the server, so a crash
                without progress is no reason to give up: only `MAX_RESTARTS` applies.

        Raises:
            ServerError: it died too often, or it was stopped.
        """
        failed: ServerError | None = None
        with self._lock:
            while not self._is_healthy():
                self._count_restart(failed or self._cause(), expected)
                try:
                    self._server.restart()
                    failed = None
                except ServerError as error:
                    failed = error
                    time.sleep(_RETRY_DELAY)

    def _is_healthy(self) -> bool:
        """Whether the server is healthy; waits for one that is running but not healthy."""
        deadline = time.monotonic() + _HANG_TIMEOUT
        while self._server.process.exit_code is None and time.monotonic() < deadline:
            if self._server.is_healthy():
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _cause(self) -> ServerError:
        try:
            self._server.check()
        except ServerError as death:
            return death
        return self._server.error("no longer answers")

    def _count_restart(self, cause: ServerError, expected: bool) -> None:
        completions = self._completions()
        if completions > self._completions_before:
            self._completions_before, self._restarts_without_progress = completions, 0
        if self._restarts_without_progress >= MAX_RESTARTS_WITHOUT_PROGRESS and not expected:
            raise ServerError(
                f"gave up after {MAX_RESTARTS_WITHOUT_PROGRESS} restarts without a completion: "
                f"{cause}"
            )
        if self._restarts >= MAX_RESTARTS:
            raise ServerError(f"gave up after {MAX_RESTARTS} restarts: {cause}")
        self._restarts_without_progress += not expected
        self._restarts += 1
        message = str(cause).partition(" Log: ")[0] if expected else cause
        _LOGGER.warning("restart %d: %s", self._restarts, message)
