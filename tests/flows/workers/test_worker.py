"""A worker on its own: how it ends, and what it says about batches that are gone."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import ObjectStore
from prefect_imageqa.flows.workers import worker
from prefect_imageqa.flows.workers.channel import Channel
from prefect_imageqa.flows.workers.job import WorkerJob
from prefect_imageqa.flows.workers.messages import BatchResult, WorkerStatus, error_of
from prefect_imageqa.flows.workers.processes import ProcessWorker
from prefect_imageqa.flows.workers.threads import ThreadWorker
from prefect_imageqa.tasks.errors import ImageQAError, ObjectMissingError
from prefect_imageqa.tasks.runs.run_record import RunRecord, read_run


@pytest.fixture
def job(tmp_path: Path, start_stub: Any) -> WorkerJob:
    return WorkerJob(
        output=str(tmp_path / "out"),
        run="r",
        worker="1",
        key="5a" * 32,
        endpoint=(start_stub().url,),
        model="stub",
        process=f"{'0' * 16} 7-7",
    )


@pytest.fixture
def channel(job: WorkerJob) -> Channel:
    return Channel(ObjectStore(uri=job.output), job.key)


def wait_until(reached: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def _quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_RUN_CHECK_SECONDS", 0.2)


@pytest.fixture
def beats(
    channel: Channel, record_of: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch
) -> list[datetime]:
    """Heartbeats of a run whose clock is an hour late: one before each time that it is checked."""
    beats: list[datetime] = []

    def read(store: ObjectStore, name: str) -> RunRecord:
        beats.append(datetime.now(UTC) - timedelta(hours=1))
        record_of(run="r", state="running", updated=beats[-1]).write(channel.store)
        return read_run(store, name)

    monkeypatch.setattr(worker, "read_run", read)
    return beats


def test_a_batch_that_is_gone_is_not_waited_for(job: WorkerJob, channel: Channel) -> None:
    channel.store.write(job.folder.batch(3), b"")
    started = ThreadWorker(job)
    wait_until(lambda: channel.store.exists(job.folder.result(3)))
    result = BatchResult(**channel.read(job.folder.result(3)))
    assert result.error
    assert result.error[0] == "ObjectCorruptedError"
    with pytest.raises(ImageQAError, match="was not written by this run"):
        result.check()
    channel.write(job.folder.end, "end")
    wait_until(lambda: started.ended)
    assert started.ended == "it has ended"


def test_a_result_that_cannot_be_told_ends_the_worker(
    job: WorkerJob, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> tuple[str, Any]:
        return error_of(error)[0], object()  # which no message can hold

    monkeypatch.setattr(worker, "error_of", fail)
    channel.store.write(job.folder.batch(3), b"")
    started = ThreadWorker(job)
    wait_until(lambda: started.ended)
    assert not channel.store.exists(job.folder.result(3))


@pytest.mark.usefixtures("_quick_checks")
def test_a_worker_ends_without_its_run(
    job: WorkerJob, channel: Channel, record_of: Callable[..., RunRecord]
) -> None:
    record_of(run="r", state="running").write(channel.store)
    with pytest.raises(ImageQAError, match="run r was killed, or no longer reaches "):
        worker.work(job)


@pytest.mark.parametrize("changed", [{"state": "completed"}, {"process": "8-8"}])
def test_a_worker_that_starts_late_does_nothing(
    changed: dict[str, str], job: WorkerJob, channel: Channel, record_of: Callable[..., RunRecord]
) -> None:
    """After the end of its run, or when Prefect has started that once more."""
    told = {"run": "r", "state": "running", "updated": datetime.now(UTC)} | changed
    record_of(**told).write(channel.store)
    channel.store.write(job.folder.batch(3), b"")
    worker.work(job)
    assert channel.store.list("workers") == [job.folder.batch(3)]


@pytest.mark.usefixtures("_quick_checks")
def test_a_worker_that_has_another_folder_says_so_and_writes_nothing(
    job: WorkerJob, channel: Channel
) -> None:
    with pytest.raises(ImageQAError, match="has no run r on this machine: give an s3:// URI"):
        worker.work(job)
    assert not channel.store.list()


@pytest.mark.usefixtures("beats")
def test_a_batch_that_somebody_removes_is_left_to_others(
    job: WorkerJob, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, is_known = Channel.read, threading.Event()

    def is_removed(own: Channel, name: str) -> Any:
        if name == job.folder.batch(3):
            is_known.wait(60)
            raise ObjectMissingError(name)
        return read(own, name)

    def has() -> Any:
        return WorkerStatus.from_plain(read(channel, job.folder.status)).unsent

    monkeypatch.setattr(Channel, "read", is_removed)
    channel.store.write(job.folder.batch(3), b"")
    started = ThreadWorker(job)
    wait_until(lambda: channel.store.exists(job.folder.status))
    wait_until(lambda: has() == {3: None})
    is_known.set()
    wait_until(lambda: has() == {})
    assert not channel.store.exists(job.folder.result(3))
    assert started.ended is None
    started.stop()


@pytest.mark.usefixtures("_quick_checks")
def test_a_wrong_clock_does_not_end_a_worker(job: WorkerJob, beats: list[datetime]) -> None:
    started = ThreadWorker(job)
    wait_until(lambda: len(beats) > worker._MAX_RUN_CHECKS + 1 or started.ended)
    assert started.ended is None
    started.stop()
    wait_until(lambda: started.ended)
    assert started.ended == "it has ended"


def test_the_process_of_a_worker_ends_with_its_reason(job: WorkerJob, channel: Channel) -> None:
    other = ProcessWorker(job.model_copy(update={"version": "0.0"}))
    channel.write(job.folder.end, "end")
    told = ProcessWorker(job)
    wait_until(lambda: other.ended and told.ended, 60)
    assert told.ended == "it has ended"
    assert "install the same version where the workers are" in str(other.ended)
