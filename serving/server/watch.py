"""Keeps a server up that nobody else watches: restarts it when it dies or hangs."""

import logging
import time
from typing import NoReturn

from .recovery import Recovery
from .server import VLLMServer
from .usage import processor_seconds

_LOGGER = logging.getLogger("prefect_imageqa.serving")

_POLL_SECONDS = 5.0

_QUIET_SECONDS = 25.0
"""Seconds without a token until the server is tested with a request."""

_TEST_SECONDS = 15.0
"""How long that request may take. With the two above, and the seconds until a frozen server is
given up on /metrics and /health, a hang is named within a minute."""

_COMPUTING_SHARE = 0.1
"""Processors that the engines must use to count as computing. One that is idle, stopped or in a
deadlock uses 0.00 (measured on CPU); one that waits for its GPU may spin, and counts."""


def keep_running(server: VLLMServer, stall_timeout: float) -> NoReturn:
    """Restart the server whenever it dies or stalls.

    It has stalled when its token counters do not move and a request for one token gets no reply.
    The counters of a hanging engine do not show the requests that it has been sent since, so an
    idle server is tested, too.

    Args:
        server: the started server; its owner stops it.
        stall_timeout: seconds without a token until a server that computes all the same has
            stalled: it may be busy with a long prompt, or compiling. One that does not compute
            gets up to a minute.

    Raises:
        ServerError: it died or stalled too often, or it was stopped.
    """
    watch = _Watch(server, stall_timeout)
    recovery = Recovery(server, lambda: watch.tokens)
    while True:
        recovery.recover(watch.wait_for_trouble())


class _Watch:
    """Watches a server.

    Attributes:
        tokens: how many it has read and generated while it was watched, over all restarts.
    """

    def __init__(self, server: VLLMServer, stall_timeout: float) -> None:
        self._server, self._stall_timeout = server, stall_timeout
        self.tokens = 0
        self._last_count = 0
        self._since = 0.0
        self._computed = 0.0

    def wait_for_trouble(self) -> str:
        """Return when the server must be restarted: "" if it has ended, otherwise why it must."""
        self._start_silence()
        while self._server.process.wait(_POLL_SECONDS) is None:
            if reason := self._check():
                return reason
        return ""

    def _check(self) -> str:
        """Why the server must be restarted, or ""."""
        if self._works():
            self._start_silence()
        if time.monotonic() - self._since <= _QUIET_SECONDS:
            return ""
        if self._server.probe.answers(_TEST_SECONDS) or self._works():
            self._start_silence()
        silence = time.monotonic() - self._since
        if silence <= _QUIET_SECONDS or not self._server.is_alive():
            return ""
        if silence >= self._stall_timeout or not self._is_computing(silence):
            return f"is stalled: no token for {silence:.0f} s, nor a reply to a test request"
        _LOGGER.warning(
            "vLLM computes, but gives no token and no reply to a test request: waiting, %.0f s of "
            "%.0f",
            *(silence, self._stall_timeout),
        )
        return ""

    def _works(self) -> bool:
        """Whether the server has made progress, or cannot be expected to."""
        counters = self._server.probe.counters()
        if counters is None:  # frozen, or started with --disable-log-stats: then all there is
            return self._server.probe.is_healthy()
        before, self._last_count = self._last_count, counters.tokens
        # A restart sets the counters back to 0.
        self.tokens += counters.tokens - (before if before <= counters.tokens else 0)
        return counters.tokens != before or counters.asleep

    def _start_silence(self) -> None:
        self._since = time.monotonic()
        self._computed = processor_seconds(self._server.engine_processes())

    def _is_computing(self, silence: float) -> bool:
        computed = processor_seconds(self._server.engine_processes()) - self._computed
        return computed > _COMPUTING_SHARE * silence
