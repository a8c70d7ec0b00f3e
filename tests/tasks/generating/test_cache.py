"""Completions are cached by Prefect as plain JSON, whatever their texts."""

from typing import Any

import pytest
from prefect import flow
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.concurrency import quote
from prefect_imageqa.tasks.generating import batch_cache, generate_batch
from prefect_imageqa.tasks.generating.batching import make_batch
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Asked, Prompt, Reply

ASKED = Asked("What is it?", "short@1")


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("where", "stored_where"), [("d:0", "d:0"), ("caf\udce9.png", "caf?.png")])
def test_a_batch_is_generated_once(where: str, stored_where: str, stub: Any, tmp_path: Any) -> None:
    reply = Completion("It is **é**.", "stop", 7, 3, 0.25, "stub")
    prompt = Prompt(0, "0" * 32, where, asked=ASKED)
    store = ObjectStore(uri=str(tmp_path)).saved()
    task = generate_batch.with_options(**batch_cache(store))

    @flow
    def run(client: ChatClient, known: dict[str, Reply]) -> Any:
        batch = make_batch(1, [prompt])
        batch.replies |= known
        settings = GenerationSettings(ImageReader())
        return task.submit(quote(batch), quote(client), quote(settings)).result()

    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        first: Any = run(quote(client), {prompt.key: reply})
        second: Any = run(quote(client), {})
        assert client.stats.requests == 0
    assert first.replies[0].reply == reply
    (stored,) = Completions.load(second).replies
    assert (stored.reply, stored.asked, stored.where) == (reply, ASKED, stored_where)
