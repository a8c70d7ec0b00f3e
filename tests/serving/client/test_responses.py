"""HTTP replies and connection errors as outcomes."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from prefect_imageqa.serving.client.responses import (
    MAX_MESSAGE_CHARACTERS,
    is_disconnect,
    read_reply,
    retry_after_seconds,
)
from prefect_imageqa.serving.types import Completion, Failure, FailureKind


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{"message": {}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": null, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": [{"text": "a"}]}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": "few"}',
    ],
)
def test_a_reply_other_than_a_chat_completion_is_a_bad_reply(body: str) -> None:
    outcome = read_reply(200, body.encode(), 0.5, 2)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.attempts) == (FailureKind.BAD_REPLY, 200, 2)


def test_a_reply_without_text_is_an_empty_completion() -> None:
    body = b'{"choices": [{"message": {"content": null}, "finish_reason": null}], "usage": null}'
    assert read_reply(200, body, 0.5, 1) == Completion("", "", 0, 0, 0.5, "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no\\nsuch\\timage"}}', "no such image"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"message": "older vLLM"}', "older vLLM"),
        ("<h1>Bad\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        ("[1]", "[1]"),
        ("", "no message"),
        ("x" * 100_000, "x" * MAX_MESSAGE_CHARACTERS),
        (
            '{"error": {"message": "' + "word " * 10_000 + '"}}',
            ("word " * 10_000)[:MAX_MESSAGE_CHARACTERS],
        ),
    ],
    ids=["object", "text", "flat", "html", "list", "empty", "long", "long words"],
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


def test_a_connection_lost_before_the_request_was_sent_is_no_disconnect() -> None:
    unsent = aiohttp.ClientOSError(None, "Can not write request body")
    assert is_disconnect(unsent)
    unsent.__cause__ = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    assert not is_disconnect(unsent)
