"""A reply that was cut off in the middle of a loop is asked for once more, without guidance."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.retry_policy import MAX_CRASHES
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from prefect_imageqa.tasks.errors import EndpointLostError
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.generate import complete_batch
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, Prompt

SETTINGS = GenerationSettings(
    ImageReader(), {"response_format": {"type": "json_object"}, "seed": 42, "max_tokens": 16}
)
LOOP = ('{"question":' + " " * 400, "length")
WHOLE = ('{"question": "What?"}', "stop")


def prompt(number: int, text: str) -> Prompt:
    messages = ({"role": "user", "content": text},)
    return Prompt(number, f"{number:08x}{'0' * 24}", f"d:{number}", messages)


def batch(*texts: str) -> Batch:
    prompts = tuple(prompt(number, text) for number, text in enumerate(texts))
    return Batch(1, "b" * 32, prompts, (0,) * len(prompts))


def completion(text: str, finish_reason: str) -> Completion:
    return Completion(text, finish_reason, 1, 1, 0.1, "stub")


def generate(pending: Batch, client: ChatClient) -> list[str]:
    """The texts of the replies; empty for a row without one."""
    stored = complete_batch(pending, client, SETTINGS)
    return [getattr(reply.reply, "text", "") for reply in stored.replies]


class GuidedClient(ChatClient):
    """A client without a network, whose model gives other replies with guidance than without.

    Attributes:
        options: of the requests, in order.

    Args:
        guided: text and finish reason, or a failure, by the user's text.
        unguided: the same for requests that leave the form of the reply free; the server is lost
            with one that has no reply.
    """

    def __init__(self, guided: dict[str, Any], unguided: dict[str, Any]) -> None:
        super().__init__(VLLMEndpoint(urls=["http://127.0.0.1:9"], model="stub"))
        self.options: list[dict[str, Any]] = []
        self._replies = {True: guided, False: unguided}

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
        *,
        max_crashes: int = MAX_CRASHES,  # noqa: ARG002
    ) -> list[Outcome]:
        assert on_outcome
        for position, request in enumerate(requests):
            self.options.append(dict(request.options))
            text = str(request.messages[0]["content"])
            reply = self._replies["response_format" in request.options].get(text)
            if reply is None:
                raise EndpointLostError("waited in vain")
            on_outcome(position, reply if isinstance(reply, Failure) else completion(*reply))
        return []


@pytest.mark.parametrize("finish_reason", ["length", "repetition"])
def test_a_reply_that_ends_in_a_loop_is_asked_for_once_more_without_guidance(
    finish_reason: str,
) -> None:
    guided = {"a": WHOLE, "b": (LOOP[0], finish_reason), "c": WHOLE}
    client = GuidedClient(guided, {"b": ("Unguided.", "stop")})
    assert generate(batch("a", "b", "c"), client) == [WHOLE[0], "Unguided.", WHOLE[0]]
    assert ["response_format" in options for options in client.options] == [True] * 3 + [False]
    assert len({options["seed"] for options in client.options}) == 4


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(("A long story about", "length"), id="long but no loop"),
        pytest.param((LOOP[0], "stop"), id="complete"),
        pytest.param(Failure(FailureKind.BAD_REQUEST, "no"), id="failed"),
    ],
)
def test_other_replies_are_asked_for_once(reply: Any) -> None:
    client = GuidedClient({"a": reply}, {"a": WHOLE})
    generate(batch("a"), client)
    assert len(client.options) == 1


def test_a_greedy_request_that_would_be_the_same_is_not_sent() -> None:
    greedy = replace(SETTINGS, options={"temperature": 0.0, "seed": 42})
    for settings in (
        greedy,
        replace(SETTINGS, options={**SETTINGS.options, **greedy.options}, guided=False),
    ):
        client = GuidedClient({}, {"a": LOOP})
        pending = batch("a")
        complete_batch(pending, client, settings)
        assert (len(client.options), list(pending.settled)) == (1, [pending.prompts[0].key])
        assert "response_format" not in client.options[0]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(LOOP, id="another loop"),
        pytest.param(("And then", "length"), id="too long"),
        pytest.param(Failure(FailureKind.TIMEOUT, "no reply for 300 s"), id="failed"),
    ],
)
def test_only_a_complete_reply_replaces_one_that_ends_in_a_loop(second: Any) -> None:
    client = GuidedClient({"a": LOOP}, {"a": second})
    assert generate(batch("a"), client) == [LOOP[0]]
    assert len(client.options) == 2


def test_a_server_that_is_lost_while_a_row_is_asked_for_again_costs_only_that_row() -> None:
    pending, client = batch("a", "b", "c"), GuidedClient({"a": WHOLE, "b": LOOP, "c": WHOLE}, {})
    with pytest.raises(EndpointLostError):
        generate(pending, client)
    # The row stays pending, so that the next run asks for it again.
    assert pending.replies.keys() == {pending.prompts[0].key, pending.prompts[2].key}


def test_replies_that_are_only_to_be_cached_are_not_asked_for_again() -> None:
    """Of a batch that failed, the part that has replies is stored without any request."""
    pending, client = batch("a"), GuidedClient({}, {})
    key = pending.prompts[0].key
    pending.replies[key] = completion(*LOOP)
    pending.settled.add(key)
    assert generate(pending, client) == [LOOP[0]]
    assert client.options == []
