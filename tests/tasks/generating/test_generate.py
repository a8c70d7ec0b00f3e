import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.states import Failed
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError, ServerError
from prefect_imageqa.serving.types import Completion, Failure, FailureKind
from prefect_imageqa.tasks.errors import EndpointLostError
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.generating.generate import BATCH_RETRIES, generate_batch, reply_of
from prefect_imageqa.tasks.generating.requests import GenerationSettings, build_request
from prefect_imageqa.tasks.images.preparing import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt, Reply, RowError

IMAGES = ImageSettings(max_side=64)


def no_server(expected: bool = False) -> None:
    raise EndpointError(f"no server comes back ({expected})")


SETTINGS = GenerationSettings(
    ImageReader(), {"max_tokens": 16, "seed": None}, IMAGES, no_server
)


def png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(encoded, "PNG")
    return encoded.getvalue()


def prompt(number: int, said: str = "What?", **changed: Any) -> Prompt:
    given: dict[str, Any] = {
        "row": number,
        "key": f"{number:032x}",
        "where": f"d:{number}",
        "messages": ({"role": "user", "content": [{"type": "text", "text": said}]},),
    }
    return Prompt(**(given | changed))


def batch(*prompts: Prompt) -> Batch:
    return Batch(1, "b" * 32, prompts, (0,) * len(prompts))


def generate(
    asked: Batch, client: ChatClient, settings: GenerationSettings = SETTINGS
) -> list[Reply]:
    stored = json.loads(json.dumps(generate_batch.fn(asked, client, settings)))
    return [stored.reply for stored in Completions.load(stored).replies]


@pytest.fixture
def client(stub: Any) -> Iterator[ChatClient]:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=4) as client:
        yield client


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 0.0)


def test_a_request_has_the_images_where_the_messages_refer_to_them(tmp_path: Path) -> None:
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
    asked = prompt(1, messages=messages, images=images)
    request = build_request(asked, SETTINGS)
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
    assert asked.messages == messages
    assert request.options["max_tokens"] == 16


def test_a_seed_differs_by_row_and_not_by_run() -> None:
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


def test_every_row_gets_its_reply_in_order(client: ChatClient) -> None:
    prompts = [prompt(number, f"STUB text reply {number}") for number in range(20)]
    replies = generate(batch(*prompts), client)
    assert [reply.text for reply in replies if isinstance(reply, Completion)] == [
        f"reply {number}" for number in range(20)
    ]


def test_an_image_that_cannot_be_used_costs_its_row_only(
    client: ChatClient, tmp_path: Path
) -> None:
    def images(*refs: ImageRef) -> dict[str, Any]:
        parts = [{"type": "image", "image": number} for number in range(len(refs))]
        return {"images": refs, "messages": ({"role": "user", "content": parts},)}

    known = Problem(Kind.BAD_ROW, "line 7 is not JSON")
    replies = generate(
        batch(
            prompt(0, **images(ImageRef(data=png(8, 8)))),
            prompt(1, **images(ImageRef(data=b"<html>"))),
            prompt(2, **images(ImageRef(path=str(tmp_path / "gone.png")))),
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


def test_a_prompt_with_a_problem_has_no_request() -> None:
    with pytest.raises(RowError, match="no image"):
        build_request(prompt(0, problem=Problem(Kind.NO_IMAGE, "no image")), SETTINGS)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("status 400", Problem(Kind.BAD_REQUEST, "HTTP 400: the stub was told to fail", 400, 1)),
        ("status 500", Problem(Kind.SERVER_ERROR, "HTTP 500: the stub was told to fail", 500, 3)),
        (
            "raw no",
            Problem(Kind.SERVER_ERROR, "the server's reply is not a chat completion", 200, 1),
        ),
    ],
)
def test_a_request_that_fails_costs_its_row_only(
    told: str, expected: Problem, client: ChatClient
) -> None:
    replies = generate(batch(prompt(0), prompt(1, f"STUB {told}"), prompt(2)), client)
    assert [isinstance(reply, Completion) for reply in replies] == [True, False, True]
    assert replies[1] == expected


def test_a_text_that_is_not_unicode_costs_its_row_only(client: ChatClient) -> None:
    replies = generate(batch(prompt(0, "\ud800"), prompt(1)), client)
    assert isinstance(replies[0], Problem)
    assert replies[0].kind is Kind.BAD_REQUEST
    assert isinstance(replies[1], Completion)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FailureKind.BAD_REQUEST, Kind.BAD_REQUEST),
        (FailureKind.TIMEOUT, Kind.TIMEOUT),
        (FailureKind.CONNECTION, Kind.CONNECTION),
        (FailureKind.SERVER_ERROR, Kind.SERVER_ERROR),
        (FailureKind.BAD_REPLY, Kind.SERVER_ERROR),
    ],
)
def test_each_failure_has_its_kind(kind: FailureKind, told: Kind) -> None:
    assert reply_of(Failure(kind, "why", 418, attempts=2)) == Problem(told, "why", 418, 2)


def test_a_retry_asks_only_for_the_rest(client: ChatClient) -> None:
    asked = batch(prompt(0), prompt(1), prompt(2))
    done = Completion("known", "stop", 1, 1, 0.1, "stub")
    asked.replies[asked.prompts[1].key] = done
    asked.replies[asked.prompts[2].key] = Problem(Kind.TIMEOUT, "given up")
    replies = generate(asked, client)
    assert replies[1:] == [done, Problem(Kind.TIMEOUT, "given up")]
    assert isinstance(replies[0], Completion)
    assert client.stats.requests == 1
    assert generate(asked, client) == replies
    assert client.stats.requests == 1


def test_a_server_that_goes_stops_the_batch_and_what_is_known_is_kept(start_stub: Any) -> None:
    mortal = start_stub()
    prompts = [prompt(number, f"STUB text {number}") for number in range(3)]
    prompts += [prompt(3, "STUB die"), *(prompt(number) for number in range(4, 200))]
    asked = batch(*prompts)
    with ChatClient(VLLMEndpoint(urls=[mortal.url], model="stub"), max_in_flight=1) as client:
        with pytest.raises(EndpointLostError, match="the server stopped answering: http://127"):
            generate(asked, client)
        assert set(asked.replies) == {prompt.key for prompt in prompts[:3]}
        assert client.stats.requests <= 3 + 4 * 3
    assert mortal.process.wait(5) == 1


def test_a_server_that_stays_overloaded_stops_the_batch(client: ChatClient) -> None:
    with pytest.raises(EndpointLostError, match="the server stopped answering: HTTP 503"):
        generate(batch(prompt(0, "STUB status 503")), client)


def test_a_refused_key_stops_the_batch_for_good(keyed_stub: Any) -> None:
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], model="stub", api_key="wrong-key")
    with (
        ChatClient(endpoint, max_in_flight=2) as client,
        pytest.raises(EndpointError, match="refuses to answer: HTTP 401: Unauthorized") as raised,
    ):
        generate(batch(*map(prompt, range(50))), client)
    assert not isinstance(raised.value, EndpointLostError)
    assert "wrong-key" not in str(raised.value)
    assert client.stats.requests <= 4


def test_a_model_that_is_gone_stops_the_batch_for_good(stub: Any) -> None:
    with (
        ChatClient(VLLMEndpoint(urls=[stub.url], model="other")) as client,
        pytest.raises(EndpointError, match="does not exist") as raised,
    ):
        generate(batch(prompt(0)), client)
    assert not isinstance(raised.value, EndpointLostError)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (EndpointLostError("gone"), True),
        (EndpointError("refused"), False),
        (ValueError("a bug"), False),
    ],
)
def test_only_a_lost_server_is_waited_for(error: Exception, again: bool) -> None:
    condition: Any = generate_batch.retry_condition_fn
    assert condition(generate_batch, None, Failed(data=error)) is again
    assert generate_batch.retries == BATCH_RETRIES


def test_what_is_found_out_about_suspects_is_kept_when_the_search_is_given_up(
    start_stub: Any,
) -> None:
    """Two rows kill the server; after some restarts there are no more."""
    stub = start_stub("--respawn=0.1")
    prompts = [prompt(number) for number in range(8)]
    prompts[2], prompts[5] = prompt(2, "STUB die"), prompt(5, "STUB die")
    asked = replace(batch(*prompts), isolated=True)
    recovered: list[bool] = []
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=8) as client:

        def recover(*, expected: bool = False) -> None:
            recovered.append(expected)
            if Kind.CRASH in kinds():
                raise ServerError("given up")
            assert client.wait_until_up(10)

        def kinds() -> dict[Kind, str]:
            replies = asked.replies.items()
            return {reply.kind: key for key, reply in replies if isinstance(reply, Problem)}

        with pytest.raises(ServerError, match="given up"):
            generate(asked, client, replace(SETTINGS, recover=recover))
    assert all(recovered)
    assert kinds() == {Kind.CRASH: prompts[2].key}
    assert prompts[5].key not in asked.replies
    assert all(prompt.key in asked.replies for prompt in prompts[:2])
