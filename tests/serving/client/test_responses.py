"""HTTP replies and connection errors as outcomes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
from prefect_imageqa.serving.client import responses
from prefect_imageqa.serving.client.envelope import MAX_MESSAGE_CHARACTERS
from prefect_imageqa.serving.client.responses import (
    is_disconnect,
    read_reply,
    retry_after_seconds,
)
from prefect_imageqa.serving.types import Completion, Failure, FailureKind


def reply_with(message: Any, finish_reason: Any = "stop", **fields: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps({"model": "m", "choices": [choice]} | fields).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is empty"),
        ("null", "not a chat completion"),
        ("[]", "not a chat completion"),
        ("{}", "no choices"),
        ('{"choices": []}', "no choices"),
        ('{"choices": null}', "no choices"),
        ('{"choices": {"a": 1}}', "malformed choices"),
        ('{"choices": [{"text": "a", "finish_reason": "stop"}]}', "a text completion"),
        ('{"choices": [{"message": {}, "finish_reason": "stop"}]}', "no text"),
        ('{"choices": [{"message": null, "finish_reason": "stop"}]}', "no message"),
        ('{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}', "malformed text"),
        (
            '{"choices": [{"message": {"content": [5]}, "finish_reason": "stop"}]}',
            "malformed parts",
        ),
        ("<html>\n<b>Sign in</b>", "not JSON, but '<html> <b>Sign in</b>'"),
        ('data: {"choices": []}', "streams its reply"),
        ('{"a":' * 10_000, "not JSON"),
    ],
)
def test_a_reply_other_than_a_chat_completion_says_what_it_is(body: str, message: str) -> None:
    outcome = read_reply(200, body.encode(), 0.5, 2)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.attempts) == (FailureKind.BAD_REPLY, 200, 2)
    assert message in outcome.message
    assert "\n" not in outcome.message


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "a"}, "a", ""),
        ({"content": "a", "reasoning_content": "b"}, "a", "b"),
        ({"content": "a", "reasoning": "b", "reasoning_content": None}, "a", "b"),
        ({"content": None, "reasoning_content": "b"}, "", "b"),
        ({"reasoning": "b"}, "", "b"),
        ({"content": ["a", {"type": "text", "text": "b"}]}, "ab", ""),
        ({"content": [{"text": "a"}, {"type": "output_text", "text": "b"}]}, "ab", ""),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}, {"text": "a"}]}, "a", ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "b"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
            "b",
        ),
        ({"content": []}, "", ""),
        ({"content": None}, "", ""),
    ],
)
def test_text_and_reasoning_of_every_kind_of_message(
    message: dict[str, Any], text: str, reasoning: str
) -> None:
    outcome = read_reply(200, reply_with(message), 0.5, 1)
    assert outcome == Completion(text, "stop", 0, 0, 0.5, "m", reasoning=reasoning)


@pytest.mark.parametrize(
    ("given", "completion_tokens", "finish_reason"),
    [
        ("stop", 0, "stop"),
        ("STOP", 0, "stop"),
        ("eos", 0, "stop"),
        ("eos_token", 0, "stop"),
        ("end_turn", 0, "stop"),
        ("stop_sequence", 0, "stop"),
        ("COMPLETE", 0, "stop"),
        ({"type": "stop", "matched": 2}, 0, "stop"),
        ("length", 3, "length"),
        ("MAX_TOKENS", 3, "length"),
        ("model_length", 3, "length"),
        ({"type": "length", "length": 8}, 0, "length"),
        ("content_filter", 3, "content_filter"),
        ("repetition", 3, "repetition"),
        ("tool_calls", 3, "tool_calls"),
        ("abort", 3, "abort"),
        ("SAFETY", 3, "SAFETY"),
        # without a reason, a reply is complete if it is shorter than it might have been
        (None, 7, "stop"),
        ("", 7, "stop"),
        (None, 8, ""),
        (None, 0, ""),
        (5, 8, ""),
        ("", 9, ""),
    ],
)
def test_finish_reasons_of_all_servers_have_one_form(
    given: object, completion_tokens: int, finish_reason: str
) -> None:
    usage = {"completion_tokens": completion_tokens}
    body = reply_with({"content": "a"}, given, usage=usage)
    outcome = read_reply(200, body, 0.5, 1, max_tokens=8)
    assert isinstance(outcome, Completion)
    assert outcome.finish_reason == finish_reason


def test_without_a_limit_a_reply_without_finish_reason_may_be_cut_off() -> None:
    body = reply_with({"content": "a"}, None, usage={"completion_tokens": 3})
    outcome = read_reply(200, body, 0.5, 1)
    assert isinstance(outcome, Completion)
    assert outcome.finish_reason == ""


@pytest.mark.parametrize(
    ("message", "text", "finish_reason"),
    [
        ({"content": None, "refusal": "I cannot."}, "I cannot.", "refusal"),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}]}, "I cannot.", "refusal"),
        ({"content": "a", "refusal": None}, "a", "stop"),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "", "tool_calls"),
        ({"tool_calls": [{"id": "1"}]}, "", "tool_calls"),
        ({"content": "a", "tool_calls": []}, "a", "stop"),
    ],
)
def test_a_refusal_or_a_tool_call_is_no_natural_end(
    message: dict[str, Any], text: str, finish_reason: str
) -> None:
    outcome = read_reply(200, reply_with(message), 0.5, 1)
    assert isinstance(outcome, Completion)
    assert (outcome.text, outcome.finish_reason) == (text, finish_reason)


@pytest.mark.parametrize("usage", [None, "few", {"completion_tokens": -1, "prompt_tokens": "x"}])
def test_implausible_usage_counts_as_none(usage: object) -> None:
    outcome = read_reply(200, reply_with({"content": "a"}, usage=usage, model=5), 0.5, 1)
    assert outcome == Completion("a", "stop", 0, 0, 0.5, "")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "busy", "code": 502}, FailureKind.DISCONNECTED),
        ({"message": "busy", "code": "503"}, FailureKind.UNAVAILABLE),
        ({"message": "busy", "code": 504.0}, FailureKind.TIMEOUT),
        ({"message": "busy", "type": "overloaded_error"}, FailureKind.UNAVAILABLE),
        ({"message": "busy", "code": "rate_limit_exceeded"}, FailureKind.RATE_LIMITED),
        ({"message": "busy", "code": "invalid_api_key"}, FailureKind.AUTH),
        ({"message": "busy", "type": "NotFoundError"}, FailureKind.NOT_FOUND),
        ({"message": "busy", "type": "invalid_request_error"}, FailureKind.BAD_REQUEST),
        ({"message": "busy", "type": "BadRequestError", "code": None}, FailureKind.BAD_REQUEST),
        ({"message": "busy", "type": "Internal Server Error"}, FailureKind.SERVER_ERROR),
        ({"message": "busy", "code": 200}, FailureKind.SERVER_ERROR),
        ({"message": "busy"}, FailureKind.SERVER_ERROR),
        ("busy", FailureKind.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        lambda error: {"error": error},
        lambda error: {"error": error, "choices": []},
        lambda error: {"choices": [{"error": error, "message": {"content": "half"}}]},
    ],
    ids=["alone", "without choices", "within a choice"],
)
def test_an_error_sent_with_http_200_is_what_its_code_says(
    error: Any, kind: FailureKind, place: Callable[[Any], Any]
) -> None:
    outcome = read_reply(200, json.dumps(place(error)).encode(), 0.5, 1)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status) == (kind, 200)
    assert outcome.message.startswith("HTTP 200 with")
    assert outcome.message.endswith(": busy")


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": "busy", "code": 502},
        {"code": 502, "msg": "busy"},
        {"status": 502, "detail": "busy"},
    ],
)
def test_an_error_without_an_object_of_its_own(body: dict[str, Any]) -> None:
    outcome = read_reply(200, json.dumps(body).encode(), 0.5, 1)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.DISCONNECTED
    assert outcome.message == "HTTP 200 with error 502: busy"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"status": False}, "with an error"),
        ({"status": True}, "with an error"),
        ({"code": 1e20}, "with an error"),
        ({"code": -1}, "with an error"),
        ({"code": [503]}, "with an error"),
        ({"code": 503.0, "status": False}, "with error 503"),
        ({"code": "9" * 5000}, "with an error"),
    ],
    ids=["false", "true", "huge", "negative", "list", "float", "digits"],
)
def test_the_code_of_an_error_may_be_anything(fields: dict[str, Any], shown: str) -> None:
    for body in (
        {"error": "content policy"} | fields,
        {"error": {"message": "content policy"} | fields},
    ):
        outcome = read_reply(200, json.dumps(body).encode(), 0.5, 1)
        assert isinstance(outcome, Failure)
        assert outcome.message == f"HTTP 200 {shown}: content policy"


@pytest.mark.parametrize("status", [200, 500])
def test_an_error_may_be_nested_deeply(status: int) -> None:
    outcome = read_reply(status, b'{"error":' + b"[" * 1000 + b"]" * 1000 + b"}", 0.5, 1)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.SERVER_ERROR
    assert outcome.message.endswith(": an error that is nested too deeply")


def test_a_reply_that_cannot_be_read_for_an_unknown_reason_costs_its_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(responses, "read_completion", fail)
    outcome = read_reply(200, reply_with({"content": "a"}), 0.5, 2)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.attempts) == (FailureKind.BAD_REPLY, 200, 2)
    assert outcome.message == "the server's reply cannot be read (KeyError)"
    assert "a reply cannot be read: Traceback" in caplog.text
    assert "KeyError: 'surprise'" in caplog.text


@pytest.mark.parametrize("part", ["content", "reasoning", "refusal"])
def test_a_reply_has_no_more_text_than_its_tokens_can_have(part: str) -> None:
    limit = 64_000 + 64 * 512
    for length in (limit, limit + 1):
        data = reply_with({"content": None} | {part: "x" * length})
        assert isinstance(read_reply(200, data, 0.5, 1), Completion)
        outcome = read_reply(200, data, 0.5, 1, max_tokens=512)
        assert isinstance(outcome, Completion if length == limit else Failure)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.BAD_REPLY
    text = "the server's reply has 96,769 characters, more than 512 tokens can have"
    assert outcome.message == text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no\\nsuch\\timage"}}', "no such image"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"message": "older vLLM"}', "older vLLM"),
        ("<h1>Bad\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        ("[1]", "[1]"),
        ("", "no message"),
        ("\x1b[31mred\u202e", r"\x1b[31mred\u202e"),
        ("x" * 100_000, "x" * (MAX_MESSAGE_CHARACTERS - 3) + "..."),
        (
            '{"error": {"message": "' + "word " * 10_000 + '"}}',
            ("word " * 10_000)[: MAX_MESSAGE_CHARACTERS - 3] + "...",
        ),
    ],
    ids=["object", "text", "flat", "html", "list", "empty", "escape", "long", "long words"],
)
def test_a_servers_error_message_becomes_one_bounded_line(body: str, message: str) -> None:
    outcome = read_reply(400, body.encode(), 0.1, 1)
    assert isinstance(outcome, Failure)
    assert outcome.message == f"HTTP 400: {message}"


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_limits_the_rate(status: int) -> None:
    outcome = read_reply(status, b"", 0.1, 1, retry_after="7")
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.retry_after) == (FailureKind.RATE_LIMITED, 7.0)


def test_a_server_that_is_unavailable_without_asking_to_wait_limits_no_rate() -> None:
    outcome = read_reply(503, b"", 0.1, 1)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.retry_after) == (FailureKind.UNAVAILABLE, 0.0)


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime.now(UTC)
    assert retry_after_seconds("120") == 120
    assert 50 < retry_after_seconds(format_datetime(now + timedelta(minutes=1), usegmt=True)) <= 60
    assert retry_after_seconds(format_datetime(now - timedelta(minutes=1), usegmt=True)) == 0
    # A date without a time zone cannot be compared.
    for useless in ("", "soon", "-1", "1.5", "\u00b2", "Fri, 27 Nov 2026 08:00:00"):
        assert retry_after_seconds(useless) == 0
    for impossible in ("2020 00:00:00 +99999999999999999999", "99999999999999999999 00:00:00 GMT"):
        assert retry_after_seconds(f"Mon, 01 Jan {impossible}") == 0


def test_a_connection_lost_before_the_request_was_sent_is_no_disconnect() -> None:
    unsent = aiohttp.ClientOSError(None, "Can not write request body")
    assert is_disconnect(unsent)
    unsent.__cause__ = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    assert not is_disconnect(unsent)
