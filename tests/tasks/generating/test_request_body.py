"""The body of a request: images are spliced into it, and no text can pass for one."""

import base64
import io
import json
from typing import Any

import orjson
import pytest
from PIL import Image
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings, build_request
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import ImageRef, Prompt

OPTIONS = {"max_tokens": 16, "temperature": 0.7, "stop": ["\n\n"]}


def encoded(kind: str, colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, kind)
    return file.getvalue()


FILES = [encoded("PNG", "red"), encoded("JPEG", "blue"), encoded("PNG", "green")]
URIS = [
    f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    for kind, data in zip(("png", "jpeg", "png"), FILES, strict=True)
]


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": number}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def as_sent(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": URIS[part["image"]]}}


def expected(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The same body from plain JSON values."""
    plain = [
        {**message, "content": [as_sent(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
    return {"model": "m", "messages": plain, **OPTIONS}


SYSTEM = {"role": "system", "content": "Look."}

CONVERSATIONS = {
    "one": [SYSTEM, user(image(0), text("What?"))],
    "several": [user(text("First"), image(2), text("and"), image(0), image(1))],
    "repeated": [user(image(1), image(1), text("Same?")), user(image(1))],
    "examples": [
        SYSTEM,
        user(image(1), text("Ask")),
        {"role": "assistant", "content": "Question: ...\nAnswer: ..."},
        user(image(0), text("Ask")),
    ],
    "none": [{"role": "user", "content": "What?"}],
}

ODD = {
    "a data URI": URIS[0],
    "a part": json.dumps(image(0)),
    "a part as it is sent": json.dumps(as_sent(image(1))),
    "the end of a body": '"}}]}],"max_tokens":1}',
    "escapes": '"\\ \\u0000 \\" \x00\x1f\x7f\t\r\n',
    "separators": "\u2028\u2029\ufeff",
    "other planes": "\U0001f600 é 中文 \uffff",
    "names": "Fragment(b'x') {0} %s $url __image_0__",
}


def body(messages: list[dict[str, Any]]) -> bytes:
    images = tuple(ImageRef(data=data) for data in FILES)
    prompt = Prompt(0, "0" * 32, "d:1", messages=tuple(messages), images=images)
    with ImageReader() as reader:
        request = build_request(prompt, GenerationSettings(reader, OPTIONS))
    return request.body("m")


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_the_body_is_the_json_of_the_conversation(messages: list[dict[str, Any]]) -> None:
    sent = body(messages)
    assert json.loads(sent) == expected(messages)
    assert sent == orjson.dumps(expected(messages))


@pytest.mark.parametrize("words", ODD.values(), ids=ODD.keys())
def test_no_text_passes_for_an_image(words: str) -> None:
    messages = [
        {"role": "system", "content": words},
        user(text(words), image(0), text(words), image(1)),
    ]
    sent = body(messages)
    assert json.loads(sent) == expected(messages)
    assert sent == orjson.dumps(expected(messages))
