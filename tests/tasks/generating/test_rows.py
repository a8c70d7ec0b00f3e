"""Requests are built where that costs least: in other threads only what takes a while."""

import gc
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.rows import complete_rows
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt, Reply
from servers import StubServer


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "JPEG")
    return file.getvalue()


def about(number: int, image: ImageRef) -> Prompt:
    messages = ({"role": "user", "content": [{"type": "image", "image": 0}]},)
    return Prompt(number, f"{number:032x}", f"d:{number}", messages=messages, images=(image,))


def batch(*images: ImageRef) -> Batch:
    prompts = tuple(about(number, image) for number, image in enumerate(images))
    return Batch(1, "b" * 32, prompts, (0,) * len(prompts))


@pytest.fixture
def client(stub: StubServer) -> Iterator[ChatClient]:
    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub"), max_in_flight=4) as client:
        yield client


def complete(pending: Batch, client: ChatClient) -> list[Reply]:
    with ImageReader() as reader:
        complete_rows(pending.prompts, pending, client, GenerationSettings(reader), pending.replies)
    return [pending.replies[prompt.key] for prompt in pending.prompts]


def test_only_images_that_must_be_decoded_are_prepared_in_other_threads(
    client: ChatClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: list[ImageRef] = []
    prepare = ImageReader.prepare

    def note(reader: ImageReader, ref: ImageRef, settings: ImageSettings) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        elsewhere.append(ref)
        return prepare(reader, ref, settings)

    monkeypatch.setattr(ImageReader, "prepare", note)
    (tmp_path / "small.jpg").write_bytes(jpeg(64))
    (tmp_path / "large.jpg").write_bytes(jpeg(1100))
    small, large = (ImageRef(path=str(tmp_path / name)) for name in ("small.jpg", "large.jpg"))
    broken, embedded = ImageRef(data=b"<html>"), ImageRef(data=jpeg(32))
    replies = complete(batch(small, large, embedded, broken, small), client)
    assert elsewhere == [large]
    assert [type(reply) for reply in replies] == [
        *[Completion] * 3,
        Problem,
        Completion,
    ]
    assert isinstance(replies[3], Problem)
    assert replies[3].kind is Kind.NOT_AN_IMAGE


def test_a_slow_image_keeps_no_other_row_waiting(
    client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = batch(ImageRef(path="s3://far/1.jpg"), *[ImageRef(data=jpeg(32))] * 8)
    others_answered = threading.Event()
    prepare_locally = ImageReader.prepare

    def wait(reader: ImageReader, ref: ImageRef, settings: ImageSettings) -> Any:
        assert others_answered.wait(30)
        return prepare_locally(reader, ImageRef(data=jpeg(16)), settings)

    class Noting(dict[str, Reply]):
        def __setitem__(self, key: str, reply: Reply) -> None:
            super().__setitem__(key, reply)
            if len(self) == 8:
                others_answered.set()

    monkeypatch.setattr(ImageReader, "prepare", wait)
    pending.replies = Noting()
    replies = complete(pending, client)
    assert all(isinstance(reply, Completion) for reply in replies)
    assert list(pending.replies)[-1] == pending.prompts[0].key


def test_rows_leave_nothing_to_the_garbage_collector(client: ChatClient) -> None:
    """It runs rarely, and a body has as many bytes as its images.

    Once in three times is enough: other threads of the process may leave something behind.
    """
    complete(batch(ImageRef(data=jpeg(32))), client)
    found: list[int] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        while len(found) < 3 and min(found, default=50) >= 50:
            complete(batch(*[ImageRef(data=jpeg(32))] * 100), client)
            found.append(gc.collect())
    finally:
        gc.enable()
        gc.unfreeze()
    assert min(found) < 50
