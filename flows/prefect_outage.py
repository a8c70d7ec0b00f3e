"""Prefect's server is away: the run goes on without it, and ends in time.

On its own, Prefect ends minutes later: it retries each request for more than a minute, and each
event that is still to be sent for 7 seconds.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
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

FINAL_WAIT_SECONDS = 45.0
"""How long a finished run waits for the server, which must be told how it ended.

Long enough for a restart of the server; the command ends within 60 s after its exports.
"""

CHECK_SECONDS = 5.0
"""How long the server may take to answer a check."""

POLL_SECONDS = 1.0

LOG_SECONDS = 60.0
"""How often an outage that goes on is logged."""

P = ParamSpec("P")
R = TypeVar("R")

_has_caller: ContextVar[bool] = ContextVar("_has_caller", default=False)
_gave_up: ContextVar[bool] = ContextVar("_gave_up", default=False)


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
        _gave_up.set(False)
        outcome: Future[R] = Future()
        spent = 0.0  # of the time to wait
        with quiet_outages():
            try:
                outcome.set_result(function(*args, **kwargs))
            except Exception as error:
                outcome.set_exception(error)
            except BaseException as error:  # a signal: do not wait
                outcome.set_exception(error)
                spent = FINAL_WAIT_SECONDS
            if _has_caller.get() and not _answers_until_signal(time.monotonic() - spent):
                is_stopped = spent > 0.0
                hint = ": run it again with the same parameters to resume" if is_stopped else ""
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


def server_answers(ended: float) -> bool:
    """Whether Prefect's server answers. Waits for it, but only once in a run.

    Args:
        ended: since when the run has nothing else to do, by `time.monotonic()`.
    """
    if _gave_up.get():
        return False
    deadline = ended + FINAL_WAIT_SECONDS
    is_first = True
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        while (problem := _problem()) is not None:
            if time.monotonic() >= deadline:
                _gave_up.set(True)
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
    return True


def drop_unsent() -> None:
    """Let Prefect's threads drop the events and log lines that they cannot send."""
    # All services of Prefect, such as the one for log lines, share this dict.
    services: dict[int, Any] = EventsWorker._instances  # type: ignore[misc]
    running = [service._task for service in list(services.values()) if service._task is not None]
    deadline = time.monotonic() + CHECK_SECONDS
    # Once is not enough: closing the connection to a server that hangs takes long, too.
    while running and time.monotonic() < deadline:
        for task in running:
            task.get_loop().call_soon_threadsafe(task.cancel)
        time.sleep(0.1)
        running = [task for task in running if not task.done()]


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


def _answers_until_signal(ended: float) -> bool:
    """Like `server_answers`; a signal ends the wait and nothing else, as the run has ended."""
    try:
        return server_answers(ended)
    except (KeyboardInterrupt, SystemExit, TerminationSignal):
        return False


def _problem() -> Exception | None:
    with get_client(httpx_settings={"timeout": CHECK_SECONDS}, sync_client=True) as client:
        return client.api_healthcheck()


def _server() -> str:
    url = PREFECT_API_URL.value()
    return f"the Prefect server at {safe_url(url)}" if url else "the temporary Prefect server"


def _state_of(outcome: "Future[Any]") -> State[Any]:
    error = outcome.exception()
    if error is None:
        return Completed(data=outcome.result())
    kind = Failed if isinstance(error, Exception) else Crashed
    return kind(data=error, message=f"{type(error).__name__}: {error}")
