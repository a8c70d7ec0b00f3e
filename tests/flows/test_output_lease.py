"""The run record, and that only one run at a time writes to an output."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import ImageQAError, Limits, OutputBusyError, VLLMEndpoint, image_qa
from prefect_imageqa.flows import output_lease
from prefect_imageqa.flows.output_lease import OutputLease
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.heartbeat import this_process
from prefect_imageqa.tasks.runs.run_record import RunRecord, read_runs

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def record(record_of: MakeRecord) -> MakeRecord:
    """Makes the record of a run of this process: `record("name", state="running")`."""

    def make(run: str, **fields: Any) -> RunRecord:
        return record_of(**{"run": run, "ago": 0, "state": "waiting", **this_process(), **fields})

    return make


@pytest.fixture
def lease(
    record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OutputLease]:
    """Makes the lease of a run on an output, by default on `tmp_path`: `lease(run="own")`."""
    monkeypatch.setattr(output_lease, "get_run_logger", lambda: logging.getLogger("test"))

    def make(store: ObjectStore | None = None, run: str = "own", **fields: Any) -> OutputLease:
        store = store or ObjectStore(uri=str(tmp_path))
        return OutputLease(store, record(run, **fields), RunProgress())

    return make


def wait_until(reached: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_has_a_heartbeat_during_a_slow_batch(
    start_stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.2)
    written: list[RunRecord] = []
    write = RunRecord.write

    def watch(self: RunRecord, store: ObjectStore) -> None:
        written.append(self)
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", watch)
    slow = start_stub(latency=0.1, slots=1)
    image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=slow.url)
    states = [record.state for record in written]
    assert states[0] == "waiting"
    assert states[-1] == "completed"
    assert states.count("completed") == 1
    assert len({record.counts.requests for record in written if record.state == "running"}) >= 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["ok"] == 12


def test_a_failed_run_records_the_reason(keyed_stub: Any, drawn: Path, tmp_path: Path) -> None:
    key, port = keyed_stub.api_key, urlsplit(keyed_stub.url).port or 0
    with FaultProxy("127.0.0.1", port, [Rule("respond", status=401, path="/chat/")]) as gateway:
        endpoint = VLLMEndpoint(urls=[gateway.url], api_key=key)
        with pytest.raises(ImageQAError):
            image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=endpoint)
    [path] = (tmp_path / "out" / "runs").iterdir()
    record = json.loads(path.read_text())
    assert record["state"] == "failed"
    assert "refuses to answer" in record["error"]
    assert key not in path.read_text()


def test_of_runs_that_start_at_once_only_one_writes_at_a_time(
    lease: Callable[..., OutputLease], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lease, "POLL_SECONDS", 0.01)
    chance = random.Random(4)
    write = RunRecord.write

    def slowly(self: RunRecord, store: ObjectStore) -> None:
        time.sleep(chance.uniform(0, 0.02))  # so that their writes are interleaved in every order
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", slowly)
    writing = threading.Semaphore(1)

    def run(name: str, store: ObjectStore, barrier: Barrier) -> None:
        # One of the clocks is wrong: the order of the records must not depend on it.
        skew = timedelta(seconds=chance.uniform(-5, 5))
        own = lease(store, name, queued=datetime.now(UTC) + skew)
        barrier.wait()
        with own.acquire(wait=True):
            assert writing.acquire(blocking=False), "two runs are writing at once"
            time.sleep(0.01)
            writing.release()
            own._write(store, state="completed")

    with ThreadPoolExecutor(3) as pool:
        for number in range(25):
            store = ObjectStore(uri=str(tmp_path / str(number)))
            barrier = Barrier(3, timeout=30)
            runs = [pool.submit(run, name, store, barrier) for name in "abc"]
            for done in runs:
                done.result(timeout=60)


@contextmanager
def other_run(store: ObjectStore, other: RunRecord) -> Iterator[None]:
    """Another run that is writing to the output, according to its record."""
    other.write(store)
    yield
    other.model_copy(update={"state": "completed"}).write(store)


DEAD: dict[str, dict[str, Any]] = {
    "its process has ended": {"process": "999999999-1"},
    "its process ID was reused": {"process": f"{os.getpid()}-1"},
    "its heartbeat has stopped": {
        "machine": "elsewhere",
        "updated": datetime(2026, 1, 1, tzinfo=UTC),
    },
    "its heartbeat is from the future": {
        "machine": "elsewhere",
        "updated": datetime(2126, 1, 1, tzinfo=UTC),
    },
    "it was interrupted": {"state": "interrupted"},
}


@pytest.mark.parametrize("case", DEAD)
def test_a_dead_run_is_not_waited_for(
    case: str, lease: Callable[..., OutputLease], record: MakeRecord, tmp_path: Path
) -> None:
    store = ObjectStore(uri=str(tmp_path))
    record("other", **{"state": "running", **DEAD[case]}).write(store)
    with lease().acquire(wait=False):
        assert {run.run: run.state for run in read_runs(store)}["own"] == "running"


def test_a_run_on_another_machine_is_waited_for_while_it_has_a_heartbeat(
    lease: Callable[..., OutputLease], record: MakeRecord, tmp_path: Path
) -> None:
    store = ObjectStore(uri=str(tmp_path))
    other = record("other", state="running", machine="elsewhere", process="7-7", host="gpu-7")
    with (
        other_run(store, other),
        pytest.raises(OutputBusyError, match=r"on gpu-7 \(other\) is writing there"),
        lease().acquire(wait=False),
    ):
        pass
    # A rejected run leaves no record: there is nothing to resume.
    assert [run.run for run in read_runs(store)] == ["other"]


def test_a_waiting_run_tells_for_which_and_how_far_that_is(
    lease: Callable[..., OutputLease],
    record: MakeRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(output_lease, "POLL_SECONDS", 0.02)
    store = ObjectStore(uri=str(tmp_path))
    progress = "3,340 of 6,000, 58 rows/s, 45 s left"
    other = record("other", state="running", machine="x", host="gpu-7", progress=progress)

    def own() -> RunRecord:
        return next(run for run in read_runs(store) if run.run == "own")

    def acquire() -> None:
        with lease(store).acquire(wait=True):
            wait_until(lambda: not own().notes)

    with ThreadPoolExecutor(1) as pool:
        with other_run(store, other):
            acquired = pool.submit(acquire)
            wait_until(lambda: len(read_runs(store)) == 2 and own().notes)
            [note] = own().notes
        acquired.result(timeout=60)
    assert note.startswith(f"waiting for the run of {other.started:%Y-%m-%d %H:%M:%S} UTC on gpu-7")
    assert note.endswith(f"writing to {store.uri}: {progress}")


def test_the_same_run_in_two_processes_writes_only_once(
    lease: Callable[..., OutputLease], record: MakeRecord, tmp_path: Path
) -> None:
    store = ObjectStore(uri=str(tmp_path))
    record("own", state="running", machine="elsewhere", host="gpu-7").write(store)
    with pytest.raises(OutputBusyError, match="on gpu-7"), lease().acquire(wait=False):
        pass
    assert [run.host for run in read_runs(store)] == ["gpu-7"]
    record("own", state="failed", machine="elsewhere").write(store)
    with lease().acquire(wait=False):
        pass


def test_the_heartbeat_continues_after_an_error(
    lease: Callable[..., OutputLease],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.02)
    write, written = RunRecord.write, [0]

    def fail_once(self: RunRecord, store: ObjectStore) -> None:
        written[0] += 1
        if written[0] == 3:
            raise RuntimeError("unexpected")
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", fail_once)
    with lease().acquire(wait=False):
        wait_until(lambda: written[0] > 6)
    assert caplog.messages == ["the record of the run could not be written: unexpected"]


def test_corrupted_records_of_other_runs_are_skipped(
    lease: Callable[..., OutputLease],
    record: MakeRecord,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ObjectStore(uri=str(tmp_path))
    store.write("runs/planted.json", b'{"run": "../../etc", "state": "running"}')
    os.mkfifo(tmp_path / "runs" / "pipe.json")  # reading it would block forever
    escapes = record("evil", state="running", machine="elsewhere")
    escapes = escapes.model_copy(update={"host": "\x1b[2J\nall is well"})
    store.write("runs/evil.json", escapes.model_dump_json().encode())
    with lease().acquire(wait=False):
        pass
    assert caplog.text.count("planted.json is not a run record") == 1
    assert caplog.text.count("evil.json is not a run record") == 1
    assert "\x1b" not in caplog.text


def test_two_runs_with_different_batch_sizes_send_every_row_once(
    start_stub: Any,
    write_rows: Callable[[list[str]], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub, output, answer = start_stub(), str(tmp_path / "out"), tmp_path / "answer"
    texts = [f"STUB finish length {row}" if row % 33 == 0 else f"row {row}" for row in range(300)]
    texts[7] = f"STUB until {answer}"  # the first run lasts until the others have started
    dataset = write_rows(texts)

    def run(batch_size: int, *, queue: bool = True) -> Any:
        limits = Limits(batch_size=batch_size, queue=queue)
        return image_qa(dataset, output, endpoint=stub.url, limits=limits)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, 32)
        wait_until(lambda: stub.stats()["requests"] > 0)
        second = pool.submit(run, 50)
        with pytest.raises(OutputBusyError, match="is writing there; wait until it has finished"):
            run(64, queue=False)
        wait_until(lambda: "waiting for the run of" in caplog.text)
        answer.touch()
        summaries = [done.result(timeout=120) for done in (first, second)]
    assert [summary.ok for summary in summaries] == [290, 290]
    assert [summary.quarantined for summary in summaries] == [10, 10]
    assert [summary.requests for summary in summaries] == [300, 0]
    assert stub.stats()["requests"] == 300
    assert len((tmp_path / "out" / "qa.jsonl").read_text().splitlines()) == 290


def test_a_killed_run_can_be_repeated_without_waiting(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=0.3, slots=1), str(tmp_path / "out")
    dataset = str(drawn / "dataset.json")
    killed = subprocess.Popen(
        [COMMAND, "run", dataset, "--output", output, "--endpoint", stub.url, "--batch-size", "2"],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: stub.stats()["requests"] > 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    at_once = Limits(batch_size=2, queue=False)
    assert image_qa(dataset, output, endpoint=start_stub().url, limits=at_once).ok == 12
