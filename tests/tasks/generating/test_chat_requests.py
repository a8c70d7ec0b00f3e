"""A prompt becomes a request: its images, its seed, and what constrains the form of its reply."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from PIL import Image
from prefect_imageqa.tasks.generating.chat_requests import (
    GenerationSettings,
    build_request,
    corrective_temperature,
    images_at_once,
)
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.prompting.correction import Correction
from prefect_imageqa.tasks.records import ImageRef, Kind, Problem, Prompt, RowError

SETTINGS = GenerationSettings(ImageReader(), {"max_tokens": 16}, ImageSettings(max_side=64))
KEYS = [f"{number:08x}" + "0" * 24 for number in (0, 1, 2**32 - 1)]


def prompt(**changed: Any) -> Prompt:
    fields: dict[str, Any] = {"row": 0, "key": KEYS[0], "where": "d:1"}
    return Prompt(**fields | {"messages": ({"role": "user", "content": "What?"},)} | changed)


def png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(encoded, "PNG")
    return encoded.getvalue()


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
    pending = prompt(messages=messages, images=images)
    request = build_request(pending, SETTINGS)
    assert request.messages[0] == messages[0]
    first, middle, last = orjson.loads(request.body("m"))["messages"][1]["content"]
    assert middle == {"type": "text", "text": "and"}
    sizes = []
    for part in (first, last):
        assert part["type"] == "image_url"
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(64, 32), (8, 8)]
    assert pending.messages == messages
    assert request.options == {"max_tokens": 16}


def test_an_image_is_changed_where_the_message_asks_for_it() -> None:
    plain, changed = {"type": "image", "image": 0}, {"type": "image", "image": 0, "change": "paler"}
    message = {"role": "user", "content": [plain, changed]}
    pending = prompt(messages=(message,), images=(ImageRef(data=png(8, 8)),))
    assert images_at_once(pending, SETTINGS) is None  # it has to be decoded, in another thread
    request = build_request(pending, SETTINGS)
    first, second = (part["image_url"]["url"].data for part in request.messages[0]["content"])
    assert first == png(8, 8)
    assert Image.open(io.BytesIO(first)).size == Image.open(io.BytesIO(second)).size
    assert Image.open(io.BytesIO(first)).getpixel((0, 0)) == (255, 0, 0)
    assert Image.open(io.BytesIO(second)).getpixel((0, 0)) != (255, 0, 0)
    again = build_request(prompt(messages=(message,), images=pending.images), SETTINGS)
    assert again.messages[0]["content"][1]["image_url"]["url"].data is second  # made once
    plain_only = {"role": "user", "content": [plain]}
    assert images_at_once(replace(pending, messages=(plain_only,)), SETTINGS) is not None


def test_a_prompt_with_a_problem_is_not_sent() -> None:
    with pytest.raises(RowError, match="no image"):
        build_request(prompt(problem=Problem(Kind.NO_IMAGE, "no image")), SETTINGS)


def seed(key: str, base: int | None = 42, attempt: int = 0, *, unguided: bool = False) -> Any:
    settings = replace(SETTINGS, options={"seed": base})
    request = build_request(prompt(key=key), settings, attempt, unguided=unguided)
    return request.options["seed"]


def test_a_seed_depends_on_the_row_and_the_attempt() -> None:
    seeds = [seed(key) for key in KEYS]
    assert len(set(seeds)) == 3
    assert seeds == [seed(key) for key in KEYS]
    assert all(0 <= value < 2**31 for value in seeds)
    assert seed(KEYS[0], 43) != seeds[0]
    assert len({seed(KEYS[0], attempt=attempt) for attempt in range(3)}) == 3
    assert seed(KEYS[0], None) is None


def test_an_unguided_request_is_free_in_its_form_and_has_a_seed_of_its_own() -> None:
    guides = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a+"}}
    options = {"max_tokens": 16, "min_p": 0.1}
    settings = replace(SETTINGS, options=options | guides)
    assert build_request(prompt(), settings).options == options | guides
    assert build_request(prompt(), settings, unguided=True).options == options
    assert settings.options == options | guides
    attempts = range(4)
    seeds = {seed(KEYS[1], attempt=attempt) for attempt in attempts}
    unguided = {seed(KEYS[1], attempt=attempt, unguided=True) for attempt in attempts}
    assert len(seeds | unguided) == 8
    assert seed(KEYS[1], None, unguided=True) is None


def test_a_row_may_have_options_of_its_own() -> None:
    guide = {"response_format": {"type": "json_object"}}
    pending = prompt(options=guide)
    assert build_request(pending, SETTINGS).options == {"max_tokens": 16, **guide}
    assert build_request(pending, SETTINGS, unguided=True).options == {"max_tokens": 16}


def test_a_corrective_request_shows_the_images_again() -> None:
    pending = prompt(
        messages=({"role": "user", "content": [{"type": "image", "image": 0}]},),
        images=(ImageRef(data=png(8, 8)),),
    )
    request = build_request(pending, SETTINGS, correction=Correction("I like it.", "is odd"))
    first, *others = request.messages
    assert first["content"][0]["type"] == "image_url"
    assert [message["role"] for message in others] == ["assistant", "user"]
    assert request.options == {"max_tokens": 16, "temperature": 1.0}


@pytest.mark.parametrize(
    ("before", "after"), [(0, 0.5), (0.3, 0.6), (0.7, 1.0), (1.0, 1.0), (1.6, 1.0), (None, 1.0)]
)
def test_the_temperature_of_a_corrective_request_is_raised_within_limits(
    before: float | None, after: float
) -> None:
    assert corrective_temperature(before) == after
