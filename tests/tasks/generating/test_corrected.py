"""A reply that is complete but unusable is asked for once more, and the model is shown it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.retry_policy import MAX_CRASHES
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from prefect_imageqa.tasks.errors import EndpointLostError
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.completions import StoredReply
from prefect_imageqa.tasks.generating.generate import complete_batch
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Asked, Batch, Prompt

OPTIONS = {"seed": 42, "max_tokens": 16, "temperature": 0.7}
GUIDE = {"response_format": {"type": "json_object"}}
USABLE = ("Question: a? Answer: b.", "stop")
UNUSABLE = ("I like it.", "stop")


def fault_of(completion: Completion, _: Asked) -> str:
    return "" if "Answer" in completion.text else "has no answer"


SETTINGS = GenerationSettings(ImageReader(), OPTIONS, fault_of=fault_of)


def batch(*texts: str, isolated: bool = False, attempt: int = 0) -> Batch:
    prompts = tuple(
        Prompt(
            number,
            f"{number:08x}{'0' * 24}",
            f"d:{number}",
            ({"role": "user", "content": text},),
            options=GUIDE,
        )
        for number, text in enumerate(texts)
    )
    return Batch(1, "b" * 32, prompts, (attempt,) * len(prompts), isolated=isolated)


def generate(
    pending: Batch, client: ChatClient, settings: GenerationSettings = SETTINGS
) -> list[StoredReply]:
    return list(complete_batch(pending, client, settings).replies)


def texts(replies: Iterable[StoredReply]) -> list[str]:
    return [getattr(reply.reply, "text", "") for reply in replies]


class RepeatedClient(ChatClient):
    """A client without a network, whose model replies differently when it is asked again.

    Attributes:
        requests: in order.

    Args:
        replies: text and finish reason, or a failure, by the first user text: to the first
            request and to any further one; the server is lost if there is none.
    """

    def __init__(self, **replies: list[Any]) -> None:
        super().__init__(VLLMEndpoint(urls=["http://127.0.0.1:9"], model="stub"))
        self.requests: list[ChatRequest] = []
        self._replies = replies

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
        *,
        max_crashes: int = MAX_CRASHES,  # noqa: ARG002
    ) -> list[Outcome]:
        assert on_outcome
        for position, request in enumerate(requests):
            self.requests.append(request)
            replies = self._replies[str(request.messages[0]["content"])]
            if not replies:
                raise EndpointLostError("waited in vain")
            reply = replies.pop(0)
            if not isinstance(reply, Failure):
                text, finish_reason = reply
                reply = Completion(text, finish_reason, 1, 1, 0.1, "stub")
            on_outcome(position, reply)
        return []


def test_an_unusable_reply_is_asked_for_once_more_and_the_usable_one_is_kept() -> None:
    client = RepeatedClient(a=[USABLE], b=[UNUSABLE, USABLE], c=[USABLE])
    pending = batch("a", "b", "c")
    replies = generate(pending, client)
    assert texts(replies) == [USABLE[0]] * 3
    assert [reply.unusable for reply in replies] == [None, UNUSABLE[0], None]
    assert [reply.reply.attempts for reply in replies] == [1, 2, 1]
    assert (pending.corrections, len(pending.corrected)) == (1, 1)
    *first, corrective = client.requests
    assert [message["role"] for message in corrective.messages] == ["user", "assistant", "user"]
    assert corrective.messages[1]["content"] == UNUSABLE[0]
    assert "it has no answer." in str(corrective.messages[2]["content"])
    assert corrective.options["temperature"] == 1.0
    assert corrective.options["response_format"] == GUIDE["response_format"]
    assert corrective.options["seed"] not in {request.options["seed"] for request in first}


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(("I like", "length"), id="truncated"),
        pytest.param(("I cannot help.", "refusal"), id="refused"),
        pytest.param(("", "content_filter"), id="withheld"),
        pytest.param(Failure(FailureKind.BAD_REQUEST, "no"), id="failed"),
    ],
)
def test_other_replies_are_asked_for_once(reply: Any) -> None:
    client, pending = RepeatedClient(a=[reply]), batch("a")
    generate(pending, client)
    assert len(client.requests) == 1
    assert pending.corrections == 0


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(("I still like it.", "stop"), id="unusable"),
        pytest.param(("Question: a? Answer: b", "length"), id="truncated"),
        pytest.param(("No. Answer", "refusal"), id="refused"),
        pytest.param(Failure(FailureKind.TIMEOUT, "no reply for 300 s"), id="failed"),
        pytest.param(Failure(FailureKind.CRASH, "it closed the connection"), id="crashed"),
    ],
)
def test_only_a_usable_reply_replaces_an_unusable_one(second: Any) -> None:
    client, pending = RepeatedClient(a=[UNUSABLE, second]), batch("a")
    replies = generate(pending, client)
    assert texts(replies) == [UNUSABLE[0]]
    assert replies[0].unusable is None
    assert replies[0].reply.attempts == 2
    assert (pending.corrections, len(pending.corrected)) == (1, 0)
    assert len(client.requests) == 2


def test_a_row_is_asked_again_only_if_the_run_says_how_to_judge_replies() -> None:
    client = RepeatedClient(a=[UNUSABLE])
    settings = GenerationSettings(ImageReader(), OPTIONS)
    assert texts(generate(batch("a"), client, settings)) == [UNUSABLE[0]]


def test_rows_that_may_crash_the_server_are_not_asked_again() -> None:
    client = RepeatedClient(a=[UNUSABLE])
    assert texts(generate(batch("a", isolated=True), client)) == [UNUSABLE[0]]


def test_a_server_that_is_lost_meanwhile_costs_only_the_rows_in_question() -> None:
    """Those that have no second reply stay pending, so that the next run asks for them again."""
    client = RepeatedClient(
        a=[USABLE], b=[UNUSABLE, USABLE], c=[UNUSABLE, UNUSABLE], d=[UNUSABLE], e=[UNUSABLE]
    )
    pending = batch("a", "b", "c", "d", "e")
    with pytest.raises(EndpointLostError):
        generate(pending, client)
    known = [prompt.key for prompt in pending.prompts[:3]]
    assert sorted(pending.replies) == known
    assert list(pending.corrected) == [known[1]]
    assert pending.corrections == 4


def test_replies_that_are_only_to_be_cached_are_not_asked_for_again() -> None:
    pending, client = batch("a"), RepeatedClient()
    key = pending.prompts[0].key
    pending.replies[key] = Completion(*UNUSABLE, 1, 1, 0.1, "stub")
    pending.settled.add(key)
    assert texts(generate(pending, client)) == [UNUSABLE[0]]
    assert client.requests == []


def test_a_retry_of_a_batch_corrects_what_the_first_try_could_not() -> None:
    pending, client = batch("a"), RepeatedClient(a=[USABLE])
    pending.replies[pending.prompts[0].key] = Completion(*UNUSABLE, 1, 1, 0.1, "stub")
    assert texts(generate(pending, client)) == [USABLE[0]]
    assert pending.settled == {pending.prompts[0].key}


def test_a_reply_without_guidance_may_be_corrected_too() -> None:
    """A loop, then a reply in a free form that cannot be used, then one that can."""
    loop = ('{"question":' + " " * 400, "length")
    client = RepeatedClient(a=[loop, UNUSABLE, USABLE])
    assert texts(generate(batch("a"), client)) == [USABLE[0]]
    guided = ["response_format" in request.options for request in client.requests]
    assert guided == [True, False, True]
    assert len({request.options["seed"] for request in client.requests}) == 3


def test_a_row_that_failed_before_is_corrected_with_another_seed() -> None:
    seeds = []
    for attempt in (0, 1):
        client = RepeatedClient(a=[UNUSABLE, USABLE])
        generate(batch("a", attempt=attempt), client)
        seeds += [request.options["seed"] for request in client.requests]
    assert len(set(seeds)) == 4
