"""Batches are finished as they complete: a slow row holds nothing but its own batch."""

import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_imageqa import Limits, image_qa
from prefect_imageqa.flows import batches
from prefect_imageqa.flows.batches import MAX_EMBEDDED_BYTES, _has_room
from prefect_imageqa.tasks.records import Batch, ImageRef, Kind, Problem, Prompt


def write_rows(drawn: Path, texts: list[str]) -> str:
    """A dataset about one image, with a text for each row."""
    rows = [{"image": "images/000.png", "conversation": text} for text in texts]
    (drawn / "rows.json").write_text(json.dumps(rows))
    return str(drawn / "rows.json")


def stored_rows(output: Path) -> int:
    """How many parts there are."""
    return len(list(output.glob("pairs/parts/*/*.parquet")))


def test_a_slow_row_holds_only_its_own_batch(start_stub: Any, drawn: Path, tmp_path: Path) -> None:
    stub, slow = start_stub(latency=0.01), 12.0
    texts = [f"STUB slow {slow} first" if row == 5 else f"row {row}" for row in range(400)]
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            seen.append((stub.stats()["requests"], stored_rows(tmp_path / "out")))

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.monotonic()
    summary = image_qa(
        write_rows(drawn, texts),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=16, max_in_flight=16),
    )
    seconds = time.monotonic() - started
    done.set()
    watching.join()
    assert (summary.ok, summary.requests) == (400, 400)
    # All but the slow row were asked, and all but its batch stored, long before it was answered.
    answered = [look for look, (requests, _) in enumerate(seen) if requests == 400]
    stored = [look for look, (_, parts) in enumerate(seen) if parts == 24]
    assert answered
    assert stored
    assert len(seen) - answered[0] > 20
    assert len(seen) - stored[0] > 10
    assert slow < summary.seconds < slow + 3
    assert seconds < slow + 12


def test_rows_that_are_slow_here_and_there_cost_no_more_than_the_slowest(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    stub = start_stub(latency=0.01)
    texts = [f"STUB slow 2 row {row}" if row % 40 == 7 else f"row {row}" for row in range(800)]
    summary = image_qa(
        write_rows(drawn, texts),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=32, max_in_flight=48),
    )
    assert (summary.ok, summary.requests) == (800, 800)
    # One after the other, the 20 batches with a slow row each would take 40 s.
    assert summary.seconds < 10


def test_what_is_stored_out_of_order_is_exported_in_order(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    stub = start_stub()
    texts = [f"STUB slow {1.5 - row / 10} {row}" if row < 12 else f"{row}" for row in range(24)]
    image_qa(
        write_rows(drawn, texts),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=2),
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "qa.jsonl").read_text().splitlines()]
    assert [row["conversation"] for row in rows] == texts


def test_batches_that_only_wait_are_bounded(
    start_stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches.run_batches, "__defaults__", (4,))
    stub = start_stub()
    texts = [f"STUB slow 2 {row}" if row % 5 == 0 else f"{row}" for row in range(60)]
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            requests = stub.stats()["requests"]
            most = max(most, requests - 5 * stored_rows(tmp_path / "out"))

    watching = threading.Thread(target=watch)
    watching.start()
    summary = image_qa(
        write_rows(drawn, texts),
        str(tmp_path / "out"),
        endpoint=stub.url,
        limits=Limits(batch_size=5, max_in_flight=64),
    )
    done.set()
    watching.join()
    assert summary.ok == 60
    assert most <= 4 * 5
    assert summary.seconds > 3 * 2 - 1  # 12 batches with a slow row, 4 at a time


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
        (8, 15, 1, True),  # a batch is made ready before it is needed
        (8, 16, 1, False),
        (-3, 24, 1, False),
        (0, 23, 3, True),
        (0, 0, 4, False),  # as many as are allowed
    ],
)
def test_room_for_another_batch(unsent: int, busy: int, batch_count: int, room: bool) -> None:
    asked: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(
        max_in_flight=16, stats=SimpleNamespace(in_flight=busy - busy // 3, queued=busy // 3)
    )
    running = [in_flight(unsent, ImageRef("a.png")) for _ in range(batch_count)]
    assert _has_room(running, asked, client, max_batches=4) is room


def test_a_slow_store_bounds_what_is_asked() -> None:
    asked: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(max_in_flight=16, stats=SimpleNamespace(in_flight=0, queued=0))
    waiting, answered = (in_flight(0, ImageRef("a.png")) for _ in range(2))
    answered.replies = {str(row): Problem(Kind.EMPTY, "") for row in range(8)}
    assert _has_room([waiting] * 8, asked, client, max_batches=64)
    assert _has_room([answered] * 2, asked, client, max_batches=64)
    assert not _has_room([answered] * 3, asked, client, max_batches=64)


def test_embedded_images_bound_the_batches_in_flight() -> None:
    asked: Any = SimpleNamespace(batch_size=8)
    client: Any = SimpleNamespace(max_in_flight=16, stats=SimpleNamespace(in_flight=0, queued=0))
    small, large = (in_flight(0, ImageRef(data=bytes(size))) for size in (100, 1 << 20))
    assert small.embedded_bytes == 800
    assert _has_room([small] * 8, asked, client, max_batches=64)
    full = [large] * (MAX_EMBEDDED_BYTES // (8 << 20))
    assert not _has_room(full, asked, client, max_batches=128)
    assert _has_room(full[:-1], asked, client, max_batches=128)


def test_a_dataset_that_breaks_off_is_told_after_what_came_before(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    texts = write_rows(drawn, [f"row {row}" for row in range(40)])
    cut = drawn / "cut.json"
    shutil.copy(texts, cut)
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.8)])
    with pytest.raises(Exception, match="cannot be read after"):
        image_qa(str(cut), str(tmp_path / "out"), endpoint=stub.url, limits=Limits(batch_size=4))
    assert stored_rows(tmp_path / "out") >= 7
