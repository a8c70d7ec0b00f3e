"""The record of a run: what it counts, whether it is at work, and what may be read of it."""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs import records as run_records
from prefect_imageqa.tasks.runs.records import (
    RunCounts,
    RunRecord,
    complete_run,
    completed_run,
    read_run,
    read_runs,
    this_host,
    unfinished_runs,
)
from prefect_imageqa.tasks.storing.layout import open_output, run_name, write_manifest
from pydantic import ValidationError

RecordOf = Callable[..., RunRecord]


@pytest.mark.parametrize(
    "counts",
    [{"rows": 3, "ok": 2}, {"rows": 1, "ok": 1, "quarantined": 1}, {"filtered": 1}],
    ids=["one lost", "one twice", "one that is no row"],
)
def test_no_row_is_lost_or_counted_twice(counts: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"rows are not \d ok, \d filtered and"):
        RunCounts(**counts)
    assert RunCounts(rows=6, ok=3, filtered=2, quarantined=1).rows == 6


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_time_is_one(seconds: float) -> None:
    with pytest.raises(ValidationError):
        RunCounts(seconds=seconds)


def test_what_is_written_is_read(local: ObjectStore, record_of: RecordOf) -> None:
    # The name of a file need not be UTF-8.
    told = {"dataset": "/data/caf\udce9.json", "endpoint": "http://user:secret@host"}
    counts = RunCounts(rows=3, ok=2, quarantined=1, reasons={"empty": 1})
    run = record_of(counts=counts, told=told, error="no \ud83d", **this_host())
    run.write(local)
    read = read_run(local, run_name(run.run))
    assert read == run.model_copy(update={"told": read.parameters})
    assert read.parameters.dataset == told["dataset"]
    assert b"secret" not in local.read(run_name(run.run))
    open_output(local)
    with pytest.raises(StoreError, match="no run has completed here yet; the same command"):
        completed_run(local)
    complete_run(local, run)
    assert completed_run(local) == read


def test_an_output_that_is_not_there_is_told(local: ObjectStore) -> None:
    with pytest.raises(StoreError, match="there is no output here; check the path"):
        completed_run(local)


@pytest.mark.parametrize(
    ("state", "ago", "live"),
    [
        ("running", 5, True),
        ("waiting", 5, True),
        ("running", 65, False),
        ("running", -30, True),
        ("running", -65, False),
        ("failed", 5, False),
        ("interrupted", 5, False),
        ("completed", 5, False),
    ],
)
def test_a_run_elsewhere_is_known_by_its_heartbeat(
    state: str, ago: float, live: bool, record_of: RecordOf
) -> None:
    """Clocks may differ a little; a heartbeat from far in the future is none."""
    assert record_of(state=state, ago=ago).is_live is live


def process_of(pid: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid)
        return dict(this_host())


def test_a_run_here_is_known_by_its_process(
    record_of: RecordOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = {"state": "running", "ago": 1}
    own = this_host()
    # One that has failed, and could not record that, is not at work any more.
    assert not record_of(**running, **own).is_live
    monkeypatch.setattr(run_records, "ACTIVE_RUNS", {record_of(**running).run})
    assert record_of(**running, **own).is_live
    with subprocess.Popen(["sleep", "60"]) as other:
        host = process_of(other.pid, monkeypatch)
        run = record_of(**running, **host)
        assert run.is_live
        # A process that began at another time has the same id.
        reused = host | {"process": f"{own['process'].partition('-')[0]}-1"}
        assert not record_of(**running, **reused).is_live
        assert record_of(**running, **reused | {"machine": "0" * 16}).is_live
        other.kill()
    assert not run.is_live
    stuck = record_of(state="running", ago=65, **own)
    assert not stuck.is_live


@pytest.mark.parametrize("process", ["x", "-1", "1" * 250, "..:..-1"])
def test_a_process_that_is_none_is_not_there(process: str, record_of: RecordOf) -> None:
    assert not record_of(state="running", ago=5, **{**this_host(), "process": process}).is_live


def spoilt(record: RunRecord, **changed: Any) -> bytes:
    return json.dumps(record.model_dump(mode="json") | changed).encode()


def test_what_is_no_record_is_told_or_passed_over(local: ObjectStore, record_of: RecordOf) -> None:
    open_output(local)
    good = record_of(run="good")
    told = good.model_dump(mode="json")["told"]
    planted = {
        "empty": b"",
        "list": b"[]",
        "deep": b"[" * 100_000,
        "bytes": b"\xff\xfe",
        "missing fields": b'{"state": "running"}',
        "no such state": spoilt(good, state="resting"),
        "no zone": spoilt(good, updated="2026-11-23T10:00:00"),
        "lost row": spoilt(good, counts={"rows": 2, "ok": 1}),
        "no time": spoilt(good, counts={"seconds": float("nan")}),
        "no path": spoilt(good, told=told | {"dataset": {"columns": 1}}),
        "no style": spoilt(good, told=told | {"prompt_style": 7}),
        "no parser": spoilt(good, told=told | {"parsing": {"parser": ["os:system"]}}),
    }
    good.write(local)
    for name, content in planted.items():
        local.write(run_name(name), content)
        with pytest.raises(ObjectCorruptedError) as raised:
            read_run(local, run_name(name))
        line = str(raised.value)
        assert line.startswith(f"{local.uri_of(run_name(name))} is not the record of a run (")
        assert line.endswith("): delete it")
        assert "\n" not in line
    write_manifest(local, {"run": "x"})
    with pytest.raises(ObjectCorruptedError, match="is not the record of a run"):
        read_runs(local)
    with pytest.raises(ObjectCorruptedError, match=r"manifest\.json is not the record of a run"):
        completed_run(local)
    passed_over: list[ObjectCorruptedError] = []
    assert [run.run for run in read_runs(local, passed_over.append)] == ["good"]
    assert len(passed_over) == len(planted)


def test_runs_are_told_oldest_first_and_one_that_is_gone_is_left_out(
    local: ObjectStore, record_of: RecordOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ago in (("b", 10), ("c", 5), ("a", 20), ("gone", 1)):
        record_of(run=name, ago=ago).write(local)
    original = read_run

    def vanishing(store: ObjectStore, name: str) -> RunRecord:
        if "gone" in name:
            store.remove(name)
        return original(store, name)

    monkeypatch.setattr(run_records, "read_run", vanishing)
    assert [run.run for run in read_runs(local)] == ["a", "b", "c"]


def test_a_run_is_finished_by_a_later_one_of_its_configuration_and_dataset(
    record_of: RecordOf,
) -> None:
    runs = [
        record_of(run="killed", state="running", ago=90, keys="a"),
        record_of(run="other-dataset", state="failed", ago=80, keys="b"),
        record_of(run="dropped", state="failed", ago=70, keys="c", dropped=True),
        record_of(run="live", state="running", ago=5, keys="a"),
        record_of(run="completed", ago=4, keys="a"),
    ]
    assert [run.run for run in unfinished_runs(runs)] == ["other-dataset", "live"]
    assert [run.run for run in unfinished_runs(runs[:1])] == ["killed"]


def test_silence_is_never_negative(record_of: RecordOf) -> None:
    now = datetime.now(UTC)
    assert record_of(updated=now + timedelta(hours=1)).silent_seconds == 0
    assert 4 < record_of(ago=5).silent_seconds < 10
