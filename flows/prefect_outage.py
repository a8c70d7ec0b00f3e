"""Prefect's server is away: the run goes on without it, and ends in time.

On its own, Prefect ends minutes later: it retries each request for more than a minute, and each
event that is still to be sent for 7 seconds.
"""

import asyncio
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_logger, get_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Crashed, Failed

from ..serving.endpoint import safe_url
from ..serving.temporary_server import is_temporary

FINAL_WAIT_SECONDS = 45.0
"""How long a finished run waits for the server, which must be told how it ended.

Long enough for a restart of the server.
"""

EXIT_SECONDS = 55.0
"""How long after its end a run may still send events and log lines; then the process ends."""

CHECK_SECONDS = 5.0
"""How long the server may take to answer a check."""

POLL_SECONDS = 1.0

QUIET_SECONDS = 3.0
"""How long a process that ends may be silent; sending what is left takes less as a rule."""

LOG_SECONDS = 60.0
"""How often an outage that goes on is logged."""

_LOGGER = logging.getLogger("prefect_imageqa.flows")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _End:
    """How far a run has come with its end; times are those of `time.monotonic()`.

    Attributes:
        began: when it had nothing to do any more but to report its end; 0 before.
        answered: when the server answered a check last.
        gave_up: whether it has waited for the server in vain.
    """

    began: float = 0.0
    answered: float = -math.inf
    gave_up: bool = False


_has_caller: ContextVar[bool] = ContextVar("_has_caller", default=False)
_end: ContextVar[_End | None] = ContextVar("_end", default=None)


class UnreportedError(Abort):
    """Ends Prefect's engine at once, without requests to its server, which is away.

    Attributes:
        outcome: of the flow's function, which has ended.
        state: what the server would have been told; the engine logs it.
    """

    def __init__(self, outcome: "Future[Any]") -> None:
        super().__init__("Prefect's server does not know how the run ended")
        self.outcome = outcome
        self.state: State[Any] = _state_of(outcome)

    def result(self) -> Any:
        """What the flow's function returned; raises what it raised."""
        error = self.outcome.exception()
        if isinstance(error, TerminationSignal):
            # Prefect's handler of the signal, which has raised this, is no longer in place.
            signal.raise_signal(error.signal)
        return self.outcome.result()


def ends_in_time(function: Callable[P, R]) -> Callable[P, R]:
    """Make a flow's function raise `UnreportedError` if the server stays away when it has ended.

    Only inside `has_caller`, where somebody waits for the result. Elsewhere, as in a deployment,
    Prefect's server is the only one who could be told, so Prefect tries for longer.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _end.set(end := _End())
        outcome: Future[R] = Future()
        hint = ""
        with quiet_outages():
            try:
                outcome.set_result(function(*args, **kwargs))
            except Exception as error:
                outcome.set_exception(error)
            except BaseException as error:  # a signal: do not wait
                outcome.set_exception(error)
                end.began = time.monotonic() - FINAL_WAIT_SECONDS
                hint = ": run it again with the same parameters to resume"
            if _has_caller.get() and not _answers_until_signal():
                get_run_logger().warning("%s does not know how this run ended%s", _server(), hint)
                raise UnreportedError(outcome)
        return outcome.result()

    return run


@contextmanager
def has_caller(value: bool = True) -> Iterator[None]:
    """Declare whether a flow that is run inside has a caller who waits for its result."""
    token = _has_caller.set(value)
    try:
        yield
    finally:
        _has_caller.reset(token)


@contextmanager
def bounded_exit() -> Iterator[None]:
    """For a process that ends after the run inside: let Prefect's threads not hold it up."""
    try:
        yield
    finally:
        end = _end.get() or _End(time.monotonic())
        services = _services()
        with quiet_outages():
            EventsWorker.drain_all(timeout=QUIET_SECONDS)  # asks all services to end
            if services := _running(services):
                seconds = max(end.began + EXIT_SECONDS - time.monotonic(), 0.0)
                _LOGGER.warning("sending what is left to %s: up to %.0f s", _server(), seconds)
                deadline = time.monotonic() + seconds
                while (services := _running(services)) and time.monotonic() < deadline:
                    time.sleep(0.1)
            if services:
                _LOGGER.warning("%s has not received all events and log lines", _server())
                _cancel(services)


def run_has_ended() -> None:
    """Declare that the current run has nothing to do any more but to report its end."""
    end = _current_end()
    end.began = end.began or time.monotonic()


def server_has_answered() -> None:
    """Declare that Prefect's server has just answered: it need not be asked whether it does."""
    _current_end().answered = time.monotonic()


def server_answers() -> bool:
    """Whether Prefect's server answers. Waits for it, but only once, and only when a run ends."""
    run_has_ended()
    end, is_first = _current_end(), True
    if end.gave_up or time.monotonic() - end.answered < CHECK_SECONDS:
        return not end.gave_up
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        while (problem := _problem()) is not None:
            if time.monotonic() >= end.began + FINAL_WAIT_SECONDS:
                end.gave_up = True
                return False
            if is_first:
                get_run_logger().warning(
                    "%s does not answer (%s): waiting, up to %.0f s",
                    _server(),
                    type(problem).__name__,
                    FINAL_WAIT_SECONDS,
                )
                is_first = False
            time.sleep(POLL_SECONDS)
    end.answered = time.monotonic()
    return True


def drop_unsent() -> None:
    """Let Prefect's threads drop the events and log lines that they cannot send."""
    _cancel(_services())


@contextmanager
def quiet_outages() -> Iterator[None]:
    """Replace what Prefect logs about each event that it cannot send by a line now and then.

    It loses no event by that: all are sent again when the server is back.
    """
    server, logged = _server(), -math.inf

    def shorten(record: logging.LogRecord) -> bool:
        nonlocal logged
        if not str(record.msg).startswith("Unable to connect"):
            return True
        is_due = time.monotonic() - logged >= LOG_SECONDS
        if is_due:
            logged = time.monotonic()
            record.msg = "%s does not answer: the run goes on, and reports its tasks when it does"
            record.args = (server,)
        return is_due

    def drop(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Service %r failed")

    filters = {"prefect.events.clients": shorten, "prefect._internal.concurrency": drop}
    for name, change in filters.items():
        get_logger(name).addFilter(change)
    try:
        yield
    finally:
        for name, change in filters.items():
            get_logger(name).removeFilter(change)


def _answers_until_signal() -> bool:
    """Like `server_answers`; a signal ends the wait and nothing else, as the run has ended."""
    try:
        return server_answers()
    except (KeyboardInterrupt, SystemExit, TerminationSignal):
        return False


def _current_end() -> _End:
    if (end := _end.get()) is None:
        _end.set(end := _End())
    return end


def _services() -> "list[asyncio.Task[None]]":
    """The running services of Prefect, such as those that send events and log lines."""
    services: dict[int, Any] = EventsWorker._instances  # type: ignore[misc] # of all of them
    return [service._task for service in list(services.values()) if service._task is not None]


def _running(services: "list[asyncio.Task[None]]") -> "list[asyncio.Task[None]]":
    return [service for service in services if not service.done()]


def _cancel(services: "list[asyncio.Task[None]]") -> None:
    deadline = time.monotonic() + CHECK_SECONDS
    # Once is not enough: closing the connection to a server that hangs takes long, too.
    while services and time.monotonic() < deadline:
        for service in services:
            service.get_loop().call_soon_threadsafe(service.cancel)
        time.sleep(0.1)
        services = _running(services)


def _problem() -> Exception | None:
    with get_client(httpx_settings={"timeout": CHECK_SECONDS}, sync_client=True) as client:
        return client.api_healthcheck()


def _server() -> str:
    url = PREFECT_API_URL.value()
    if is_temporary(url):
        return "the temporary Prefect server"
    return f"the Prefect server at {safe_url(url)}"


def _state_of(outcome: "Future[Any]") -> State[Any]:
    error = outcome.exception()
    if error is None:
        return Completed(data=outcome.result())
    kind = Failed if isinstance(error, Exception) else Crashed
    return kind(data=error, message=f"{type(error).__name__}: {error}")
