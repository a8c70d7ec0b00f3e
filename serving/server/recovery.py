"""Restarts a server that was started by us when it dies or hangs, up to a limit."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import ServerError
from .server import VLLMServer
from .supervisor import descendants
from .usage import own_memory, processor_seconds, total_memory

_LOGGER = logging.getLogger("prefect_imageqa.serving")

MAX_RESTARTS_WITHOUT_PROGRESS = 5
"""Restarts in a row without a single completion in between, until we give up."""

MAX_RESTARTS = 60
"""Restarts in 24 hours, progress or not: about an hour of loading even for a small model."""

_DAY = 24 * 3600.0

_HANG_TIMEOUT = 60.0
"""Seconds a running server may not answer before it counts as dead; a busy one answers slowly."""

_POLL_SECONDS = 0.25

_FIRST_DELAY = 2.0
"""Seconds before the second restart in a row, doubled each time: port, memory or model may be
about to be available again."""

_MAX_DELAY = 30.0

_MIN_UPTIME = 1800.0
"""Seconds between two restarts because of memory: a leak that fills it sooner is a crash."""

_MIN_UPTIME_IN_STARTS = 10
"""The same, in durations of a start: so such restarts take at most a tenth of the time."""

_GIB = 1 << 30


class Recovery:
    """Restarts a server that has died or hangs. Threads share it and wait for the same restart.

    Args:
        server: the started server. Its owner stops it, even in the middle of a restart.
        completions: returns the number of completions so far, which measures progress.
    """

    def __init__(self, server: VLLMServer, completions: Callable[[], int]) -> None:
        self._server = server
        self._completions = completions
        self._memory_limit = server.options.memory_share * total_memory()
        self._lock = threading.Lock()
        self._doing = ""
        self._completions_before = 0
        self._restarts_without_progress = 0
        self._failures_in_a_row = 0
        self._recent: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._restarts = 0
        self._successes = 0

    @property
    def progress(self) -> str:
        """What `recover` does now, as a sentence; "" if it does nothing. Any thread may read it.

        For example "restarting vLLM: 23 s of 900, Loading the weights".
        """
        doing, starting = self._doing, self._server.progress
        return f"{doing}: {starting}" if doing and starting else doing

    def recover(self, reason: str = "", *, expected: bool = False) -> None:
        """Return when the server is healthy: immediately if it is, otherwise after a restart.

        Args:
            reason: why it must be restarted although it looks healthy; the predicate of a sentence
                about the server, such as "is stalled: 128 requests and no reply for 45 s". If
                another thread restarts it meanwhile, that is enough.
            expected: the caller is searching for the request that crashes the server, so a crash
                without progress is no reason to give up: only `MAX_RESTARTS` applies.

        Raises:
            ServerError: it died too often, or it was stopped.
        """
        successes = self._successes
        with self._lock:
            try:
                failed = None
                if reason and self._successes == successes:
                    cause = self._server.error(reason)
                    failed = self._restart(cause, _first_sentence(cause), expected)
                while failed or not self._is_healthy():
                    cause = failed or self._cause()
                    message = _first_sentence(cause) if expected else _one_line(cause)
                    failed = self._restart(cause, message, expected)
            finally:
                self._doing = ""

    def processor_seconds(self) -> float:
        """Processor time that the engines of the server have used since they were started."""
        return processor_seconds(self._server.engine_processes())

    def recycling_reason(self) -> str:
        """Why to restart the server between two batches, for `recover`; "" if there is no reason.

        Reads the memory of its processes, which takes milliseconds: ask every 30 s or so.
        """
        server = self._server
        min_uptime = max(_MIN_UPTIME, _MIN_UPTIME_IN_STARTS * server.startup_seconds)
        if server.options.memory_share >= 1 or server.uptime <= min_uptime:
            return ""
        used = own_memory(descendants(server.process.pid))
        if used <= self._memory_limit:
            return ""
        share = f"{server.options.memory_share:.0%} of what there is"
        return f"uses {used / _GIB:.1f} GiB, more than {self._memory_limit / _GIB:.1f} ({share})"

    def _is_healthy(self) -> bool:
        """Whether the server is healthy; waits for one that is running but not healthy."""
        began = time.monotonic()
        while self._server.process.exit_code is None:
            if self._server.probe.is_healthy():
                return True
            waited = time.monotonic() - began
            if waited > _HANG_TIMEOUT:
                break
            self._doing = f"vLLM does not answer: waiting, {waited:.0f} s of {_HANG_TIMEOUT:.0f}"
            self._server.pause(_POLL_SECONDS)
        return False

    def _cause(self) -> ServerError:
        try:
            self._server.check()
        except ServerError as death:
            return death
        return self._server.error("no longer answers")

    def _restart(self, cause: ServerError, message: str, expected: bool) -> ServerError | None:
        """Restart the server once; return why that failed.

        Raises:
            ServerError: there were too many restarts, or the server was stopped.
        """
        self._server.pause(0)  # raises if it was stopped, which may be what the cause is about
        self._check_limits(cause, expected)
        delay = self._delay()
        self._count(expected)
        _LOGGER.warning(
            "restart %d%s: %s", self._restarts, f" in {delay:.0f} s" * (delay > 0), message
        )
        self._doing = f"restarting vLLM in {delay:.0f} s"
        self._server.pause(delay)
        self._doing = "restarting vLLM"
        try:
            self._server.restart()
        except ServerError as error:
            self._failures_in_a_row += 1
            return error
        self._failures_in_a_row = 0
        self._successes += 1
        return None

    def _check_limits(self, cause: ServerError, expected: bool) -> None:
        completions = self._completions()
        if completions > self._completions_before:
            self._completions_before, self._restarts_without_progress = completions, 0
        if self._restarts_without_progress >= MAX_RESTARTS_WITHOUT_PROGRESS and not expected:
            raise ServerError(
                f"gave up after {MAX_RESTARTS_WITHOUT_PROGRESS} restarts without a completion: "
                f"{cause}"
            )
        full = len(self._recent) == self._recent.maxlen
        if full and time.monotonic() - self._recent[0] < _DAY:
            raise ServerError(f"gave up after {MAX_RESTARTS} restarts in 24 hours: {cause}")

    def _delay(self) -> float:
        """Seconds before the next restart: none before the first in a row."""
        earlier = max(self._failures_in_a_row, self._restarts_without_progress)
        return min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** (earlier - 1)) if earlier else 0.0

    def _count(self, expected: bool) -> None:
        self._restarts_without_progress += not expected
        self._restarts += 1
        self._recent.append(time.monotonic())


def _first_sentence(cause: ServerError) -> str:
    return str(cause).partition(". Log: ")[0]


def _one_line(cause: ServerError) -> str:
    """The first sentence, and the last line of the log if the message has it."""
    last = str(cause).rpartition("\n")[2].strip()
    first = _first_sentence(cause)
    return first if last == str(cause) else f"{first} ({last})"
