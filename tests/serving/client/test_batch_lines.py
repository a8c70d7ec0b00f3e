"""Lines of batch files, as vLLM and hosted services read and write them."""

import json
from typing import Any

import pytest
from prefect_imageqa.serving.client.batch_lines import NotAResultError, read_result, request_line
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind

USAGE = {"prompt_tokens": 9, "completion_tokens": 2}


def result(**fields: Any) -> bytes:
    return json.dumps({"id": "vllm-1", "custom_id": "row-1", "error": None} | fields).encode()


def answered(text: str = "Red.", finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": finish_reason}
    return {"status_code": 200, "body": {"model": "m", "choices": [choice], "usage": USAGE}}


def test_a_request_has_the_body_that_a_server_gets() -> None:
    messages = [{"role": "user", "content": "What?"}]
    line = request_line("row-1", "m", ChatRequest(messages, {"max_tokens": 16, "seed": 7}))
    assert json.loads(line) == {
        "custom_id": "row-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": messages, "max_tokens": 16, "seed": 7},
    }
    assert b"\n" not in line


def test_a_reply_is_a_completion() -> None:
    custom_id, outcome = read_result(result(response=answered()))
    assert custom_id == "row-1"
    assert outcome == Completion("Red.", "stop", 9, 2, 0.0, "m")


@pytest.mark.parametrize(
    ("fields", "kind", "status", "message"),
    [
        pytest.param(
            {
                "response": {"status_code": 400, "body": None},
                "error": {"error": {"message": "too many tokens", "code": 400}},
            },
            FailureKind.BAD_REQUEST,
            400,
            "HTTP 400: too many tokens",
            id="vllm, nested twice",
        ),
        pytest.param(
            {"response": {"status_code": 404}, "error": "Model does not support endpoint: /x"},
            FailureKind.NOT_FOUND,
            404,
            "HTTP 404: Model does not support endpoint: /x",
            id="vllm, plain text",
        ),
        pytest.param(
            {"response": {"status_code": 429, "body": {"error": {"message": "slow down"}}}},
            FailureKind.RATE_LIMITED,
            429,
            "HTTP 429: slow down",
            id="in the body",
        ),
        pytest.param(
            {"response": {"status_code": 500, "body": None}, "error": {"error": {"message": "x"}}},
            FailureKind.SERVER_ERROR,
            500,
            "HTTP 500: x",
            id="server error",
        ),
        pytest.param(
            {"response": None, "error": {"code": "batch_expired", "message": "not in 24 h"}},
            FailureKind.UNAVAILABLE,
            None,
            "the batch ended without a reply: not in 24 h",
            id="expired",
        ),
        pytest.param(
            {"response": None},
            FailureKind.UNAVAILABLE,
            None,
            "the batch ended without a reply: no reason given",
            id="nothing",
        ),
        pytest.param(
            {"response": {"status_code": 200, "body": None}},
            FailureKind.BAD_REPLY,
            200,
            "the server's reply is not a chat completion",
            id="no body",
        ),
        pytest.param(
            {"response": {"status_code": "200", "body": {}}},
            FailureKind.BAD_REPLY,
            None,
            "the result has no HTTP status",
            id="no status",
        ),
        pytest.param(
            {"response": answered(), "error": {"message": "interrupted"}},
            FailureKind.SERVER_ERROR,
            500,
            "HTTP 500: interrupted",
            id="error beside a reply",
        ),
    ],
)
def test_a_failure_is_what_the_client_would_have_got(
    fields: dict[str, Any], kind: FailureKind, status: int | None, message: str
) -> None:
    _, outcome = read_result(result(**fields))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.message) == (kind, status, message)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"custom_id": 7, "response": {}}',
        b'{"response": {"status_code": 200}}',
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}',
        b'{"a":' * 10_000,
        b"\xff\xfe",
    ],
)
def test_another_line_is_no_result(line: bytes) -> None:
    with pytest.raises(NotAResultError):
        read_result(line)


def test_a_reply_longer_than_the_limit_is_refused() -> None:
    _, outcome = read_result(result(response=answered("a" * 100_000)), max_tokens=16)
    assert isinstance(outcome, Failure)
    assert "more than 16 tokens" in outcome.message
