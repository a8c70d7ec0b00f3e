"""Completions are cached as plain JSON, in records of Prefect, whatever their texts."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from prefect import flow, task
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.concurrency import quote
from prefect_imageqa.tasks.generating import CompletionsCache, generate_batch
from prefect_imageqa.tasks.generating.batching import make_batch
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.completions import Completions
from prefect_imageqa.tasks.generating.generate import complete_batch
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.object_store.prefect_results import RESULT_SERIALIZER
from prefect_imageqa.tasks.object_store.store import ObjectStore, load_store
from prefect_imageqa.tasks.records import Asked, Batch, Prompt

ASKED = Asked("What is it?", "short@1")
REPLY = Completion("It is **é**.", "stop", 7, 3, 0.25, "stub")


def answered(where: str = "d:0") -> Batch:
    """A batch of one row that has its reply already."""
    messages = ({"role": "user", "content": "What is it?"},)
    batch = make_batch(1, [Prompt(0, "0" * 32, where, messages, asked=ASKED)])
    batch.replies[batch.prompts[0].key] = REPLY
    return batch


@pytest.mark.parametrize(("where", "stored_where"), [("d:0", "d:0"), ("caf\udce9.png", "caf?.png")])
def test_what_is_written_is_read(where: str, stored_where: str, tmp_path: Path) -> None:
    cache, batch = CompletionsCache(ObjectStore(uri=str(tmp_path))), answered(where)
    assert cache.read(batch) is None
    cache.write(Completions.from_batch(batch))
    read = cache.read(batch)
    assert read is not None
    (stored,) = read.replies
    assert (stored.reply, stored.asked, stored.where) == (REPLY, ASKED, stored_where)


@pytest.mark.parametrize("damage", ["truncated", "of another batch", "another serializer"])
def test_a_corrupted_object_is_no_completion(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, batch = CompletionsCache(ObjectStore(uri=str(tmp_path))), answered()
    cache.write(Completions.from_batch(batch))
    file = tmp_path / batch.key
    if damage == "of another batch":
        batch = make_batch(1, batch.prompts, cache_buster="again")
        file = file.rename(tmp_path / batch.key)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        record = json.loads(file.read_bytes())
        record["metadata"]["serializer"] = {"type": "pickle"}
        file.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING):
        assert cache.read(batch) is None
    assert f"{file}: " in caplog.text
    assert "its rows are sent to the model again" in caplog.text


@pytest.mark.usefixtures("prefect_server")
def test_a_batch_is_generated_once_with_a_task_run_or_without(stub: Any, tmp_path: Path) -> None:
    settings = GenerationSettings(ImageReader())
    batch, again = (make_batch(1, answered().prompts) for _ in range(2))
    caches = [CompletionsCache(ObjectStore(uri=str(tmp_path / name))) for name in "ab"]

    @flow
    def run(client: ChatClient, cache: CompletionsCache) -> Any:
        return generate_batch(quote(batch), quote(client), quote(settings), quote(cache))

    with ChatClient(VLLMEndpoint(urls=[stub.url], model="stub")) as client:
        first = run(quote(client), quote(caches[0]))
        assert complete_batch(batch, client, settings, caches[0]) == first
        assert client.stats.requests == 1
        second = complete_batch(again, client, settings, caches[1])
        assert run(quote(client), quote(caches[1])) == second
        assert client.stats.requests == 2


@pytest.mark.usefixtures("prefect_server")
def test_prefect_reads_the_records_as_the_results_of_a_task(tmp_path: Path) -> None:
    ObjectStore(uri=str(tmp_path)).save("completions", overwrite=True)
    store, batch = load_store("completions"), answered()
    CompletionsCache(store).write(Completions.from_batch(batch))

    @task(
        cache_key_fn=lambda *_: batch.key,
        result_storage=store,
        result_serializer=RESULT_SERIALIZER,
    )
    def generate() -> object:
        raise AssertionError("its result is stored")

    @flow
    def run() -> dict[str, Any]:
        return cast("dict[str, Any]", generate())

    assert Completions.load(run()).replies[0].reply == REPLY
