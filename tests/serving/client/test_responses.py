"""HTTP replies as outcomes."""

import pytest
from prefect_imageqa.serving.client.responses import MAX_MESSAGE_CHARACTERS, read_reply
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
