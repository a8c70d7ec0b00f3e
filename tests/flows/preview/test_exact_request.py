"""Requests without the data of their images."""

import hashlib
import io
from pathlib import Path

from PIL import Image
from prefect_imageqa.flows.preview.exact_request import request_of, without_images
from prefect_imageqa.serving.types import ChatRequest
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Asked, ImageRef, Kind, Problem, Prompt

CONTENT = [{"type": "image", "image": 0}, {"type": "text", "text": "Which?"}]


def test_an_image_is_described() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    data = file.getvalue()
    prompt = Prompt(
        3,
        "0" * 32,
        "d.json[3]",
        ({"role": "user", "content": CONTENT},),
        (ImageRef(data=data),),
        asked=Asked(style="short@1"),
    )
    with ImageReader() as reader:
        shown = request_of(prompt, "m", GenerationSettings(reader, {"seed": 7, "max_tokens": 9}))
    digest = hashlib.sha256(data).hexdigest()[:12]
    url = f"data:image/png;base64,... ({len(data) / 1e3:.1f} kB, 64x48, sha256 {digest})"
    assert shown == {
        "row": 3,
        "where": "d.json[3]",
        "style": "short@1",
        "key": "0" * 32,
        "request": {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": url}}, CONTENT[1]],
                }
            ],
            "seed": 7,
            "max_tokens": 9,
        },
    }


def test_a_row_that_is_not_sent_has_its_problem(tmp_path: Path) -> None:
    problem = Problem(Kind.BAD_ROW, "no such column")
    missing = (ImageRef(str(tmp_path / "none.png")),)
    message = ({"role": "user", "content": CONTENT},)
    with ImageReader() as reader:
        settings = GenerationSettings(reader)
        refused = request_of(Prompt(1, "k", "d.json[1]", problem=problem), "m", settings)
        lost = request_of(Prompt(2, "k", "d.json[2]", message, missing), "m", settings)
    assert refused == {"row": 1, "where": "d.json[1]", "problem": "bad_row: no such column"}
    assert lost["problem"].startswith("image_missing: ")


def test_texts_stay_as_they_are() -> None:
    messages = [{"role": "system", "content": "data:image/png;base64,AAAA"}]
    assert without_images(ChatRequest(messages, {}), "m") == {"model": "m", "messages": messages}
