"""Turns HTTP replies and connection errors into outcomes: pure functions, no network."""

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import orjson

from ..types import Completion, Failure, FailureKind, Outcome

MAX_MESSAGE_CHARACTERS = 300
"""Longer error messages of a server are truncated."""

_GATEWAY_STATUSES = {502, *range(520, 524)}
"""A gateway's statuses for a server that is down, or closed the connection."""


def read_reply(
    status: int, data: bytes, latency: float, attempt: int, retry_after: str = ""
) -> Outcome:
    """Turn an HTTP reply into an outcome.

    Args:
        status: the HTTP status.
        data: the body.
        latency: in seconds.
        attempt: counts from 1.
        retry_after: the header of that name.
    """
    if status != 200:
        wait = retry_after_seconds(retry_after)
        kind = _kind_of_status(status)
        if status == 503 and wait:
            kind = FailureKind.RATE_LIMITED
        return Failure(kind, f"HTTP {status}: {_error_message(data)}", status, attempt, wait)
    try:
        reply = orjson.loads(data)
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
        usage = reply.get("usage") or {}
        return Completion(
            text=text,
            finish_reason=str(choice["finish_reason"] or ""),
            prompt_tokens=_tokens(usage.get("prompt_tokens")),
            completion_tokens=_tokens(usage.get("completion_tokens")),
            latency=latency,
            model=str(reply.get("model", "")),
            attempts=attempt,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        message = "the server's reply is not a chat completion"
        return Failure(FailureKind.BAD_REPLY, message, status, attempt)


def _tokens(count: object) -> int:
    """The token count, or 0 if it is implausible."""
    return count if isinstance(count, int) and 0 <= count < 1 << 40 else 0


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
    if value.isdecimal():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _error_message(data: bytes) -> str:
    """The server's error message, as one line of bounded length."""
    try:
        reply = orjson.loads(data)
        error = reply.get("error", reply)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = data[: 4 * MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_MESSAGE_CHARACTERS] or "no message"


def kind_of_error(error: BaseException) -> FailureKind:
    """The kind of failure that an error of the HTTP client is."""
    if isinstance(error, aiohttp.ClientResponseError):  # not HTTP, or a broken head
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
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its reply is not HTTP"
    return type(error).__name__
