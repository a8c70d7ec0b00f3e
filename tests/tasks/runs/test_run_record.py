"""Run records: their counts, writing and reading them, corrupted ones, and unfinished runs."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs import run_record as run_records
from prefect_imageqa.tasks.runs.heartbeat import this_process
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.runs.run_record import (
    LINE_LENGTH,
    MAX_NOTES,
    RunRecord,
    complete_run,
    completed_run,
    last_completed,
    read_run,
    read_runs,
    unfinished_runs,
)
from prefect_imageqa.tasks.storing.layout import open_output, run_name, write_manifest
from pydantic import ValidationError

RecordOf = Callable[..., RunRecord]


@pytest.mark.parametrize(
    "counts",
    [{"rows": 3, "ok": 2}, {"rows": 1, "ok": 1, "quarantined": 1}, {"filtered": 1}],
    ids=["row lost", "row counted twice", "row that does not exist"],
)
def test_counts_must_add_up(counts: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"rows are not the sum of \d ok, \d filtered and"):
        RunCounts(**counts)
    assert RunCounts(rows=6, ok=3, filtered=2, quarantined=1).rows == 6


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_seconds_must_be_a_duration(seconds: float) -> None:
    with pytest.raises(ValidationError):
        RunCounts(seconds=seconds)


def test_a_record_is_read_as_it_was_written(local: ObjectStore, record_of: RecordOf) -> None:
    # A file name need not be valid UTF-8.
    parameters = {"dataset": "/data/caf\udce9.json", "endpoint": "http://user:secret@host"}
    counts = RunCounts(rows=3, ok=2, quarantined=1, reasons={"empty": 1})
    live = {"progress": "3 of 5", "notes": ("S3 does not answer",), "last_reply": datetime.now(UTC)}
    run = record_of(
        counts=counts, parameters=parameters, error="no \ud83d", **live, **this_process()
    )
    run.write(local)
    read = read_run(local, run_name(run.run))
    assert read == run.model_copy(update={"parameters": read.parameters})
    assert read.parameters.dataset == parameters["dataset"]
    assert b"secret" not in local.read(run_name(run.run))
    open_output(local)
    with pytest.raises(StoreError, match="no run has completed here yet; finish the run first"):
        completed_run(local)
    complete_run(local, run)
    assert completed_run(local) == read


def test_a_missing_output_is_reported(local: ObjectStore) -> None:
    with pytest.raises(StoreError, match="there is no output here; check the path"):
        completed_run(local)


def changed(record: RunRecord, **fields: Any) -> bytes:
    return json.dumps(record.model_dump(mode="json") | fields).encode()


def test_an_invalid_record_is_reported_or_skipped(local: ObjectStore, record_of: RecordOf) -> None:
    open_output(local)
    valid = record_of(run="valid")
    parameters = valid.model_dump(mode="json")["parameters"]
    invalid = {
        "empty": b"",
        "list": b"[]",
        "deeply nested": b"[" * 100_000,
        "not UTF-8": b"\xff\xfe",
        "missing fields": b'{"state": "running"}',
        "unknown state": changed(valid, state="resting"),
        "no time zone": changed(valid, updated="2026-11-23T10:00:00"),
        "wrong counts": changed(valid, counts={"rows": 2, "ok": 1}),
        "escapes in a note": changed(valid, notes=["\x1b[2J"]),
        "text turned around": changed(valid, progress="\u202e"),
        "many notes": changed(valid, notes=["waiting"] * (MAX_NOTES + 1)),
        "long note": changed(valid, notes=["x" * (LINE_LENGTH + 1)]),
        "NaN seconds": changed(valid, counts={"seconds": float("nan")}),
        "dataset not a path": changed(valid, parameters=parameters | {"dataset": {"columns": 1}}),
        "style not a name": changed(valid, parameters=parameters | {"style": 7}),
        "parser not a name": changed(
            valid, parameters=parameters | {"parsing": {"parser": ["os:system"]}}
        ),
    }
    valid.write(local)
    for name, content in invalid.items():
        local.write(run_name(name), content)
        with pytest.raises(ObjectCorruptedError) as raised:
            read_run(local, run_name(name))
        line = str(raised.value)
        assert line.startswith(f"{local.uri_of(run_name(name))} is not a run record ("), name
        assert line.endswith("): delete it")
        assert "\n" not in line
    write_manifest(local, {"run": "x"})
    with pytest.raises(ObjectCorruptedError, match="is not a run record"):
        read_runs(local)
    with pytest.raises(ObjectCorruptedError, match=r"manifest\.json is not a run record"):
        completed_run(local)
    skipped: list[ObjectCorruptedError] = []
    assert [run.run for run in read_runs(local, skipped.append)] == ["valid"]
    assert len(skipped) == len(invalid)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "endless"])
def test_a_manifest_that_does_not_end_is_reported(
    local: ObjectStore, record_of: RecordOf, target: str
) -> None:
    complete_run(local, record_of(run="valid"))
    folder = Path(local.uri)
    os.mkfifo(folder / "pipe")
    with (folder / "endless").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to(target)
    (folder / "runs/x.json").symlink_to(target if target.startswith("/") else f"../{target}")
    reason = "is larger than the 16 MiB that it may have" if target == "endless" else "is not a"
    with pytest.raises(StoreError, match=reason):
        last_completed(local)
    skipped: list[ObjectCorruptedError] = []
    assert [run.run for run in read_runs(local, skipped.append)] == ["valid"]
    assert len(skipped) == (target == "endless")


def test_runs_are_sorted_by_age_without_those_removed_meanwhile(
    local: ObjectStore, record_of: RecordOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, ago in (("b", 10), ("c", 5), ("a", 20), ("removed", 1)):
        record_of(run=name, ago=ago).write(local)
    original = read_run

    def remove_and_read(store: ObjectStore, name: str) -> RunRecord:
        if "removed" in name:
            store.remove(name)
        return original(store, name)

    monkeypatch.setattr(run_records, "read_run", remove_and_read)
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


def test_the_age_of_a_heartbeat_is_never_negative(record_of: RecordOf) -> None:
    now = datetime.now(UTC)
    assert record_of(updated=now + timedelta(hours=1)).heartbeat_age == 0
    assert 5 <= record_of(ago=5).heartbeat_age < 50
    assert record_of(last_reply=now + timedelta(hours=1)).reply_age == 0
