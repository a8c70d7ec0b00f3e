"""Turns HTTP replies and connection errors into outcomes: pure functions, no network."""

import logging
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import orjson

from ..printable import printable, printable_traceback
from ..types import Failure, FailureKind, Outcome
from .bodies import BodyError
from .envelope import MAX_MESSAGE_CHARACTERS, NoCompletionError, error_text, read_completion

_LOGGER = logging.getLogger(__name__)

_GATEWAY_STATUSES = {502, *range(520, 524)}
"""A gateway's statuses for a server that is down, or closed the connection."""


def read_reply(
    status: int,
    data: bytes,
    latency: float,
    attempt: int,
    retry_after: str = "",
    max_tokens: int | None = None,
    scored: str = "",
) -> Outcome:
    """Turn an HTTP reply into an outcome.

    Args:
        status: the HTTP status.
        data: the body.
        latency: in seconds.
        attempt: counts from 1.
        retry_after: the header of that name.
        max_tokens: the limit of the request, if it has one.
        scored: the text that the request scores, if that is what it does.
    """
    wait = retry_after_seconds(retry_after)
    if status == 200:
        try:
            return read_completion(data, latency, attempt, max_tokens, scored)
        except NoCompletionError as error:
            # A gateway may answer 200 and put the error that it got itself into the body.
            kind = FailureKind.BAD_REPLY if error.status is None else _kind(error.status, wait)
            return Failure(kind, str(error), status, attempt, wait)
        except Exception as error:  # a reply that nobody thought of must not cost the run
            _LOGGER.warning("a reply cannot be read: %s", printable_traceback(error))
            what = f"the server's reply cannot be read ({type(error).__name__})"
            return Failure(FailureKind.BAD_REPLY, what, status, attempt, wait)
    message = f"HTTP {status}: {_error_message(data)}"
    return Failure(_kind(status, wait), message, status, attempt, wait)


def _kind(status: int, wait: float) -> FailureKind:
    """The kind of failure that an HTTP status means, from a server that asks to wait so long."""
    kind = _kind_of_status(status)
    return FailureKind.RATE_LIMITED if status == 503 and wait else kind


def _kind_of_status(status: int) -> FailureKind:
    if status in {401, 403}:
        return FailureKind.AUTH
    if status == 404:
        return FailureKind.NOT_FOUND
    if status == 429:
        return FailureKind.RATE_LIMITED
    if status in _GATEWAY_STATUSES:
        return FailureKind.DISCONNECTED
    if status == 503:
        return FailureKind.UNAVAILABLE
    if status in {408, 504, 524}:
        return FailureKind.TIMEOUT
    if status >= 500:
        return FailureKind.SERVER_ERROR
    return FailureKind.BAD_REQUEST if status >= 400 else FailureKind.BAD_REPLY


def retry_after_seconds(value: str) -> float:
    """Seconds requested by a `Retry-After` header, which holds a number or a date; 0 for none."""
    if not value or value.isdecimal():
        return float(value[:9] or 0)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _error_message(data: bytes) -> str:
    """The server's error message, as one line of bounded length."""
    try:
        text = error_text(orjson.loads(data))
    except ValueError:
        start = data[: 4 * MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace")
        text = printable(start, MAX_MESSAGE_CHARACTERS)
    return text or "no message"


def kind_of_error(error: BaseException) -> FailureKind:
    """The kind of failure that an error of the HTTP client is."""
    if isinstance(error, aiohttp.ClientResponseError | BodyError):  # not HTTP, or a broken head
        return FailureKind.BAD_REPLY
    return FailureKind.DISCONNECTED if is_disconnect(error) else FailureKind.CONNECTION


def is_disconnect(error: BaseException) -> bool:
    """Whether a connection was lost after the request had been sent on it.

    Two cases that cannot be distinguished count as disconnects too: a server that dies before the
    end of a request has reached it, and a server that closes an idle connection just as it is
    reused (the client stops reusing connections before servers do that, see `transport`).
    """
    if isinstance(error.__cause__, aiohttp.ClientConnectionResetError):
        return False  # lost before all of the request was written
    lost = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
    return isinstance(error, lost) and not isinstance(error, aiohttp.ClientConnectorError)


def reason(error: BaseException) -> str:
    """A short description of a connection error, without the URL, which may contain a password."""
    if isinstance(error, aiohttp.ClientConnectorError):
        text = error.os_error.strerror or str(error.os_error)
        if text.startswith("Connect call failed"):  # asyncio's, with the address once more
            text = os.strerror(error.os_error.errno or 0)
        return text.lower()
    if isinstance(error, BodyError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its reply is not HTTP"
    return type(error).__name__
