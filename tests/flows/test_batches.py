"""Batches are finished as they complete: a slow row delays nothing but its own batch."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_imageqa import Limits, image_qa
from prefect_imageqa.flows import batches
from prefect_imageqa.flows.batches import (
    MAX_EMBEDDED_BYTES,
    _has_room,
    row_chunks,
    run_batches,
)
from prefect_imageqa.flows.open_pass import OpenPass
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.flows.task_runs import MAX_BATCHES, MAX_ROWS
from prefect_imageqa.flows.workers.open_crew import rows_per_batch
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.concurrency import MAX_CHUNK_BYTES
from prefect_imageqa.tasks.generating.chat_requests import GenerationSettings
from prefect_imageqa.tasks.generating.generate import BATCH_RETRIES
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.prompting.keys import KEY_LENGTH
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt, Row
from prefect_imageqa.tasks.runs.workers import MAX_WORKERS, Workers
from prefect_imageqa.tasks.storing.ledger import RowStatus

WriteRows = Callable[[list[str]], str]


def stored_parts(output: Path) -> int:
    return len(list(output.glob("pairs/parts/*/*.parquet")))


@contextmanager
def polling(check: Callable[[], object], interval: float = 0.05) -> Iterator[None]:
    """Call `check` repeatedly while the block runs."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(interval):
            check()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_slow_rows_hold_up_only_their_own_batches(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    """Five slow rows are answered only after all other rows are sent, and other batches stored."""
    stub, output, answer = start_stub(latency=0.01), tmp_path / "out", tmp_path / "answer"
    slow = {5, 6, 100, 200, 399}  # in 4 of the 25 batches
    texts = [f"STUB until {answer} {row}" if row in slow else f"row {row}" for row in range(400)]
    reached: list[tuple[int, int]] = []
    deadline = time.monotonic() + 120

    def check() -> None:
        state = (stub.stats()["requests"], stored_parts(output))
        if not answer.exists() and (state == (400, 21) or time.monotonic() > deadline):
            reached.append(state)
            answer.touch()

    with polling(check):
        summary = image_qa(
            write_rows(texts),
            str(output),
            endpoint=stub.url,
            limits=Limits(batch_size=16, max_in_flight=16),
        )
    assert reached == [(400, 21)]
    assert (summary.ok, summary.requests) == (400, 400)


def test_rows_stored_out_of_order_are_exported_in_order(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    stub = start_stub()
    texts = [f"STUB slow {0.75 - row / 20} {row}" if row < 12 else f"{row}" for row in range(24)]
    limits = Limits(batch_size=2)
    image_qa(write_rows(texts), str(tmp_path / "out"), endpoint=stub.url, limits=limits)
    rows = [json.loads(line) for line in (tmp_path / "out" / "qa.jsonl").read_text().splitlines()]
    assert [row["conversation"] for row in rows] == texts


def test_the_number_of_waiting_batches_is_limited(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.run_batches, "__defaults__", (4, None))
    stub, output, slow = start_stub(), tmp_path / "out", 0.6
    texts = [f"STUB slow {slow} {row}" if row % 5 == 0 else f"{row}" for row in range(60)]
    unstored: list[int] = []

    def check() -> None:
        unstored.append(stub.stats()["requests"] - 5 * stored_parts(output))

    with polling(check):
        summary = image_qa(
            write_rows(texts),
            str(output),
            endpoint=stub.url,
            limits=Limits(batch_size=5, max_in_flight=64),
        )
    assert summary.ok == 60
    assert max(unstored) <= 4 * 5
    # Twelve batches with a slow row each, four at a time.
    assert summary.seconds > 3 * slow - 0.1


def in_flight(unsent: int, image: ImageRef) -> Batch:
    batch = Batch(
        1, "b", tuple(Prompt(row, "k", "d", images=(image,)) for row in range(8)), (0,) * 8
    )
    batch.unsent = unsent
    return batch


@pytest.mark.parametrize(
    ("unsent", "busy", "batch_count", "room"),
    [
        (0, 0, 0, True),
        (0, 15, 1, True),  # a slot is free, and nothing fills it
        (8, 15, 1, True),  # one batch is prepared before it is needed
        (8, 16, 1, False),
        (-3, 24, 1, False),
        (0, 23, 3, True),
        (0, 0, 4, False),  # the maximum number
    ],
)
def test_room_for_another_batch(unsent: int, busy: int, batch_count: int, room: bool) -> None:
    current: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(
        max_in_flight=16, stats=SimpleNamespace(in_flight=busy - busy // 3, queued=busy // 3)
    )
    running = [in_flight(unsent, ImageRef("a.png")) for _ in range(batch_count)]
    assert _has_room(running, current, client, 4) is room


def test_a_slow_store_limits_what_is_sent() -> None:
    current: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(max_in_flight=16, stats=SimpleNamespace(in_flight=0, queued=0))
    waiting, answered = (in_flight(0, ImageRef("a.png")) for _ in range(2))
    answered.replies = {str(row): Problem(Kind.EMPTY, "") for row in range(8)}
    assert _has_room([waiting] * 8, current, client, 64)
    assert _has_room([answered] * 2, current, client, 64)
    assert not _has_room([answered] * 3, current, client, 64)


def test_embedded_images_limit_the_batches_in_flight() -> None:
    current: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(max_in_flight=16, stats=SimpleNamespace(in_flight=0, queued=0))
    small, large = (in_flight(0, ImageRef(data=bytes(size))) for size in (100, 1 << 20))
    assert small.embedded_bytes == 800
    assert _has_room([small] * 8, current, client, 64)
    full = [large] * (MAX_EMBEDDED_BYTES // (8 << 20))
    assert not _has_room(full, current, client, 128)
    assert _has_room(full[:-1], current, client, 128)


def test_rows_limit_the_batches_in_flight() -> None:
    current: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(max_in_flight=16, stats=SimpleNamespace(in_flight=0, queued=0))
    slow = [in_flight(0, ImageRef("a.png"))] * (MAX_ROWS // 8)
    assert not _has_room(slow, current, client, len(slow) + 1)
    assert _has_room(slow[1:], current, client, len(slow) + 1)


@pytest.mark.parametrize("workers", [2, 46, MAX_WORKERS])
def test_there_is_room_for_two_batches_for_each_worker(workers: int) -> None:
    told = Workers(workers=workers, engine="processes")
    size = rows_per_batch(Limits(), told)
    prompts = tuple(Prompt(row=row, key=f"{row}", where="?") for row in range(size))
    most = [Batch(1, "key", prompts, (0,) * size) for _ in range(2 * workers - 1)]
    current: Any = SimpleNamespace(batch_size=size)
    crew: Any = SimpleNamespace(max_in_flight=10**6, stats=SimpleNamespace(in_flight=0, queued=0))
    assert _has_room(most, current, crew, MAX_BATCHES)


def pending_pass(batch_size: int) -> OpenPass:
    """A pass in which no row is finished."""
    nothing: Any = None
    ledger: Any = SimpleNamespace(
        statuses=lambda keys: [RowStatus.PENDING for _ in keys],
        attempts=lambda keys: [0 for _ in keys],
    )
    progress: Any = SimpleNamespace(batches=0, attempted=0, retried=0)
    prompting: Any = SimpleNamespace(label="")
    return OpenPass("", nothing, prompting, nothing, nothing, ledger, progress, batch_size)


def batch_sizes(current: OpenPass, rows: int, pilot: int = 0) -> list[int]:
    prompts = (Prompt(row, f"{row:0{KEY_LENGTH}x}", "d") for row in range(rows))
    return [len(batch.prompts) for batch in current.batches([prompts], pilot)]


@pytest.mark.parametrize(
    ("batch_size", "rows", "expected"),
    [
        (1024, 3000, [128, 256, 512, 1024, 1024, 56]),
        (300, 1000, [128, 256, 300, 300, 16]),
        (100, 250, [100, 100, 50]),
        (1024, 20, [20]),
    ],
)
def test_batches_start_small(batch_size: int, rows: int, expected: list[int]) -> None:
    assert batch_sizes(pending_pass(batch_size), rows) == expected


def test_a_pilot_shares_no_batch_with_the_rows_after_it() -> None:
    assert batch_sizes(pending_pass(1024), 1000, pilot=200) == [128, 72, 128, 256, 416]


def test_how_many_task_runs_a_long_run_has() -> None:
    """Each costs Prefect's server up to 30 ms: two for a batch, one for each chunk of prompts."""
    rows, size = 20_000, Limits().batch_size
    chunks = row_chunks((Row(row, {}, "d") for row in range(rows)), size)
    assert sum(1 for _ in chunks) + 2 * len(batch_sizes(pending_pass(size), rows)) == 57


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_batch_is_bounded_by_its_memory(kind: str) -> None:
    def prompt(row: int) -> Prompt:
        name = f"{row:0{KEY_LENGTH}x}"
        if kind == "image":
            return Prompt(row, name, "d", images=(image,))
        return Prompt(row, name, "d", messages=({"role": "user", "content": [text]},))

    image = ImageRef(data=bytes(MAX_CHUNK_BYTES // 3 + 1))
    text = {"type": "text", "text": "x" * (MAX_CHUNK_BYTES // 3 + 1)}
    current = pending_pass(batch_size=8)
    batches_of = [len(batch.prompts) for batch in current.batches([map(prompt, range(7))])]
    assert batches_of == [3, 3, 1]
    assert (current.progress.batches, current.progress.attempted) == (3, 7)


def test_the_answered_part_of_a_batch_knows_what_was_corrected() -> None:
    nothing: Any = None
    ledger: Any = SimpleNamespace(attempts=lambda keys: [0 for _ in keys])
    settings = GenerationSettings(
        nothing, fault_of=lambda reply, _: reply.text.partition("usable")[0]
    )
    progress = RunProgress()
    prompting: Any = SimpleNamespace(label="")
    current = OpenPass("", nothing, prompting, settings, nothing, ledger, progress, batch_size=8)
    prompts = tuple(Prompt(row, f"{row:032x}", f"d:{row}") for row in range(3))
    batch = Batch(1, "b" * 32, prompts, (0, 0, 0), corrections=2)
    assert current.answered_part(batch) is None
    batch.replies[prompts[1].key] = Completion("usable", "stop", 1, 1, 0.1, "stub")
    batch.replies[prompts[2].key] = Completion("to be corrected", "stop", 1, 1, 0.1, "stub")
    batch.corrected[prompts[1].key] = "unusable"
    part = current.answered_part(batch)
    assert part is not None
    assert (part.prompts, part.corrections) == (prompts[1:2], 2)
    assert part.corrected == batch.corrected


def test_a_truncated_dataset_fails_after_the_rows_before_are_stored(
    stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    dataset = Path(write_rows([f"row {row}" for row in range(40)]))
    data = dataset.read_bytes()
    dataset.write_bytes(data[: int(len(data) * 0.8)])
    limits = Limits(batch_size=4)
    with pytest.raises(Exception, match="cannot be read after"):
        image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, limits=limits)
    assert stored_parts(tmp_path / "out") == 8


def test_an_unexpected_error_is_retried_and_costs_no_reply(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, attempts = start_stub(), []
    prepare = ImageReader.prepare_at_once

    def failing(reader: ImageReader, ref: ImageRef, settings: ImageSettings) -> Any:
        if str(ref.path).endswith("odd.png"):
            attempts.append(ref)
            raise RuntimeError("nobody has foreseen this")
        return prepare(reader, ref, settings)

    monkeypatch.setattr(ImageReader, "prepare_at_once", failing)
    dataset = Path(write_rows([f"row {row}" for row in range(12)]))
    shutil.copy(dataset.with_name("red.png"), dataset.with_name("odd.png"))
    rows = json.loads(dataset.read_text())
    rows[7]["image"] = "odd.png"
    dataset.write_text(json.dumps(rows))
    limits = Limits(batch_size=8)
    with pytest.raises(RuntimeError, match="nobody has foreseen this"):
        image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, limits=limits)
    assert len(attempts) == 1 + BATCH_RETRIES
    assert stub.stats()["requests"] == 11
    monkeypatch.undo()
    again = image_qa(str(dataset), str(tmp_path / "out"), endpoint=stub.url, limits=limits)
    assert (again.ok, again.requests) == (12, 1)


class _Stopped(BaseException):
    """What a signal raises, at whatever place the program is."""


def test_a_signal_at_any_moment_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """While batches wait, above all: Python looks for signals where a loop jumps back."""
    stops: list[None] = []
    run: Any = SimpleNamespace(client=None, stop=lambda: stops.append(None))
    current: Any = SimpleNamespace(answered_part=lambda _: None)
    never_stored: Any = None
    monkeypatch.setattr(batches, "POLL_SECONDS", 0)
    monkeypatch.setattr(batches, "_has_room", lambda in_flight, *_: not in_flight)

    def raise_stopped(*_: object) -> None:
        raise _Stopped

    def generate(batch: Batch) -> "Future[None]":
        signal.setitimer(signal.ITIMER_REAL, 0.001 + len(stops) / 1_000_000)
        return Future()

    before = signal.signal(signal.SIGALRM, raise_stopped)
    try:
        for times in range(1, 301):
            batch = Batch(1, "key", (), ())
            with pytest.raises(_Stopped):
                run_batches(iter([batch]), generate, never_stored, current, run)
            assert len(stops) == times
    finally:
        signal.signal(signal.SIGALRM, before)
