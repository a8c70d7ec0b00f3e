"""A batch is sent to a server: each row gets its reply, and only a lost server stops the batch."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.states import Failed
from prefect_imageqa.serving.client import sender
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import Completion, Failure, FailureKind
from prefect_imageqa.tasks.errors import EndpointLostError, ServerError, StoreUnavailableError
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.generate import BATCH_RETRIES, complete_batch, generate_batch
from prefect_imageqa.tasks.generating.rows import reply_of
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt, Reply

SETTINGS = GenerationSettings(ImageReader(), {"max_tokens": 16})


def png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "PNG")
    return encoded.getvalue()


def prompt(number: int, text: str = "What?", **changed: Any) -> Prompt:
    fields: dict[str, Any] = {
        "row": number,
        "key": f"{number:032x}",
        "where": f"d:{number}",
        "messages": ({"role": "user", "content": text},),
    }
    return Prompt(**(fields | changed))


def about(number: int, *images: ImageRef) -> Prompt:
    """A prompt about images."""
    parts = [{"type": "image", "image": position} for position in range(len(images))]
    return prompt(number, images=images, messages=({"role": "user", "content": parts},))


def batch(*prompts: Prompt) -> Batch:
    return Batch(1, "b" * 32, prompts, (0,) * len(prompts))


def generate(
    pending: Batch, client: ChatClient, settings: GenerationSettings = SETTINGS
) -> list[Reply]:
    return [stored.reply for stored in complete_batch(pending, client, settings).replies]


@pytest.fixture
def client(stub: Any) -> Iterator[ChatClient]:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=4) as client:
        yield client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits before a request is sent again."""
    monkeypatch.setattr(sender, "backoff", lambda _: 0.0)
    monkeypatch.setattr(sender, "CRASH_CHECK_SECONDS", 0.0)


def test_replies_are_in_the_order_of_the_rows(client: ChatClient) -> None:
    prompts = [prompt(number, f"STUB text reply {number}") for number in range(20)]
    replies = generate(batch(*prompts), client)
    assert [reply.text for reply in replies if isinstance(reply, Completion)] == [
        f"reply {number}" for number in range(20)
    ]


def test_an_unusable_image_affects_only_its_row(client: ChatClient, tmp_path: Path) -> None:
    known = Problem(Kind.BAD_ROW, "line 7 is not JSON")
    replies = generate(
        batch(
            about(0, ImageRef(data=png())),
            about(1, ImageRef(data=b"<html>")),
            about(2, ImageRef(path=str(tmp_path / "missing.png"))),
            about(3, ImageRef(data=png()), ImageRef(data=png()[:45])),
            prompt(4, problem=known, messages=()),
            about(5, ImageRef(data=png())),
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


def test_a_lost_store_of_images_stops_the_batch_and_replies_are_retained(
    client: ChatClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").write_bytes(png())
    prepare = ImageReader.prepare

    def lost(reader: ImageReader, ref: ImageRef, settings: Any) -> Any:
        if ref.path == "s3://lost/1.png":
            raise StoreUnavailableError("S3 does not answer; waited 300 s")
        return prepare(reader, ref, settings)

    monkeypatch.setattr(ImageReader, "prepare", lost)
    paths = [str(tmp_path / "0.png"), "s3://lost/1.png", str(tmp_path / "0.png")]
    pending = batch(*(about(row, ImageRef(path=path)) for row, path in enumerate(paths)))
    with pytest.raises(StoreUnavailableError, match="waited 300 s"):
        generate(pending, client)
    answered = {pending.prompts[0].key, pending.prompts[2].key}
    assert pending.replies.keys() == answered
    assert all(isinstance(reply, Completion) for reply in pending.replies.values())


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("status 400", Problem(Kind.BAD_REQUEST, "HTTP 400: simulated failure", 400, 1)),
        ("status 500", Problem(Kind.SERVER_ERROR, "HTTP 500: simulated failure", 500, 3)),
        ("status 503", Problem(Kind.SERVER_ERROR, "HTTP 503: simulated failure", 503, 4)),
        (
            "raw no",
            Problem(Kind.SERVER_ERROR, "the server's reply is not JSON, but 'no'", 200, 3),
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
        (FailureKind.DISCONNECTED, Kind.CONNECTION),
        (FailureKind.UNAVAILABLE, Kind.SERVER_ERROR),
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


# --- lost servers ---------------------------------------------------------------------------------


def test_a_server_that_is_away_for_a_moment_is_waited_for(start_stub: Any) -> None:
    """A row that it dies with every time is the only one that is not answered."""
    # Away for so long that even on a busy machine it is found gone, and not only disconnected.
    stub = start_stub("--respawn=3")
    prompts = [prompt(number, f"STUB text {number}") for number in range(30)]
    prompts[7] = prompt(7, "STUB die")
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=1) as client:
        replies = generate(batch(*prompts), client)
        assert client.stats.requests <= 31 + 2  # after each loss, one more finds it gone
    lost = replies[7]
    assert isinstance(lost, Problem)
    assert (lost.kind, lost.attempts) == (Kind.CRASH, 2)
    # The next row in line is suspected, too, if it was sent just before the port was closed, twice.
    others = {reply.kind for reply in replies if isinstance(reply, Problem)} - {Kind.CRASH}
    assert not others
    assert lost.message.startswith("the server went down while it worked on this row (")
    assert stub.stats()["starts"] == 3


def test_a_server_that_stays_away_stops_the_batch_and_replies_are_retained(
    start_stub: Any,
) -> None:
    mortal = start_stub()
    prompts = [prompt(number, f"STUB text {number}") for number in range(3)]
    prompts += [prompt(3, "STUB die"), *(prompt(number) for number in range(4, 200))]
    pending, endpoint = batch(*prompts), VLLMEndpoint(urls=[mortal.url], model="stub")
    started = time.monotonic()
    with ChatClient(endpoint, max_in_flight=1, server_wait=0.5) as client:
        with pytest.raises(EndpointLostError) as lost:
            generate(pending, client)
        assert client.stats.requests <= 3 + 2  # one dies with it, one more finds it gone
    assert time.monotonic() - started > 0.5
    message = str(lost.value)
    assert message.startswith(f"{mortal.url} does not answer")
    assert message.endswith(
        ": waited 0 s; when a server is back, run the same command again to resume"
    )
    assert set(pending.replies) == {prompt.key for prompt in prompts[:3]}
    assert mortal.process.wait(60) == 1


def test_a_rejected_key_stops_the_batch(keyed_stub: Any) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], model="stub", api_key="wrong-key")
    with (
        ChatClient(endpoint, max_in_flight=2) as client,
        pytest.raises(EndpointError, match=r"rejects the API key \(HTTP 401\)") as raised,
    ):
        generate(batch(*map(prompt, range(50))), client)
    assert not isinstance(raised.value, EndpointLostError)
    assert "wrong-key" not in str(raised.value)
    assert client.stats.requests <= 8


def test_a_missing_model_stops_the_batch(stub: Any) -> None:
    with (
        ChatClient(VLLMEndpoint(urls=[stub.url], model="other")) as client,
        pytest.raises(EndpointError, match="does not serve 'other'; it serves: stub") as raised,
    ):
        generate(batch(prompt(0)), client)
    assert not isinstance(raised.value, EndpointLostError)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (EndpointLostError("lost"), False),
        (EndpointError("rejected"), False),
        (ServerError("gave up"), False),
        (StoreUnavailableError("gone"), False),
        (ValueError("a bug"), True),
        (OSError("a surprise"), True),
    ],
)
def test_only_an_unexpected_error_is_retried(error: Exception, retried: bool) -> None:
    condition: Any = generate_batch.retry_condition_fn
    assert condition(generate_batch, None, Failed(data=error)) is retried
    assert generate_batch.retries == BATCH_RETRIES
