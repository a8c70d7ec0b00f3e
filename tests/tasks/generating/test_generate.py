import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.states import Failed
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError, ServerError
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome
from prefect_imageqa.tasks.errors import EndpointLostError
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings, build_request
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.generating.generate import (
    BATCH_RETRIES,
    MAX_LOST_ISOLATED,
    generate_batch,
    reply_of,
)
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt, Reply, RowError

IMAGES = ImageSettings(max_side=64)


def no_server(expected: bool = False) -> None:
    raise EndpointError(f"the server does not recover ({expected})")


SETTINGS = GenerationSettings(ImageReader(), {"max_tokens": 16, "seed": None}, IMAGES, no_server)


def png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(encoded, "PNG")
    return encoded.getvalue()


def prompt(number: int, text: str = "What?", **changed: Any) -> Prompt:
    fields: dict[str, Any] = {
        "row": number,
        "key": f"{number:032x}",
        "where": f"d:{number}",
        "messages": ({"role": "user", "content": [{"type": "text", "text": text}]},),
    }
    return Prompt(**(fields | changed))


def batch(*prompts: Prompt) -> Batch:
    return Batch(1, "b" * 32, prompts, (0,) * len(prompts))


def generate(
    pending: Batch, client: ChatClient, settings: GenerationSettings = SETTINGS
) -> list[Reply]:
    stored = json.loads(json.dumps(generate_batch.fn(pending, client, settings)))
    return [stored.reply for stored in Completions.load(stored).replies]


@pytest.fixture
def client(stub: Any) -> Iterator[ChatClient]:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=4) as client:
        yield client


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    monkeypatch.setattr(client_module, "_CRASH_CHECK_DELAY", 0.0)


def test_images_are_inserted_where_the_messages_refer_to_them(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(256, 128))
    messages = (
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": 1},
                {"type": "text", "text": "and"},
                {"type": "image", "image": 0},
            ],
        },
    )
    images = (ImageRef(data=png(8, 8)), ImageRef(path=str(tmp_path / "large.png")))
    pending = prompt(1, messages=messages, images=images)
    request = build_request(pending, SETTINGS)
    assert request.messages[0] == messages[0]
    first, middle, last = request.messages[1]["content"]
    assert middle == {"type": "text", "text": "and"}
    sizes = []
    for part in (first, last):
        assert part["type"] == "image_url"
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(64, 32), (8, 8)]
    assert pending.messages == messages
    assert request.options["max_tokens"] == 16


def test_a_seed_depends_on_the_row_and_the_attempt() -> None:
    def seed(key: str, base: int | None = 42, attempt: int = 0) -> Any:
        settings = replace(SETTINGS, options={"seed": base})
        return build_request(prompt(0, key=key), settings, attempt).options["seed"]

    keys = [f"{number:08x}" + "0" * 24 for number in (0, 1, 2**32 - 1)]
    seeds = [seed(key) for key in keys]
    assert len(set(seeds)) == 3
    assert seeds == [seed(key) for key in keys]
    assert all(0 <= value < 2**31 for value in seeds)
    assert seed(keys[0], 43) != seeds[0]
    assert len({seed(keys[0], attempt=attempt) for attempt in range(3)}) == 3
    assert seed(keys[0], None) is None


def test_replies_are_in_the_order_of_the_rows(client: ChatClient) -> None:
    prompts = [prompt(number, f"STUB text reply {number}") for number in range(20)]
    replies = generate(batch(*prompts), client)
    assert [reply.text for reply in replies if isinstance(reply, Completion)] == [
        f"reply {number}" for number in range(20)
    ]


def test_an_unusable_image_affects_only_its_row(client: ChatClient, tmp_path: Path) -> None:
    def images(*refs: ImageRef) -> dict[str, Any]:
        parts = [{"type": "image", "image": number} for number in range(len(refs))]
        return {"images": refs, "messages": ({"role": "user", "content": parts},)}

    known = Problem(Kind.BAD_ROW, "line 7 is not JSON")
    replies = generate(
        batch(
            prompt(0, **images(ImageRef(data=png(8, 8)))),
            prompt(1, **images(ImageRef(data=b"<html>"))),
            prompt(2, **images(ImageRef(path=str(tmp_path / "missing.png")))),
            prompt(3, **images(ImageRef(data=png(8, 8)), ImageRef(data=png(8, 8)[:45]))),
            prompt(4, problem=known, messages=()),
            prompt(5, **images(ImageRef(data=png(8, 8)))),
        ),
        client,
    )
    kinds = [reply.kind if isinstance(reply, Problem) else "answered" for reply in replies]
    assert kinds == [
        "answered",
        Kind.NOT_AN_IMAGE,
        Kind.IMAGE_MISSING,
        Kind.IMAGE_BROKEN,
        Kind.BAD_ROW,
        "answered",
    ]
    assert replies[4] == known
    assert client.stats.requests == 2


def test_a_prompt_with_a_problem_is_not_sent() -> None:
    with pytest.raises(RowError, match="no image"):
        build_request(prompt(0, problem=Problem(Kind.NO_IMAGE, "no image")), SETTINGS)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("status 400", Problem(Kind.BAD_REQUEST, "HTTP 400: simulated failure", 400, 1)),
        ("status 500", Problem(Kind.SERVER_ERROR, "HTTP 500: simulated failure", 500, 3)),
        (
            "raw no",
            Problem(Kind.SERVER_ERROR, "the server's reply is not a chat completion", 200, 1),
        ),
    ],
)
def test_a_failing_request_affects_only_its_row(
    instruction: str, expected: Problem, client: ChatClient
) -> None:
    replies = generate(batch(prompt(0), prompt(1, f"STUB {instruction}"), prompt(2)), client)
    assert [isinstance(reply, Completion) for reply in replies] == [True, False, True]
    assert replies[1] == expected


def test_a_text_that_is_not_unicode_affects_only_its_row(client: ChatClient) -> None:
    replies = generate(batch(prompt(0, "\ud800"), prompt(1)), client)
    assert isinstance(replies[0], Problem)
    assert replies[0].kind is Kind.BAD_REQUEST
    assert isinstance(replies[1], Completion)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FailureKind.BAD_REQUEST, Kind.BAD_REQUEST),
        (FailureKind.TIMEOUT, Kind.TIMEOUT),
        (FailureKind.CONNECTION, Kind.CONNECTION),
        (FailureKind.SERVER_ERROR, Kind.SERVER_ERROR),
        (FailureKind.BAD_REPLY, Kind.SERVER_ERROR),
    ],
)
def test_each_failure_kind_becomes_a_problem_kind(kind: FailureKind, expected: Kind) -> None:
    assert reply_of(Failure(kind, "why", 418, attempts=2)) == Problem(expected, "why", 418, 2)


def test_a_retry_sends_only_rows_without_a_reply(client: ChatClient) -> None:
    pending = batch(prompt(0), prompt(1), prompt(2))
    known = Completion("known", "stop", 1, 1, 0.1, "stub")
    pending.replies[pending.prompts[1].key] = known
    pending.replies[pending.prompts[2].key] = Problem(Kind.TIMEOUT, "timed out")
    replies = generate(pending, client)
    assert replies[1:] == [known, Problem(Kind.TIMEOUT, "timed out")]
    assert isinstance(replies[0], Completion)
    assert client.stats.requests == 1
    assert generate(pending, client) == replies
    assert client.stats.requests == 1


def test_a_server_that_dies_stops_the_batch_and_replies_are_retained(start_stub: Any) -> None:
    mortal = start_stub()
    prompts = [prompt(number, f"STUB text {number}") for number in range(3)]
    prompts += [prompt(3, "STUB die"), *(prompt(number) for number in range(4, 200))]
    pending = batch(*prompts)
    with ChatClient(VLLMEndpoint(urls=[mortal.url], model="stub"), max_in_flight=1) as client:
        with pytest.raises(EndpointLostError, match="the server stopped answering: http://127"):
            generate(pending, client)
        assert set(pending.replies) == {prompt.key for prompt in prompts[:3]}
        assert client.stats.requests <= 3 + 4 * 3
    assert mortal.process.wait(5) == 1


def test_a_server_that_stays_overloaded_stops_the_batch(client: ChatClient) -> None:
    with pytest.raises(EndpointLostError, match="the server stopped answering: HTTP 503"):
        generate(batch(prompt(0, "STUB status 503")), client)


def test_a_rejected_key_stops_the_batch_without_a_retry(keyed_stub: Any) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], model="stub", api_key="wrong-key")
    with (
        ChatClient(endpoint, max_in_flight=2) as client,
        pytest.raises(EndpointError, match="refuses to answer: HTTP 401: Unauthorized") as raised,
    ):
        generate(batch(*map(prompt, range(50))), client)
    assert not isinstance(raised.value, EndpointLostError)
    assert "wrong-key" not in str(raised.value)
    assert client.stats.requests <= 4


def test_a_missing_model_stops_the_batch_without_a_retry(stub: Any) -> None:
    with (
        ChatClient(VLLMEndpoint(urls=[stub.url], model="other")) as client,
        pytest.raises(EndpointError, match="does not exist") as raised,
    ):
        generate(batch(prompt(0)), client)
    assert not isinstance(raised.value, EndpointLostError)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (EndpointLostError("lost"), True),
        (EndpointError("rejected"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_a_lost_server_is_retried(error: Exception, retried: bool) -> None:
    condition: Any = generate_batch.retry_condition_fn
    assert condition(generate_batch, None, Failed(data=error)) is retried
    assert generate_batch.retries == BATCH_RETRIES


class CrashingClient(ChatClient):
    """A client without a network, of a server that some rows crash.

    Args:
        crashing: the numbers of these rows.
        disconnects: disconnects that the client counts per request, its own retries included.
        in_order: whether the rows before the first crashing one are answered before the crash.
    """

    def __init__(self, crashing: set[int], disconnects: int = 1, in_order: bool = False) -> None:
        super().__init__(VLLMEndpoint(urls=["http://127.0.0.1:9"], model="stub"))
        self._crashing = {f"row {number}" for number in crashing}
        self._failure = Failure(
            FailureKind.CONNECTION, "disconnected", retryable=True, disconnects=disconnects
        )
        self._in_order = in_order

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        texts = [request.messages[0]["content"][0]["text"] for request in requests]
        crash = next((n for n, text in enumerate(texts) if text in self._crashing), None)
        answered = len(texts) if crash is None else crash * self._in_order
        for position, text in enumerate(texts):
            outcome: Outcome = self._failure
            if position < answered:
                self.stats.completions += 1
                outcome = Completion(text, "stop", 1, 1, 0.1, "stub")
            assert on_outcome
            on_outcome(position, outcome)
        return []


def isolated_batch(size: int) -> Batch:
    prompts = [prompt(number, f"row {number}") for number in range(size)]
    return replace(batch(*prompts), isolated=True)


def crashed_rows(pending: Batch) -> list[int]:
    replies = [pending.replies.get(prompt.key) for prompt in pending.prompts]
    return [
        number
        for number, reply in enumerate(replies)
        if isinstance(reply, Problem) and reply.kind is Kind.CRASH
    ]


@pytest.mark.parametrize("disconnects", [1, 2])
@pytest.mark.parametrize("in_order", [False, True])
def test_bisection_finds_exactly_the_rows_that_crash_the_server(
    disconnects: int, in_order: bool
) -> None:
    recovered: list[bool] = []
    settings = replace(SETTINGS, recover=lambda expected=False: recovered.append(expected))
    for size in range(1, 7):
        for crashing in chain.from_iterable(combinations(range(size), n) for n in range(size + 1)):
            pending = isolated_batch(size)
            replies = generate(
                pending, CrashingClient(set(crashing), disconnects, in_order), settings
            )
            assert crashed_rows(pending) == list(crashing)
            others = [reply for number, reply in enumerate(replies) if number not in crashing]
            assert all(isinstance(reply, Completion) for reply in others)
    assert all(recovered)


def test_the_search_ends_when_the_server_keeps_failing() -> None:
    settings = replace(SETTINGS, recover=lambda **_: None)
    pending = isolated_batch(16)
    with pytest.raises(EndpointLostError, match="the server keeps failing"):
        generate(pending, CrashingClient(set(range(16))), settings)
    assert crashed_rows(pending) == list(range(MAX_LOST_ISOLATED))
    assert len(pending.replies) == MAX_LOST_ISOLATED


def test_the_results_of_a_search_that_is_given_up_are_retained() -> None:
    """Two rows crash the server, which is not restarted after the first of them is found."""
    pending = isolated_batch(8)
    recovered: list[bool] = []

    def recover(*, expected: bool = False) -> None:
        recovered.append(expected)
        if crashed_rows(pending):
            raise ServerError("given up")

    with pytest.raises(ServerError, match="given up"):
        generate(pending, CrashingClient({2, 5}), replace(SETTINGS, recover=recover))
    assert all(recovered)
    assert crashed_rows(pending) == [2]
    assert pending.prompts[5].key not in pending.replies
    assert all(prompt.key in pending.replies for prompt in pending.prompts[:2])
