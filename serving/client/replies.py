"""What a server's reply, or its silence, means: pure decisions, no network."""

from typing import TypeGuard

import aiohttp
import orjson

from ..types import Completion, Failure, FailureKind, Outcome

MAX_MESSAGE = 300
"""Characters of a server's error message that are kept."""

ATTEMPTS = {
    FailureKind.CONNECTION: 4,
    FailureKind.UNAVAILABLE: 5,
    # vLLM answers some bad images with 500, for ever: try a few times, then blame the row.
    FailureKind.SERVER_ERROR: 3,
    FailureKind.TIMEOUT: 2,  # each may take minutes
}
"""Requests sent at most per failure kind; a kind that is not listed cannot pass by asking again."""

MAX_DISCONNECTS = 2
"""Times a request may be with a server as it goes away; it may be what kills the server."""

GATEWAY_STATUSES = {502, *range(520, 524)}
"""A gateway's words for a dead server behind it, or for one that it could not understand."""


def may_pass(outcome: Outcome) -> TypeGuard[Failure]:
    """Whether to send the request again now."""
    return (
        isinstance(outcome, Failure)
        and outcome.attempts < ATTEMPTS.get(outcome.kind, 1)
        and outcome.cuts < MAX_DISCONNECTS
    )


def read_reply(status: int, data: bytes, latency: float, attempt: int) -> Outcome:
    """Turn an HTTP reply into an outcome."""
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
    """A plausible token count; anything else counts as none."""
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
    kind: FailureKind, message: str, attempt: int, status: int | None = None, cuts: int = 0
) -> Failure:
    """A failure whose kind says whether asking again later may help."""
    return Failure(kind, message, status, kind in ATTEMPTS, attempt, cuts)


def _error_message(data: bytes) -> str:
    """The server's own words, in one bounded line."""
    try:
        reply = orjson.loads(data)
        error = reply.get("error", reply)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = data[: 4 * MAX_MESSAGE].decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_MESSAGE] or "no message"


def is_disconnect(error: BaseException) -> bool:
    """Whether a connection was lost after the request had been sent on it.

    What cannot be told apart counts as a cut: a server that dies while the last of a request is
    still under way to it, and an idle connection that the server closes just as it is used again
    (no connection is used again after the time at which servers do that, see `transport`).
    """
    if isinstance(error.__cause__, aiohttp.ClientConnectionResetError):
        return False  # lost before all of the request was written
    lost = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
    return isinstance(error, lost) and not isinstance(error, aiohttp.ClientConnectorError)


def reason(error: BaseException) -> str:
    """Name what went wrong on the wire, without the URL that may carry a password."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return str(error.os_error.strerror or error.os_error)
    return type(error).__name__
