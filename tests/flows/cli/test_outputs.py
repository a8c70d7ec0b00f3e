"""`prefect-imageqa status`, `verify` and `clean`."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import Limits, ObjectStore, image_qa
from prefect_imageqa.flows.cli.main import main
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.runs.run_record import RunRecord
from prefect_imageqa.tasks.storing.layout import open_output


@dataclass(frozen=True)
class Result:
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]

# `main` is what is tested, and reads its arguments from sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls `prefect-imageqa` like a shell, but without the start of a new process."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["prefect-imageqa", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        printed = capsys.readouterr()
        return Result(exit_info.value.code or 0, printed.out, printed.err)  # type: ignore[arg-type]

    return run


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('s3')}/outputs-{tmp_path.name}"


@pytest.fixture
def dataset(drawn: Path) -> Path:
    """12 rows, of which two have no image: their keys are the same in every configuration."""
    path = drawn / "dataset.json"
    rows = json.loads(path.read_text())
    rows[1]["image"] = rows[6]["image"] = "missing.png"
    path.write_text(json.dumps(rows))
    return path


def test_an_output_is_verified_and_cleaned(
    call: Call, stub: Any, dataset: Path, output: str
) -> None:
    def run(**changed: Any) -> Any:
        limits = Limits(batch_size=5)
        return image_qa(str(dataset), output, endpoint=stub.url, limits=limits, **changed)

    store = ObjectStore(uri=output)
    empty = call("status", output)
    assert (empty.code, empty.out.strip()) == (0, f"{output}: nothing there yet")
    assert run(system_prompt="Be brief.").requests == 10
    old = set(store.list("pairs"))
    assert run().requests == 10
    status = call("status", output)
    assert status.code == 0
    assert "  12 rows: 10 answered, 2 quarantined: 2 image_missing\n" in status.out
    # Those without an image have the same key with every prompt.
    assert "besides that run's: 10 rows answered, 0 quarantined, of another" in status.out
    assert json.loads(call("status", output, "--json").out)["output"] == output
    verified = call("verify", output)
    assert (verified.code, verified.err) == (0, "")
    assert verified.out.startswith(
        "all 12 rows of the last completed run are stored and exported once: 10 answered, "
        "2 quarantined; all "
    )

    # Three batches and the keys, but not the parts of the two rows without an image.
    before = set(store.list())
    planned = call("clean", output, "--dry-run")
    assert planned.out.startswith("would remove 5 objects")
    assert set(store.list()) == before
    removed = call("clean", output).out
    assert removed.startswith("removed 5 objects")
    assert removed.endswith(": 3 of completions, 1 of parts, 1 of row keys\n")
    deleted = before - set(store.list())
    assert len(deleted) == 5
    assert deleted < old
    verified = call("verify", output)
    assert (verified.code, verified.out.count("\n")) == (0, 1), verified.out
    assert call("clean", output).out.startswith("nothing to remove: ")
    again = run()
    assert (again.requests, again.quarantined) == (0, 2)
    # The rows in the removed part; the other parts were not removed.
    assert run(system_prompt="Be brief.").requests == 2

    [corrupted, *_] = store.list("pairs/parts")
    store.write(corrupted, store.read(corrupted)[:100])
    store.write("qa.jsonl", store.read("qa.jsonl") + b"{}\n")
    verified = call("verify", output)
    assert verified.code == 1
    assert f"{output}/{corrupted}" in verified.out
    assert f"{output}/qa.jsonl" in verified.out
    assert "problems in" in verified.out.splitlines()[-1]
    assert "Traceback" not in verified.err


def test_an_unreadable_output_is_reported_in_one_line(call: Call, s3: str) -> None:
    for command in ("status", "verify", "clean"):
        done = call(command, "s3://no-such-bucket/qa")
        assert done.code == 1
        [line] = done.err.splitlines()
        assert line.startswith("prefect-imageqa: s3://no-such-bucket")


def test_a_run_in_progress_tells_what_it_waits_for(
    call: Call, record_of: Callable[..., RunRecord], tmp_path: Path
) -> None:
    store = ObjectStore(uri=str(tmp_path / "out"))
    open_output(store)
    record = record_of(
        ago=5.2,
        state="running",
        total=6000,
        progress="3,340 of 6,000, no row done for 44 min",
        notes=["http://gpu-1:8000 does not answer: waiting, 12 s of 900", "S3 is slow"],
        counts=RunCounts(rows=3328, ok=3328, attempted=3500, duplicates=10),
    )
    record.write(store)
    shown = call("status", store.uri).out.splitlines()
    assert shown[3:6] == [
        "  3,340 of 6,000, no row done for 44 min; last heartbeat 5 s ago, no reply yet",
        "  http://gpu-1:8000 does not answer: waiting, 12 s of 900",
        "  S3 is slow",
    ]
    replied = record.updated - timedelta(minutes=44)
    record.model_copy(update={"last_reply": replied}).write(store)
    assert "; last heartbeat 5 s ago, last reply 44 min ago\n" in call("status", store.uri).out
    # What a dead run waited for is of no use, and its rows are not what they were.
    dead = record.model_copy(update={"updated": replied})
    dead.write(store)
    shown = call("status", store.uri).out.splitlines()
    assert shown[3].startswith(
        "  3,338 of 6,000 rows done at its last heartbeat, and perhaps a few more; no heartbeat "
        "for 44 min: killed or stuck"
    )
    assert not any("waiting" in line for line in shown)


@pytest.mark.parametrize(
    ("ago", "state", "shown", "refusal"),
    [
        (5, "running", "last heartbeat", "is in progress"),
        (5, "waiting", "waiting for another run to finish", "is in progress"),
        (
            90,
            "running",
            "no heartbeat for 2 min: killed or stuck; run the same command",
            "no run has",
        ),
        (5, "failed", "failed: no server; run the same command again to resume", "no run has"),
    ],
    ids=["in progress", "waiting", "killed", "failed"],
)
def test_an_unfinished_run_is_shown_and_not_cleaned_away(
    ago: float,
    state: str,
    shown: str,
    refusal: str,
    call: Call,
    record_of: Callable[..., RunRecord],
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    store = ObjectStore(uri=output)
    open_output(store)
    record = record_of(
        ago=ago,
        state=state,
        error="no server" if state == "failed" else "",
        dataset="d\x1b[2J.json",
        total=12,
        counts=RunCounts(rows=8, ok=7, quarantined=1, reused=4),
    )
    record.write(store)
    status = call("status", output)
    assert status.code == 0
    assert shown in status.out
    assert "8 of 12 rows done" in status.out
    assert "\x1b" not in status.out
    [run] = json.loads(call("status", output, "--json").out)["unfinished"]
    assert (run["state"], run["is_live"]) == (state, refusal == "is in progress")
    refused = call("clean", output, "--force")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert refusal in refused.err
    if not run["is_live"]:
        assert "run the same command again to finish it" in call("clean", output).err
