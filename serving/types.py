"""The chat client's requests and outcomes, and what restarts its server."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import orjson
import pybase64

Message = dict[str, Any]
"""One chat message in the OpenAI form: `role` and `content` (text, or a list of parts)."""


class DataURI:
    """An image in a message, where its URL belongs.

    Args:
        mime: its type.
        data: its bytes.
    """

    __slots__ = ("data", "mime")

    def __init__(self, mime: str, data: bytes) -> None:
        self.mime = mime
        self.data = data


_GAP = orjson.Fragment(b"\0")
"""Stands for an image until the rest is JSON, in which this byte does not occur otherwise."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request to the model.

    Attributes:
        messages: the conversation, images as `image_url` parts whose URL is a string or `DataURI`.
        options: everything else of the request body (temperature, max_tokens, ...).
    """

    messages: list[Message]
    options: Mapping[str, Any]

    def body(self, model: str) -> bytes:
        """The request as JSON, into which the data of images is copied only once.

        Args:
            model: the name it is served under.

        Raises:
            TypeError: it is not JSON.
        """
        images: list[DataURI] = []

        def gap(value: object) -> orjson.Fragment:
            if not isinstance(value, DataURI):
                raise TypeError
            images.append(value)
            return _GAP

        body = {"model": model, "messages": self.messages, **self.options}
        first, *others = orjson.dumps(body, default=gap).split(b"\0")
        pieces = [first]
        for image, text in zip(images, others, strict=True):
            # Neither base64 nor the type has a character that JSON would escape.
            head = f'"data:{image.mime};base64,'.encode()
            pieces += head, pybase64.b64encode(image.data), b'"', text
        return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class Completion:
    """One raw model reply.

    Attributes:
        text: the unmodified reply; of a request that scores a given text, its least probable token
            and that one's log-probability, as JSON (`client.scores`).
        finish_reason: "stop" if the model ended its reply, "length" if it was cut off; anything
            else is the server's word, or "" if it gave none.
        prompt_tokens: tokens read, images included.
        completion_tokens: tokens generated.
        latency: seconds from sending the first attempt to receiving the complete reply.
        model: the model name in the server's reply.
        attempts: how many requests it took; 0 for what was known without one.
        reasoning: the model's reasoning, if the server keeps it apart from the reply.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency: float
    model: str
    attempts: int = 1
    reasoning: str = ""


class FailureKind(StrEnum):
    """Why a request got no completion."""

    CONNECTION = "connection"
    """The server could not be reached."""
    DISCONNECTED = "disconnected"
    """The connection was lost after the request was sent, at the server or behind a gateway."""
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    SERVER_ERROR = "server_error"
    BAD_REPLY = "bad_reply"
    """HTTP 200, but no chat completion."""
    AUTH = "auth"
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    CRASH = "crash"
    """The server was lost each time while it worked on the request."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no completion.

    Attributes:
        kind: what happened.
        message: one line, without secrets.
        status: the HTTP status, if there was one.
        attempts: how many times it was tried; 0 if it could not be encoded as JSON.
        retry_after: seconds that the server asks to wait before the next request.
    """

    kind: FailureKind
    message: str
    status: int | None = None
    attempts: int = 1
    retry_after: float = 0.0


Outcome = Completion | Failure


class Recovery(Protocol):
    """Restarts a server that the client's owner has started; see `serving.server.Recovery`."""

    def recover(self, reason: str = "", *, expected: bool = False) -> None:
        """Return when the server is healthy; with a reason, restart it in any case."""

    def processor_seconds(self) -> float:
        """Processor time that the server's engines have used since they were started."""

    def recycling_reason(self) -> str:
        """Why the server should be restarted once it is idle; empty if it need not be."""

    @property
    def progress(self) -> str:
        """What a restart in progress is doing; empty if there is none."""
