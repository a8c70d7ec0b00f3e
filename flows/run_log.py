"""How the log of a run reads: it says how the run ended in one sentence, where Prefect has many.

Whatever others wrote into a name or a message reaches neither terminal nor log as it is.

What is left out here is in the states of the task runs in Prefect's UI, and logged at debug level.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_logger
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.logging.loggers import LoggingAdapter

from ..serving.printable import printable, printable_lines, printable_traceback
from ..tasks.errors import ImageQAError
from .shared_block import shared_block

Shorten = Callable[[logging.LogRecord], None]

_STOPPED = {
    "Flow run was cancelled.": "cancelled",
    "Crash detected! Execution was aborted by an interrupt signal.": "interrupted",
    "Crash detected! Execution was aborted by a termination signal.": "terminated",
    "Crash detected! Execution was aborted by Python system exit call.": "terminated",
}
"""What Prefect logs when a run is stopped from outside."""

_TASK_FAILURES = (
    "Finished in state",
    "Failed to write result",  # it tries to store the error as the result of a cached task
)
"""What else Prefect logs when a task run fails."""

HAS_LINES = "has_lines"
"""Attribute of a record that may have several lines, such as the end of a server's log."""

IS_RESULT = "is_result"
"""Attribute of a record that a terminal shows, although it is no warning: what was asked for."""

_PACKAGE = logging.getLogger("prefect_imageqa")

_said: "WeakSet[BaseException]" = WeakSet()
"""Errors that have been logged: Prefect logs the same one at several levels of its engine."""


def shorten_log(flow: str) -> None:
    """Shorten the log of all runs of a flow, given by its name."""
    for name, shorten in _SHORTEN.items():
        get_logger(name).addFilter(partial(_if_own, flow, shorten))


@contextmanager
def error_is_printed(flow: Flow[..., Any]) -> Iterator[None]:
    """Keep the error that ends a run off the console, because the caller prints it.

    The log in Prefect's UI has it in any case.
    """
    handlers = [
        one for one in logging.getLogger().handlers if isinstance(one, PrefectConsoleHandler)
    ]
    if flow.retries:  # it may not be the end
        handlers = []
    for handler in handlers:
        handler.addFilter(_is_not_last)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_not_last)


@contextmanager
def forward_logs(target: "logging.Logger | LoggingAdapter") -> Iterator[None]:
    """Show in a run's log what the client, the server and the stores say: waits, restarts."""
    handler = _ForwardingHandler(target)
    with _forwarded_only():
        _PACKAGE.addHandler(handler)
        try:
            yield
        finally:
            _PACKAGE.removeHandler(handler)


@shared_block
@contextmanager
def _forwarded_only() -> Iterator[None]:
    """Keep what the package says out of other logs, where it would be seen twice."""
    level, propagate = _PACKAGE.level, _PACKAGE.propagate
    _PACKAGE.setLevel(logging.INFO)
    _PACKAGE.propagate = False
    try:
        yield
    finally:
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = propagate


class _ForwardingHandler(logging.Handler):
    """Passes the records of one logger to another."""

    def __init__(self, target: "logging.Logger | LoggingAdapter") -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.log(record.levelno, record.getMessage(), extra={HAS_LINES: True})


def _is_not_last(record: logging.LogRecord) -> bool:
    return not getattr(record, "is_printed_by_caller", False)


def _if_own(flow: str, shorten: Shorten, record: logging.LogRecord) -> bool:
    # The process of a worker runs a single flow, and its records do not name it.
    if getattr(record, "flow_name", flow) in (flow, "<unknown>"):
        error = _user_error(record)
        shorten(record)
        if error is None:  # whose message is printable
            _make_printable(record)
    return logging.getLogger(record.name).isEnabledFor(record.levelno)


def _make_printable(record: logging.LogRecord) -> None:
    """Names and messages of others are in the log: no terminal may act on what they contain."""
    text = record.getMessage()
    has_lines = getattr(record, HAS_LINES, False)
    record.msg, record.args = printable_lines(text) if has_lines else printable(text), ()
    if record.exc_info and record.exc_info[1]:  # the formatter takes this text, if there is one
        record.exc_text = printable_traceback(record.exc_info[1])


def _shorten_run(record: logging.LogRecord) -> None:
    """Log of a flow run, or of Prefect's engine."""
    error, message = _user_error(record), record.getMessage()
    if message in _STOPPED:
        _set_level(record, logging.WARNING)
        record.msg = f"{_STOPPED[message]}: run it again with the same parameters to resume"
        record.is_printed_by_caller = _STOPPED[message] == "interrupted"
    elif error is not None:
        if error in _said:
            _set_level(record, logging.DEBUG)
        _said.add(error)
        record.msg, record.args, record.exc_info = str(error), (), None
        record.is_printed_by_caller = True
    elif ended := re.match(r"Finished in state (?!Completed)(\w+)", message):
        record.msg, record.args = ended[0], ()
        if ended[1] == "Running":  # cancelled, which another process reports to the server
            _set_level(record, logging.DEBUG)


def _shorten_task(record: logging.LogRecord) -> None:
    """Log of a task run: its flow run logs the error, and a signal stops all tasks."""
    error, message = _user_error(record), record.getMessage()
    if error is not None:
        record.msg, record.args, record.exc_info = str(error), (), None
    is_failure = record.levelno > logging.INFO and message.startswith(_TASK_FAILURES)
    if error is not None or is_failure or message in _STOPPED:
        _set_level(record, logging.DEBUG)


def _user_error(record: logging.LogRecord) -> BaseException | None:
    error = record.exc_info[1] if record.exc_info else None
    return error if isinstance(error, ImageQAError | ParameterTypeError) else None


def _set_level(record: logging.LogRecord, level: int) -> None:
    record.levelno, record.levelname = level, logging.getLevelName(level)


_SHORTEN: dict[str, Shorten] = {
    "flow_runs": _shorten_run,
    "engine": _shorten_run,
    "task_runs": _shorten_task,
}
