"""What the chat client takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Message = dict[str, Any]
"""One chat message in the OpenAI form: `role` and `content` (text, or a list of parts)."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to the model.

    Attributes:
        messages: the conversation, images as `image_url` parts with data URIs.
        options: everything else of the request body (temperature, max_tokens, ...).
    """

    messages: list[Message]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """One raw model reply.

    Attributes:
        text: the reply as it came.
        finish_reason: why the model stopped: "stop", "length", ...
        prompt_tokens: tokens read, images included.
        completion_tokens: tokens written.
        latency: seconds from the first attempt's send to the whole reply.
        model: the name the server answered under.
        attempts: how many requests it took, at least 1.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency: float
    model: str
    attempts: int = 1


class FailureKind(StrEnum):
    """Why a request got no completion."""

    CONNECTION = "connection"
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    SERVER_ERROR = "server_error"
    AUTH = "auth"
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    BAD_REPLY = "bad_reply"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no completion.

    Attributes:
        kind: what happened.
        message: one line, without secrets.
        status: the HTTP status, where there was one.
        retryable: whether the same request may pass later.
        attempts: how many requests were sent; 0 where it could not be sent at all.
        cuts: during how many of these attempts the server went away: the connection was lost
            while the reply was awaited, or a 5xx was the last word of a dying server. A server
            that could not be reached, or did not answer in time, does not count.
    """

    kind: FailureKind
    message: str
    status: int | None = None
    retryable: bool = False
    attempts: int = 1
    cuts: int = 0


Outcome = Completion | Failure
