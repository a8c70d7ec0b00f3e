"""The body of an HTTP 200 as vLLM, and servers like it, write it: pure functions, no network.

Servers and gateways that speak OpenAI's protocol differ in where they put the text, the model's
reasoning and errors, and in their words for how a reply ended. Everything else sees one form.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from ..printable import printable
from ..types import Completion
from .scores import lowest_token

MAX_MESSAGE_CHARACTERS = 300
"""Longer error messages of a server are truncated."""

_MAX_NAME = 255
"""Characters kept of the model's name, and of an unknown finish reason."""

_PER_TOKEN = 64
_FREE_CHARACTERS = 64_000
"""A reply may have this many characters, and so many more for each token that was asked for: few
tokens are longer, and looking for pairs in a much longer text takes seconds."""

_NATURAL_ENDS = frozenset(
    {"stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "stop_token", "complete"}
)
_CUT_OFF = frozenset({"length", "max_tokens", "max_length", "model_length", "max_output_tokens"})

_NO_REASON = frozenset({"", "null", "none", "unknown", "finish_reason_unspecified"})

_STATUS_OF_WORD = {
    "overload": 503,
    "unavailable": 503,
    "rate_limit": 429,
    "ratelimit": 429,
    "too_many": 429,
    "quota": 429,
    "timeout": 504,
    "timed_out": 504,
    "bad_gateway": 502,
    "auth": 401,
    "api_key": 401,
    "permission": 403,
    "not_found": 404,
    "notfound": 404,
    "internal": 500,
    "server_error": 500,
    "invalid": 400,
    "badrequest": 400,
    "bad_request": 400,
    "context_length": 400,
}
"""HTTP statuses by parts of the words that servers use as the code or type of an error."""


class NoCompletionError(Exception):
    """A body that holds no chat completion; the message says what it holds.

    Attributes:
        status: of an error, the HTTP status with which it should have been sent.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def read_completion(
    data: bytes, latency: float, attempt: int, max_tokens: int | None = None, scored: str = ""
) -> Completion:
    """Read a chat completion.

    The finish reason becomes "stop" for every natural end and "length" for every reply that was
    cut off. A server that gives none is believed to have finished a reply that is shorter than it
    may be. A refusal of the model has the finish reason "refusal".

    Args:
        data: the body.
        latency: in seconds.
        attempt: counts from 1.
        max_tokens: the limit of the request, if it has one.
        scored: the text that the request scores, if that is what it does: then the completion's
            text is what `lowest_token` gives.

    Raises:
        NoCompletionError: it is something else.
    """
    reply = _json(data)
    choice = _choice(reply)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        kind = "a text completion" if isinstance(choice.get("text"), str) else "no message"
        raise NoCompletionError(f"the server's reply holds {kind}, not a chat completion")
    text, reasoning, refusal = _texts(message)
    length = len(text) + len(reasoning) + len(refusal)
    if max_tokens is not None and length > _FREE_CHARACTERS + max_tokens * _PER_TOKEN:
        raise NoCompletionError(
            f"the server's reply has {length:,} characters, more than {max_tokens} tokens can have"
        )
    usage = reply.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    completion_tokens = _tokens(usage.get("completion_tokens"))
    is_short = max_tokens is not None and 0 < completion_tokens < max_tokens
    finish_reason = _finish_reason(choice.get("finish_reason"), is_short=is_short)
    if refusal:
        finish_reason = "refusal"
    elif message.get("tool_calls") and not text:
        finish_reason = "tool_calls"
    model = reply.get("model")
    completion = Completion(
        text=text or refusal,
        finish_reason=finish_reason,
        prompt_tokens=_tokens(usage.get("prompt_tokens")),
        completion_tokens=completion_tokens,
        latency=latency,
        model=model[:_MAX_NAME] if isinstance(model, str) else "",
        attempts=attempt,
        reasoning=reasoning,
    )
    if not scored:
        return completion
    try:
        lowest = lowest_token(reply.get("prompt_logprobs"), scored)
    except ValueError as error:
        raise NoCompletionError(str(error), 400) from None
    return replace(completion, text=lowest, finish_reason="stop", reasoning="")


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        reply = orjson.loads(data)
    except ValueError:
        start = printable(data[: 8 * 60].decode("utf-8", "replace"), 60)
        if start.startswith("data:"):
            raise NoCompletionError(
                "the server streams its reply, although it was asked not to"
            ) from None
        raise NoCompletionError(
            f"the server's reply is not JSON, but {start!r}" if start else "the reply is empty"
        ) from None
    if not isinstance(reply, Mapping):
        raise NoCompletionError("the server's reply is not a chat completion")
    return reply


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    if reply.get("error") or (not choices and any(map(reply.get, _ERROR_FIELDS))):
        raise _error(reply)
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        what = "no choices" if not choices else "malformed choices"
        raise NoCompletionError(f"the server's reply has {what}: it is not a chat completion")
    choice: Mapping[str, Any] = choices[0]
    if choice.get("error"):  # of a gateway whose upstream failed midway
        raise _error(choice)
    return choice


_ERROR_FIELDS = ("message", "msg", "detail")
"""Where servers put the words of an error."""


def _error(reply: Mapping[str, Any]) -> NoCompletionError:
    error = reply.get("error")
    holder: Mapping[str, Any] = error if isinstance(error, Mapping) else reply
    words = [holder.get(name) for name in ("code", "status", "type")]
    status = next(filter(None, map(_status, words)), None)
    shown = f"HTTP 200 with error {status}" if status else "HTTP 200 with an error"
    return NoCompletionError(f"{shown}: {error_text(reply)}", status or 500)


def _status(word: object) -> int | None:
    """The HTTP status that the code or type of an error stands for."""
    if isinstance(word, str) and word.isdecimal():
        word = int(word[:9])
    if isinstance(word, int | float):
        return int(word) if 400 <= word < 600 else None
    if not isinstance(word, str):
        return None
    plain = word[:100].casefold().replace("-", "_").replace(" ", "_")
    return next((status for part, status in _STATUS_OF_WORD.items() if part in plain), None)


def error_text(reply: object) -> str:
    """The words of an error, on one line of bounded length."""
    error = reply.get("error") or reply if isinstance(reply, Mapping) else reply
    if isinstance(error, Mapping):
        error = next(filter(None, map(error.get, _ERROR_FIELDS)), error)
    try:
        return printable(str(error), MAX_MESSAGE_CHARACTERS)
    except RecursionError:
        return "an error that is nested too deeply"


def _texts(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a message answers, the reasoning before it, and a refusal to answer."""
    content = message.get("content")
    text, refusal = "", _first_text(message.get("refusal"))
    # vLLM and Ollama say `reasoning`; SGLang, DeepSeek and older versions of vLLM the other.
    reasoning = _first_text(message.get("reasoning"), message.get("reasoning_content"))
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        parts = [("reasoning", reasoning), ("refusal", refusal), *_parts(content)]
        text, reasoning, refusal = (
            "".join(part for part_kind, part in parts if part_kind == kind)
            for kind in ("text", "reasoning", "refusal")
        )
    elif content is not None:
        raise NoCompletionError("the server's reply has malformed text")
    if "content" not in message and "tool_calls" not in message and not reasoning + refusal:
        raise NoCompletionError("the server's reply has no text: it is not a chat completion")
    return text, reasoning, refusal


def _first_text(*values: object) -> str:
    return next((value for value in values if value and isinstance(value, str)), "")


_KINDS = {"thinking": "reasoning", "reasoning": "reasoning", "refusal": "refusal"}


def _parts(content: list[Any]) -> Iterator[tuple[str, str]]:
    """What each part of a message is for, and its text; parts that are no text are left out."""
    for part in content:
        if isinstance(part, str):
            yield "text", part
            continue
        if not isinstance(part, Mapping):
            raise NoCompletionError("the server's reply has malformed parts of text")
        name = part.get("type")
        value = part.get("text", part.get(name) if isinstance(name, str) else None)
        if isinstance(value, list):  # Mistral: {"type": "thinking", "thinking": [{"text": ...}]}
            inner = (item.get("text") for item in value if isinstance(item, Mapping))
            value = "".join(text for text in inner if isinstance(text, str))
        if isinstance(value, str):
            yield _KINDS.get(str(name), "text"), value


def _finish_reason(given: object, *, is_short: bool) -> str:
    if isinstance(given, Mapping):  # SGLang's own form
        given = given.get("type")
    word = given if isinstance(given, str) else ""
    plain = word.strip().casefold()
    if plain in _NATURAL_ENDS or (plain in _NO_REASON and is_short):
        return "stop"
    if plain in _CUT_OFF:
        return "length"
    return "" if plain in _NO_REASON else word[:_MAX_NAME]


def _tokens(count: object) -> int:
    """The token count, or 0 if it is implausible."""
    return count if isinstance(count, int) and 0 <= count < 1 << 40 else 0
