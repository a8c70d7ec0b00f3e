"""Waits for S3 servers, and for hosts of images, that no longer answer."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from ..errors import ObjectUnavailableError, StoreError, StoreUnavailableError

T = TypeVar("T")

FIRST_PAUSE = 0.5
"""Seconds before the second attempt at most; each further pause is twice as long."""

MAX_PAUSE = 5.0
"""Seconds: a store that is back is noticed after this time at the latest."""

LOG_SECONDS = 60.0
"""How often a wait that goes on is logged."""

OBJECT_ATTEMPTS = 3
"""Failed attempts at an object, with answers to other calls before each, until it is to blame."""

MAX_SERVERS = 1024
"""Servers that are remembered: a dataset may have images from any number of hosts."""

_LOGGER = logging.getLogger("prefect_imageqa.store")


@dataclass(slots=True, eq=False)
class _Server:
    """What a run knows about a server; times are those of `time.monotonic()`, 0 for never.

    Attributes:
        name: for people, such as "S3 at http://minio:9000".
        since: when the latest outage began; it has ended if the server has answered since.
        reason: why the latest of them failed.
        logged: when the wait was logged last.
    """

    name: str
    answers: int = 0
    answered: float = 0.0
    since: float = 0.0
    waiting: int = 0
    reason: str = ""
    logged: float = 0.0


@dataclass(slots=True, eq=False)
class _Wait:
    """One call that waits for a server.

    Attributes:
        answers: answers to other calls during its latest pause.
        blamed: how many have failed although the server had answered other calls since.
        is_over: whether it has given up.
    """

    server: _Server
    began: float
    deadline: float
    answers: int = 0
    attempts: int = 0
    blamed: int = 0
    is_over: bool = False


class Patience:
    """How long a run waits for stores that do not answer. Thread-safe.

    Calls that meet the same outage share its beginning, its end and its log lines.

    Args:
        seconds: how long to wait since a server has last answered; 0 means not at all.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._server = lru_cache(maxsize=MAX_SERVERS)(_Server)
        self._waited_for: dict[str, _Server] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._refusal: StoreError | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is waited for now and why, for how long already and how long at most."""
        with self._lock:
            servers = list(self._waited_for.values())
        return tuple(f"{server.name} {server.reason}: {self._so_far(server)}" for server in servers)

    def stop(self, error: StoreError | None = None) -> None:
        """End all waits at once: they raise why they waited. No call waits from now on.

        What can be stored without waiting still is.

        Args:
            error: if given, all further calls fail with it.
        """
        self._refusal = error
        self._stopped.set()

    def call(self, attempt: Callable[[], T], *, server: str = "", essential: bool = True) -> T:
        """Call `attempt`, again and again as long as it raises `StoreUnavailableError`.

        Args:
            attempt: must be safe to repeat; calls `answered` when it gets an answer.
            server: the server that it asks, if known: if that does not answer when the run is
                stopped, it is not asked again.
            essential: false for one object of many: if the server answers other calls but not
                this one, it gives up early.

        Raises:
            ObjectUnavailableError: `essential` is false, and the server answers other calls.
            StoreUnavailableError: the server has not answered for `seconds`; or a retry would not
                help, because it was never found at its address.
        """
        began = time.monotonic()
        wait: _Wait | None = None
        try:
            while True:
                if self._stopped.is_set():
                    self._check_stopped(server)
                try:
                    return attempt()
                except StoreUnavailableError as error:
                    wait = wait or self._begin(error, began)
                    self._pause(wait, error, essential)
        finally:
            if wait is not None:
                self._end(wait)

    def answered(self, server: str) -> None:
        """Note that a server has answered a call."""
        with self._lock:
            known = self._server(server)
            known.answers += 1
            known.answered = time.monotonic()

    def last_answer(self, server: str) -> float:
        """When a server answered last, by `time.monotonic()`; 0 if it never has."""
        with self._lock:
            return self._server(server).answered

    def _check_stopped(self, name: str) -> None:
        """Fail where an attempt would be in vain: at a silent server it takes half a minute."""
        if self._refusal is not None:
            raise self._refusal
        with self._lock:
            server = self._server(name)
        if server.since and server.answered <= server.since:
            raise StoreUnavailableError(f"{name} {server.reason}", name, server.reason)

    def _begin(self, error: StoreUnavailableError, began: float) -> _Wait:
        with self._lock:
            server = self._server(error.server)
            if not server.waiting and (not server.since or server.answered > server.since):
                server.since = max(began, server.answered)
            server.waiting += 1
            self._waited_for[server.name] = server
            server.reason = error.reason
            # It may answer other calls all the time: they must not prolong this one.
            deadline = max(server.since, server.answered) + self.seconds
            return _Wait(server, began, deadline)

    def _pause(self, wait: _Wait, error: StoreUnavailableError, essential: bool) -> None:
        """Sleep before the next attempt; raises the error if there should be none."""
        now, server = time.monotonic(), wait.server
        wait.blamed += wait.answers > 0
        wait.is_over = (
            now >= wait.deadline
            or self._stopped.is_set()
            or (error.is_misaddressed and not server.answered)
            or (wait.blamed >= OBJECT_ATTEMPTS and not essential)
        )
        if not wait.is_over:
            self._log_wait(server, error.reason)
            # With jitter: calls that failed together must not all come back at the same time.
            seconds = min(FIRST_PAUSE * 2**wait.attempts, MAX_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            wait.attempts += 1
            before = server.answers
            wait.is_over = self._stopped.wait(min(seconds, wait.deadline - now))
            wait.answers = server.answers - before
        if wait.is_over:
            answers_others = not essential and server.answered > wait.began
            kind = ObjectUnavailableError if answers_others else StoreUnavailableError
            waited = f"; waited {time.monotonic() - wait.began:.0f} s" if wait.attempts else ""
            raise kind(f"{error}{waited}", error.server, error.reason) from error

    def _log_wait(self, server: _Server, reason: str) -> None:
        """Log the beginning of an outage, and once a minute that it goes on."""
        now = time.monotonic()
        with self._lock:
            server.reason = reason
            is_first, is_due = not server.logged, now - server.logged >= LOG_SECONDS
            if is_first or is_due:
                server.logged = now
        if is_first:
            _LOGGER.warning("%s %s: waiting up to %.0f s", server.name, reason, self.seconds)
        elif is_due:
            _LOGGER.warning("%s still %s: %s", server.name, reason, self._so_far(server))

    def _end(self, wait: _Wait) -> None:
        """One call fewer waits; the last one logs that the server answers again."""
        server = wait.server
        with self._lock:
            server.waiting -= 1
            if server.waiting:
                return
            self._waited_for.pop(server.name, None)
            was_logged, server.logged = server.logged, 0.0
            recovered = was_logged and not wait.is_over and server.answered > server.since
            seconds = server.answered - server.since
        if recovered:
            _LOGGER.warning("%s answers again after %.0f s", server.name, seconds)

    def _so_far(self, server: _Server) -> str:
        seconds = min(time.monotonic() - server.since, self.seconds)
        return f"waiting, {seconds:.0f} s of {self.seconds:.0f}"
