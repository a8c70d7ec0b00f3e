"""Requests that score a given text."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from chat import endpoint, only_failure, texts
from fake_vllm import reply, serving
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client.scores import lowest_token, scored_text
from prefect_imageqa.serving.types import ChatRequest, Completion, FailureKind

SCORED = {"max_tokens": 1, "prompt_logprobs": 0, "continue_final_message": True}
HEAD = [("<image>", -9.0), ("Colour?", -8.0), ("<|assistant|>", -7.0)]


def prompt(*tokens: tuple[Any, Any]) -> list[Any]:
    """Log-probabilities as vLLM writes them; the second token of an entry is the most likely."""
    other = {"logprob": -0.001, "rank": 1, "decoded_token": "other"}
    return [None] + [
        {str(place): {"logprob": logprob, "rank": 2, "decoded_token": token}, "0": other}
        for place, (token, logprob) in enumerate([*HEAD, *tokens], 1)
    ]


def request(answer: Any, **options: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return ChatRequest(messages, SCORED | options)


@pytest.mark.parametrize(
    ("tokens", "answer", "token", "logprob"),
    [
        ([("It", -0.1), (" is", -0.2), (" red", -1.5), (".", 0.0)], "It is red.", " red", -1.5),
        ([("Red", -0.3)], "Red", "Red", -0.3),
        ([("▁Red", -0.3)], "▁Red", "▁Red", -0.3),
        ([("It", -0.1), ("is", -2.0), ("red", -0.2)], "It is red", "is", -2.0),  # spaces are lost
        ([("<|assistant|>\nRed", -0.4), ("dish", -0.1)], "Reddish", "<|assistant|>\nRed", -0.4),
        ([("", -3.0), ("", -0.1), ("é", -0.2)], "é", "é", -3.0),  # the bytes of one character
        ([("Red", -0.3), ("\n", -5.0)], "Red\n", "Red", -0.3),
        ([("Red", 0.0000001)], "Red", "Red", 0.0),
        ([("Red", -9999.0)], "Red", "Red", -9999.0),
        ([("Red", -1)], "Red", "Red", -1.0),
    ],
)
def test_the_least_probable_token_of_the_answer_is_found(
    tokens: Sequence[tuple[str, float]], answer: str, token: str, logprob: float
) -> None:
    found = json.loads(lowest_token(prompt(*tokens), answer))
    assert found == {"token": token, "logprob": logprob}


@pytest.mark.parametrize(
    ("prompt_logprobs", "message"),
    [
        (None, "gives no log-probabilities of a prompt"),
        ("text", "gives no log-probabilities of a prompt"),
        ({"1": {}}, "gives no log-probabilities of a prompt"),
        ([], "does not end with the text"),
        ([None], "does not end with the text"),
        (prompt(("Blue", -0.1)), "does not end with the text"),
        (prompt(("Red", -0.1), ("<|im_end|>", -0.1)), "does not end with the text"),
        ([None, {}], "malformed"),
        ([None, 5], "malformed"),
        ([None, {"1": None}], "malformed"),
        ([None, {"1": {"logprob": -1.0}}], "malformed"),
        (prompt((None, -0.1)), "malformed"),
        (prompt(("Red", None)), "malformed"),
        (prompt(("Red", True)), "malformed"),
        (prompt(("Red", "-0.1")), "malformed"),
        (prompt(("Red", 3.5)), "malformed"),  # of a server that gives logits
        (prompt(("Red", -1e300)), "malformed"),
        (prompt(("Red", float("nan"))), "malformed"),
    ],
)
def test_what_is_no_score_says_why(prompt_logprobs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lowest_token(prompt_logprobs, "Red")


def test_a_long_prompt_costs_linear_time_and_little_text() -> None:
    answer = "a" * 100_000
    tokens = prompt(*[("", -0.1)] * 100_000, *[("a", -0.1)] * 99_999, ("a" * 1_000_000, -0.2))
    began = time.process_time()
    found = json.loads(lowest_token(tokens, answer))
    assert time.process_time() - began < 2
    assert found == {"token": "a" * 100, "logprob": -0.2}


def test_only_a_request_that_asks_for_it_scores_a_text() -> None:
    assert scored_text(request("Red")) == "Red"
    assert scored_text(request("Red", prompt_logprobs=None)) == ""
    assert scored_text(request("Red", continue_final_message=False)) == ""
    assert scored_text(request([{"type": "text", "text": "Red"}])) == ""
    assert scored_text(ChatRequest([], SCORED)) == ""


def test_the_completion_is_the_score_whatever_the_model_went_on_with() -> None:
    async def score(_: web.Request) -> web.StreamResponse:
        # Over the 4 MiB that a reply to a request for one token may have otherwise.
        long = [{"1": {"logprob": -1.0, "rank": 1, "decoded_token": "x" * 1000}}] * 5000
        response = reply(" of", prompt_logprobs=[*long, *prompt(("Red", -0.25))[1:]])
        body = json.loads(response.text or "")
        body["choices"][0] |= {"finish_reason": "length"}
        return web.json_response(body)

    with serving(score) as url, ChatClient(endpoint(url)) as client:
        (outcome,) = client.complete([request("Red")])
        assert isinstance(outcome, Completion)
        assert json.loads(outcome.text) == {"token": "Red", "logprob": -0.25}
        assert (outcome.finish_reason, outcome.model) == ("stop", "m")


def test_other_requests_get_what_the_model_says() -> None:
    async def score(_: web.Request) -> web.StreamResponse:
        return reply("Blue", prompt_logprobs=prompt(("Red", -0.25)))

    with serving(score) as url, ChatClient(endpoint(url)) as client:
        assert texts(client.complete([request("Red", continue_final_message=False)])) == ["Blue"]


def test_a_server_that_gives_no_scores_is_asked_once() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return reply("Blue")

    with serving(answer) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([request("Red")]))
    assert (failure.kind, failure.attempts) == (FailureKind.BAD_REQUEST, 1)
    assert "gives no log-probabilities of a prompt" in failure.message
