"""The record of a run, and that one run at a time writes to an output."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from prefect_imageqa import ImageQAError, Limits, OutputBusyError, VLLMEndpoint, image_qa
from prefect_imageqa.flows import output_lease
from prefect_imageqa.flows.output_lease import OutputLease
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.heartbeat import this_process
from prefect_imageqa.tasks.runs.parameters import (
    Caching,
    Exports,
    Images,
    Parsing,
    RunParameters,
    Sampling,
)
from prefect_imageqa.tasks.runs.run_record import RunRecord, read_runs

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))


def record(run: str, **changed: Any) -> RunRecord:
    told = RunParameters(
        dataset="d.json",
        prompt_style="chat",
        pairs_per_image=1,
        max_rows=None,
        system_prompt="",
        user_prompt="",
        model=None,
        model_revision="",
        sampling=Sampling(),
        limits=Limits(),
        columns=Columns(),
        parsing=Parsing(),
        caching=Caching(),
        images=Images(),
        exports=Exports(),
    )
    now = datetime.now(UTC)
    known = {
        **this_process(),
        "run": run,
        "state": "waiting",
        "dataset": "d.json",
        "model": "m",
        "model_revision": "",
        "user_prompt": "",
        "parser": "qa_pairs-v1",
        "configuration": "c",
        "keys": "pairs/keys/c/d",
        "queued": now,
        "started": now,
        "updated": now,
        "versions": {},
        "parameters": told,
    }
    return RunRecord(**{**known, **changed})


@pytest.fixture
def _own_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lease, "get_run_logger", lambda: logging.getLogger("test"))


def test_a_run_has_a_heartbeat_while_a_batch_takes_long(
    start_stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.2)
    written: list[RunRecord] = []
    write = RunRecord.write

    def watch(self: RunRecord, store: ObjectStore) -> None:
        written.append(self)
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", watch)
    slow = start_stub(latency=0.2, slots=1)
    image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=slow.url)
    states = [told.state for told in written]
    assert states[0] == "waiting"
    assert states[-1] == "completed"
    assert states.count("completed") == 1
    assert len({told.counts.requests for told in written if told.state == "running"}) >= 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["ok"] == 12


def test_a_run_that_fails_says_why(keyed_stub: Any, drawn: Path, tmp_path: Path) -> None:
    rows = json.loads((drawn / "dataset.json").read_text())
    (drawn / "refused.json").write_text(
        json.dumps([row | {"conversation": "STUB status 401"} for row in rows])
    )
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)
    with pytest.raises(ImageQAError):
        image_qa(str(drawn / "refused.json"), str(tmp_path / "out"), endpoint=endpoint)
    [path] = (tmp_path / "out" / "runs").iterdir()
    told = json.loads(path.read_text())
    assert told["state"] == "failed"
    assert "refuses to answer" in told["error"]
    assert keyed_stub.api_key not in path.read_text()


@pytest.mark.usefixtures("_own_logger")
def test_of_runs_that_begin_at_once_one_writes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lease, "POLL_SECONDS", 0.01)
    chance = random.Random(4)
    write = RunRecord.write

    def slowly(self: RunRecord, store: ObjectStore) -> None:
        time.sleep(chance.uniform(0, 0.02))  # so that they meet in every order
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", slowly)
    writing = threading.Semaphore(1)

    def run(name: str, store: ObjectStore, all_of_them: Barrier) -> None:
        # The clock of one is wrong: the order of the records must not depend on it.
        skew = timedelta(seconds=chance.uniform(-5, 5))
        kept = OutputLease(store, record(name, queued=datetime.now(UTC) + skew), RunProgress())
        all_of_them.wait()
        with kept.acquire(wait=True):
            assert writing.acquire(blocking=False), "two write at once"
            time.sleep(0.01)
            writing.release()
            kept._write(state="completed")

    with ThreadPoolExecutor(3) as pool:
        for number in range(25):
            store = ObjectStore(uri=str(tmp_path / str(number)))
            all_of_them = Barrier(3, timeout=30)
            runs = [pool.submit(run, name, store, all_of_them) for name in "abc"]
            for done in runs:
                done.result(timeout=60)


@contextmanager
def other_run(store: ObjectStore, **changed: Any) -> Iterator[None]:
    """Another run that is writing, as its record has it."""
    other = record("other", state="running", **changed)
    other.write(store)
    yield
    other.model_copy(update={"state": "completed"}).write(store)


GONE: dict[str, dict[str, Any]] = {
    "its process is gone": {"process": "999999999-1"},
    "its process is another one by now": {"process": f"{os.getpid()}-1"},
    "its heart has stopped": {"machine": "elsewhere", "updated": datetime(2026, 1, 1, tzinfo=UTC)},
    "its heartbeat is from the future": {
        "machine": "elsewhere",
        "updated": datetime(2126, 1, 1, tzinfo=UTC),
    },
    "it was interrupted": {"state": "interrupted"},
}


@pytest.mark.usefixtures("_own_logger")
@pytest.mark.parametrize("case", GONE)
def test_a_run_that_is_gone_is_not_waited_for(case: str, tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    record("other", **{"state": "running", **GONE[case]}).write(store)
    started = time.monotonic()
    with OutputLease(store, record("own"), RunProgress()).acquire(wait=False):
        assert time.monotonic() - started < 1


@pytest.mark.usefixtures("_own_logger")
def test_a_run_elsewhere_is_waited_for_while_its_heart_beats(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    with (
        other_run(store, machine="elsewhere", process="7-7", host="gpu-7"),
        pytest.raises(OutputBusyError, match=r"on gpu-7 \(other\) is writing there"),
        OutputLease(store, record("own"), RunProgress()).acquire(wait=False),
    ):
        pass
    # One that was refused leaves nothing: it is no run that anyone must finish.
    assert [run.run for run in read_runs(store)] == ["other"]


@pytest.mark.usefixtures("_own_logger")
def test_the_same_run_in_two_processes_writes_once(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    record("own", state="running", machine="elsewhere", host="gpu-7").write(store)
    with (
        pytest.raises(OutputBusyError, match="on gpu-7"),
        OutputLease(store, record("own"), RunProgress()).acquire(wait=False),
    ):
        pass
    assert [run.host for run in read_runs(store)] == ["gpu-7"]
    record("own", state="failed", machine="elsewhere").write(store)
    with OutputLease(store, record("own"), RunProgress()).acquire(wait=False):
        pass


@pytest.mark.usefixtures("_own_logger")
def test_a_heart_goes_on_beating_whatever_a_write_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_lease, "HEARTBEAT_SECONDS", 0.02)
    store, write, written = ObjectStore(uri=str(tmp_path)), RunRecord.write, [0]

    def fail_once(self: RunRecord, store: ObjectStore) -> None:
        written[0] += 1
        if written[0] == 3:
            raise RuntimeError("something nobody foresaw")
        write(self, store)

    monkeypatch.setattr(RunRecord, "write", fail_once)
    with OutputLease(store, record("own"), RunProgress()).acquire(wait=False):
        wait_for(lambda: written[0] > 6, seconds=10)


@pytest.mark.usefixtures("_own_logger")
def test_a_damaged_record_of_another_run_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore(uri=str(tmp_path))
    store.write("runs/planted.json", b'{"run": "../../etc", "state": "running"}')
    os.mkfifo(tmp_path / "runs" / "pipe.json")  # reading it would wait for ever
    steering = record("evil", state="running", machine="elsewhere")
    told = steering.model_copy(update={"host": "\x1b[2J\nall is well"})
    store.write("runs/evil.json", told.model_dump_json().encode())
    kept = OutputLease(store, record("own"), RunProgress())
    with kept.acquire(wait=False):
        pass
    assert caplog.text.count("planted.json is not a run record") == 1
    assert caplog.text.count("evil.json is not a run record") == 1
    assert "\x1b" not in caplog.text


def wait_for(found: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def test_two_runs_with_other_batch_sizes_ask_every_row_once(
    start_stub: Any, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub, output = start_stub(latency=0.01), str(tmp_path / "out")
    texts = [f"STUB finish length {row}" if row % 33 == 0 else f"row {row}" for row in range(600)]
    texts[7] = "STUB slow 15"  # so that the first run is there when the others come
    dataset = drawn / "rows.json"
    rows = [{"image": "images/000.png", "conversation": text} for text in texts]
    dataset.write_text(json.dumps(rows))

    def run(batch_size: int, *, wait: bool = True) -> Any:
        limits = Limits(batch_size=batch_size, wait=wait)
        return image_qa(str(dataset), output, endpoint=stub.url, limits=limits)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, 32)
        wait_for(lambda: stub.stats()["requests"] > 0)
        second = pool.submit(run, 50)
        with pytest.raises(OutputBusyError, match="is writing there; wait until it has finished"):
            run(64, wait=False)
        summaries = [done.result(timeout=120) for done in (first, second)]
    assert "waiting for the run of" in caplog.text
    assert [summary.ok for summary in summaries] == [581, 581]
    assert [summary.quarantined for summary in summaries] == [19, 19]
    assert [summary.requests for summary in summaries] == [600, 0]
    assert stub.stats()["requests"] == 600
    assert len((tmp_path / "out" / "qa.jsonl").read_text().splitlines()) == 581


def test_a_killed_run_that_is_repeated_at_once_is_not_kept_waiting(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=0.3, slots=1), tmp_path / "out"
    command = [COMMAND, "run", str(drawn / "dataset.json"), "--output", str(output), "--json"]
    command += ["--endpoint", stub.url, "--batch-size", "2"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: stub.stats()["requests"] > 2)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "waiting for" not in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["ok"] == 12
