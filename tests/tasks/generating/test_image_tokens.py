"""The tokens that images add to prompts, as each server counts them."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.image_tokens import ASKED_ROWS, image_tokens
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import ImageRef, Kind, Problem, Prompt

OPTIONS = {
    "max_tokens": 512,
    "min_tokens": 5,
    "response_format": {"type": "json_object"},
    "chat_template_kwargs": {"thinking": False},
}
SETTINGS = GenerationSettings(ImageReader(), OPTIONS)


def image(number: int) -> ImageRef:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), (number, 0, 0)).save(encoded, "PNG")
    return ImageRef(data=encoded.getvalue())


def prompt(*images: ImageRef, text: str = "What?", **changed: Any) -> Prompt:
    parts = [{"type": "image", "image": number} for number in range(len(images))]
    content = [*parts, *([{"type": "text", "text": text}] if text else [])]
    message = {"role": "user", "content": content}
    return Prompt(
        0, "0" * 32, "d:1", ({"role": "system", "content": "s"}, message), images, **changed
    )


def asking(*urls: str) -> ChatClient:
    return ChatClient(VLLMEndpoint(urls=list(urls), model="stub"))


@pytest.fixture
def own(start_stub: Any) -> Any:
    return start_stub()


def bodies(stub: Any) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = stub.stats()["bodies"]
    return found


def test_a_row_is_asked_with_and_without_its_images(own: Any) -> None:
    with asking(own.url) as client:
        assert image_tokens(client, [prompt(image(1), image(2))], SETTINGS) == {own.url: 32}
        assert (client.stats.requests, client.stats.prompt_tokens) == (0, 0)
    with_images, without = sorted(bodies(own), key=lambda body: -len(str(body)))
    for body in (with_images, without):
        assert (body["max_tokens"], body["chat_template_kwargs"]) == (1, {"thinking": False})
        assert not body.keys() & {"response_format", "min_tokens"}
    images, (text,) = with_images["messages"][1]["content"][:2], without["messages"][1]["content"]
    assert [part["type"] for part in images] == ["image_url"] * 2
    assert text == {"type": "text", "text": "What?"}
    assert (
        with_images["messages"][0] == without["messages"][0] == {"role": "system", "content": "s"}
    )


def test_few_rows_with_different_usable_images_are_asked(own: Any) -> None:
    rows = [
        prompt(),
        prompt(image(0), problem=Problem(Kind.BAD_ROW, "no")),
        prompt(ImageRef(data=b"no image")),
        *(prompt(image(number), text="") for number in (1, 1, 2, 3, 4)),
    ]
    with asking(own.url) as client:
        assert image_tokens(client, rows, SETTINGS) == {own.url: 64}
        assert image_tokens(client, rows[:3], SETTINGS) == {}
    assert len(bodies(own)) == 2 * ASKED_ROWS
    assert [body["messages"][1]["content"] for body in bodies(own)].count("") == ASKED_ROWS


def test_rows_that_share_the_image_of_an_example_are_asked(own: Any) -> None:
    with asking(own.url) as client:
        image_tokens(client, [prompt(image(0), image(number)) for number in (1, 2)], SETTINGS)
    assert len(bodies(own)) == 2 * 2


def test_every_server_is_judged_on_its_own(start_stub: Any, own: Any) -> None:
    blind, failing = start_stub("--blind"), start_stub("--fail-share=1")
    with asking(own.url, blind.url, failing.url) as client:
        found = image_tokens(client, [prompt(image(1))], SETTINGS)
    assert found == {own.url: 64, blind.url: 0, failing.url: None}
