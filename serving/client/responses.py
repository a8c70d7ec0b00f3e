"""Turns HTTP replies and connection errors into outcomes: pure functions, no network."""

import aiohttp
import orjson

from ..types import Completion, Failure, FailureKind, Outcome
from .retry_policy import MAX_ATTEMPTS

MAX_MESSAGE_CHARACTERS = 300
"""Longer error messages of a server are truncated."""


GATEWAY_STATUSES = {502, *range(520, 524)}
"""A gateway's statuses for a server that is down or sent an invalid response."""


def read_reply(status: int, data: bytes, latency: float, attempt: int) -> Outcome:
    """Turn an HTTP reply into an outcome; `latency` is in seconds, `attempt` counts from 1."""
    if status != 200:
        return failure(
            _kind_of_status(status), f"HTTP {status}: {_error_message(data)}", attempt, status
        )
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
        return failure(
            FailureKind.BAD_REPLY, "the server's reply is not a chat completion", attempt, status
        )


def _tokens(count: object) -> int:
    """The token count, or 0 if it is implausible."""
    return count if isinstance(count, int) and 0 <= count < 1 << 40 else 0


def _kind_of_status(status: int) -> FailureKind:
    if status in {401, 403}:
        return FailureKind.AUTH
    if status == 404:
        return FailureKind.NOT_FOUND
    if status in {408, 429, 503, *GATEWAY_STATUSES}:
        return FailureKind.UNAVAILABLE
    if status in {504, 524}:
        return FailureKind.TIMEOUT
    if status >= 500:
        return FailureKind.SERVER_ERROR
    return FailureKind.BAD_REQUEST if status >= 400 else FailureKind.BAD_REPLY


def failure(
    kind: FailureKind, message: str, attempt: int, status: int | None = None, disconnects: int = 0
) -> Failure:
    """A failure whose `retryable` follows from its kind."""
    return Failure(kind, message, status, kind in MAX_ATTEMPTS, attempt, disconnects)


def _error_message(data: bytes) -> str:
    """The server's error message, as one line of bounded length."""
    try:
        reply = orjson.loads(data)
        error = reply.get("error", reply)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = data[: 4 * MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_MESSAGE_CHARACTERS] or "no message"


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
        return str(error.os_error.strerror or error.os_error)
    return type(error).__name__
