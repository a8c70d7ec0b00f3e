import json

import pytest
from prefect_imageqa import ObjectStore
from prefect_imageqa.flows.workers.channel import Channel
from prefect_imageqa.flows.workers.messages import (
    BatchResult,
    HandedBatch,
    Work,
    WorkerStatus,
    error_of,
    numbers,
)
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.tasks.errors import EndpointLostError, ObjectCorruptedError
from prefect_imageqa.tasks.generating.batching import make_batch
from prefect_imageqa.tasks.records import Asked, ImageRef, Kind, Problem, Prompt, ReplyForm

KEY = "5a" * 32
WORK = Work(
    "s3://bucket/replies", "pairs/parts/x", "qa_pairs", True, "Ask.", {"seed": 7}, True, True
)
PROMPTS = (
    Prompt(
        row=3,
        key="ab" * 16,
        where="data.jsonl:4",
        messages=(
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": 0, "change": {"rotate": 2}},
                    {"type": "text", "text": "Ünïcode \U0001f600 \x00"},
                ],
            },
        ),
        images=(ImageRef("/images/caf\udce9.png", version="12 34"), ImageRef(data=b"\xff\x00png")),
        asked=Asked("Which?", "mix@2", ReplyForm.MULTIPLE_CHOICE, "counting", "French"),
        options={"response_format": {"type": "json_object"}},
    ),
    Prompt(row=4, key="cd" * 16, where="?", problem=Problem(Kind.NO_IMAGE, "no image", 404, 2)),
)


@pytest.fixture
def channel(tmp_path_factory: pytest.TempPathFactory) -> Channel:
    return Channel(ObjectStore(uri=str(tmp_path_factory.mktemp("out"))), KEY)


def test_a_batch_is_the_same_at_the_worker(channel: Channel) -> None:
    batch = make_batch(5, PROMPTS, (0, 2), cache_buster="again", label="answers")
    channel.write("a", HandedBatch.of(batch, WORK))
    handed = HandedBatch.from_plain(channel.read("a"))
    got = handed.batch()
    assert handed.work == WORK
    assert got.prompts == PROMPTS
    assert [image.version for image in got.prompts[0].images] == ["12 34", ""]
    assert (got.key, got.number, got.attempts) == (batch.key, 5, (0, 2))
    assert (got.cache_buster, got.label, str(got)) == ("again", "answers", "answers-5")


def test_a_status_is_the_same_at_the_run(channel: Channel) -> None:
    status = WorkerStatus(1.5, "host 12", 64, ClientStats(requests=9, notes=("a",)), {3: 8}, ("b",))
    channel.write("a", status)
    read = WorkerStatus.from_plain(channel.read("a"))
    assert (read.beat, read.process, read.max_in_flight, read.unsent) == (
        1.5,
        "host 12",
        64,
        {3: 8},
    )
    assert (read.stats.requests, list(read.notes)) == (9, ["b"])


def test_an_error_ends_the_run_as_it_would_end_it_without_workers() -> None:
    BatchResult("part", 1.0).check()
    with pytest.raises(EndpointLostError, match=r"^no server answers$"):
        BatchResult(error=error_of(EndpointLostError("no server\nanswers"))).check()
    # Only errors for users are raised by name: a message never names code to be called.
    with pytest.raises(RuntimeError, match="ValueError: odd"):
        BatchResult(error=error_of(ValueError("odd"))).check()


def test_what_somebody_else_has_written_is_not_taken(channel: Channel) -> None:
    channel.write("batch-1", {"number": 1})
    signed = channel.store.read("batch-1")
    for forged in (signed[:-1] + b"\x00", signed[32:], b"", json.dumps({"number": 1}).encode()):
        channel.store.write("batch-2", forged)
        with pytest.raises(ObjectCorruptedError, match="batch-2 was not written by this run"):
            channel.read("batch-2")
    # A message is signed together with its name.
    channel.store.write("batch-3", signed)
    with pytest.raises(ObjectCorruptedError):
        channel.read("batch-3")
    with pytest.raises(ObjectCorruptedError):
        Channel(channel.store, "6b" * 32).read("batch-1")


def test_numbers_of_names() -> None:
    names = ["w/1/batch-3", "w/1/batch-12", "w/1/result-3", "w/1/batch-x", "w/12/batch-4"]
    assert numbers(names, "w/1/batch-") == {3, 12}
