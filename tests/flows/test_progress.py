"""The progress of a run as people read it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Thread
from types import SimpleNamespace

import pytest
from prefect_imageqa.flows import progress as progress_module
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.tasks.runs.run_record import LINE_LENGTH, MAX_NOTES, RunRecord
from prefect_imageqa.tasks.storing.ledger import RowStatus


@dataclass
class Clock:
    """A clock that tests move; it starts at 1000 s."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # Not in the module `time`: the event loops of other threads would sleep for hours.
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock))
    return clock


@dataclass
class Waiting:
    notes: tuple[str, ...] = ()


def test_progress_is_one_sentence(clock: Clock) -> None:
    progress, stats = RunProgress(), ClientStats(completions=500)  # of an earlier pass
    assert str(progress) == progress.headline == "starting"
    progress.begin(stats, 6000)
    progress.attempted = 6000
    assert str(progress) == "0 of 6,000"
    for _ in range(57):
        clock.now += 1
        stats.completions += 58
        progress.add_skipped(RowStatus.ANSWERED)
        str(progress)
    assert str(progress) == "3,363 of 6,000, 58 rows/s, 45 s left"
    assert progress.headline == "45 s left: 3,363 of 6,000, 58 rows/s"
    progress.total = 34_683
    assert progress.headline.startswith("9 min left: ")
    progress.total = None
    assert str(progress) == "3,363 rows, 58 rows/s"


def test_progress_tells_that_nothing_happens(clock: Clock) -> None:
    progress, stats = RunProgress(), ClientStats()
    progress.begin(stats, 6000)
    progress.attempted = 256
    clock.now += 20
    assert str(progress) == "0 of 6,000, no row done for 20 s"
    stats.completions = 100
    assert progress.headline == "20 min left: 100 of 6,000, 5.0 rows/s"
    clock.now += 2640
    assert str(progress) == "100 of 6,000, no row done for 44 min"
    assert progress.headline == "no row done for 44 min: 100 of 6,000"
    progress.total = 100  # what remains is to export the answers
    assert str(progress) == "100 of 100"
    assert progress.is_done


def test_second_replies_to_a_row_do_not_count_as_rows() -> None:
    progress, stats = RunProgress(), ClientStats()
    progress.begin(stats, 100)
    progress.attempted = 60
    stats.completions = 65  # some rows of a batch in flight have been asked again
    assert progress.done == 60
    progress.ok, progress.corrections, progress.corrected = 40, 15, 10
    assert progress.done == 50
    counts = progress.counts()
    assert (counts.corrections, counts.corrected) == (15, 10)
    progress.begin(stats, 100)
    assert progress.counts().corrections == 0


def test_a_retried_run_begins_again(clock: Clock) -> None:
    progress, stats = RunProgress(), ClientStats()
    progress.begin(stats, 10)
    stats.completions, progress.finished = 10, True
    progress.begin(stats, 10)
    assert (progress.done, progress.is_done) == (0, False)


def test_duplicates_are_counted(clock: Clock) -> None:
    progress = RunProgress()
    progress.begin(ClientStats(), 5)
    for status in (RowStatus.ANSWERED, RowStatus.DUPLICATE, RowStatus.DUPLICATE):
        progress.add_skipped(status)
    progress.ok = 2
    counts = progress.counts()
    assert (counts.rows, counts.reused, counts.duplicates) == (3, 1, 2)
    assert progress.done == 5


def test_notes_of_all_sources_are_shown_while_they_are_watched() -> None:
    progress, store = RunProgress(), Waiting(("S3 does not answer",))
    twin, stats = Waiting(store.notes), ClientStats(notes=("gpu-1 does not answer",))
    with progress.watching(store), progress.watching(twin), progress.watching(stats):
        assert progress.notes == ("S3 does not answer", "gpu-1 does not answer")
        progress.begin(stats, 1)
        progress.end()
        stats.notes = ("gpu-2 does not answer",)
        assert progress.notes == ("S3 does not answer", "gpu-2 does not answer")
    assert not progress.notes


def test_notes_fit_into_a_record(record_of: Callable[..., RunRecord]) -> None:
    hostile = "S3 says \x1b[2J\u202e\n\ud83d no"
    source = Waiting((hostile, "x" * 1000, *map(str, range(20))))
    progress = RunProgress()
    with progress.watching(source):
        notes = progress.notes
    assert notes[0] == "S3 says [2J no"
    assert notes[1] == "x" * (LINE_LENGTH - 1) + "…"
    assert notes[-1] == "and 18 more"
    assert len(notes) == MAX_NOTES
    assert record_of(notes=notes).notes == notes


def test_the_time_of_the_last_reply_is_that_of_the_client() -> None:
    progress, stats = RunProgress(), ClientStats()
    progress.begin(stats, 10)
    assert progress.last_reply is None
    progress.end()  # a further pass goes on with the same client
    stats.last_completion = time.monotonic() - 90
    assert progress.last_reply
    assert (datetime.now(UTC) - progress.last_reply).total_seconds() == pytest.approx(90, abs=60)


@pytest.mark.parametrize(("unit", "total"), [("rows", 3), ("questions", None)])
def test_rows_that_are_counted_late_are_not_the_total_of_another_pass(
    unit: str, total: int | None
) -> None:
    progress, table = RunProgress(), SimpleNamespace(rows=lambda: range(3))
    progress.begin(ClientStats(), None)
    counting = Thread(target=progress.count, args=(table,))
    counting.start()
    progress.begin(ClientStats(), None, unit)
    progress.needs_total.set()
    counting.join()
    assert progress.total == total
