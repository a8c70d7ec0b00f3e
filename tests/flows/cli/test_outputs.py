"""`status`, `verify` and `clean` on an output that real runs have made."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import Limits, ObjectStore, image_qa
from prefect_imageqa.flows.cli.main import main
from prefect_imageqa.tasks.runs.records import RunCounts, read_runs
from prefect_imageqa.tasks.storing.layout import write_manifest


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]

# `main` is what is tested, and takes its words from sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls `prefect-imageqa` as a shell does, without the seconds that a new process takes."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["prefect-imageqa", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        told = capsys.readouterr()
        return Done(exit_info.value.code or 0, told.out, told.err)  # type: ignore[arg-type]

    return run


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('s3')}/outputs-{tmp_path.name}"


@pytest.fixture
def ask(stub: Any, drawn: Path, output: str) -> Callable[..., Any]:
    def run(**changed: Any) -> Any:
        return image_qa(
            str(drawn / "dataset.json"),
            output,
            endpoint=stub.url,
            limits=Limits(batch_size=5),
            **changed,
        )

    return run


def test_an_output_is_told_checked_and_cleaned(
    call: Call, ask: Callable[..., Any], output: str
) -> None:
    nothing = call("status", output)
    assert (nothing.code, nothing.out.strip()) == (0, f"{output}: nothing there yet")
    ask(system_prompt="Be brief.")
    ask()
    told = call("status", output)
    assert told.code == 0
    assert "12 rows: 12 ok, 0 quarantined" in told.out
    assert json.loads(call("status", output, "--json").out)["output"] == output
    well = call("verify", output)
    assert (well.code, well.err) == (0, "")
    assert "12 rows, " in well.out
    assert "all there and readable" in well.out

    planned = call("clean", output, "--dry-run")
    assert "would remove 7 objects" in planned.out  # three batches, and the keys
    removed = call("clean", output).out
    assert removed.startswith("removed 7 objects")
    assert removed.endswith(": 3 completions, 3 parts, 1 keys\n")
    assert call("verify", output).code == 0
    assert ask().requests == 0
    assert ask(system_prompt="Be brief.").requests == 12


def test_what_is_damaged_is_named(call: Call, ask: Callable[..., Any], output: str) -> None:
    ask()
    store = ObjectStore(uri=output)
    [corrupted, *_] = store.list("pairs/parts")
    store.write(corrupted, store.read(corrupted)[:100])
    store.write("qa.jsonl", store.read("qa.jsonl") + b"{}\n")
    checked = call("verify", output)
    assert checked.code == 1
    assert f"{output}/{corrupted}" in checked.out
    assert "qa.jsonl" in checked.out
    assert "Traceback" not in checked.err


def test_an_output_that_cannot_be_read_is_one_line(call: Call, s3: str) -> None:
    for command in ("status", "verify", "clean"):
        done = call(command, "s3://no-such-bucket/qa")
        assert done.code == 1
        [line] = done.err.splitlines()
        assert line.startswith("prefect-imageqa: s3://no-such-bucket")


def test_a_row_that_is_never_asked_keeps_the_part_that_it_is_in(
    call: Call, ask: Callable[..., Any], drawn: Path, output: str
) -> None:
    """A row without an image is the same in every configuration."""
    rows = json.loads((drawn / "dataset.json").read_text())
    rows[1]["image"] = rows[6]["image"] = "gone.png"
    (drawn / "dataset.json").write_text(json.dumps(rows))
    assert ask(system_prompt="Be brief.").requests == 10
    assert ask().requests == 10
    store = ObjectStore(uri=output)
    completions = set(store.list("pairs/completions"))
    assert call("clean", output).code == 0
    assert len(completions - set(store.list("pairs/completions"))) == 3
    checked = call("verify", output)
    assert (checked.code, checked.out.count("\n")) == (0, 1), checked.out
    again = ask()
    assert (again.requests, again.quarantined) == (0, 2)
    assert ask(system_prompt="Be brief.").requests == 2  # of the batch without such a row


@pytest.mark.parametrize(
    ("seconds_ago", "state", "told", "refusal"),
    [
        (5, "running", "last heartbeat", "is going on"),
        (5, "waiting", "waits for its turn to write", "is going on"),
        (90, "running", "s: killed or stuck; the same command goes on from here", "no run has"),
        (5, "failed", "failed: no server; the same command goes on from here", "no run has"),
    ],
    ids=["going", "waiting", "killed", "failed"],
)
def test_a_run_that_is_not_completed_is_told_and_not_cleaned_away(
    seconds_ago: float,
    state: str,
    told: str,
    refusal: str,
    call: Call,
    stub: Any,
    drawn: Path,
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    image_qa(str(drawn / "dataset.json"), output, endpoint=stub.url, max_rows=1)
    store = ObjectStore(uri=output)
    write_manifest(store, {})
    changed = {
        "state": state,
        "error": "no server" if state == "failed" else "",
        "updated": datetime.now(UTC) - timedelta(seconds=seconds_ago),
        "machine": "another",  # whose processes nobody here can see
        "dataset": "d\x1b[2J.json",
        "total": 12,
        "counts": RunCounts(rows=8, ok=7, quarantined=1, reused=4),
    }
    [left] = read_runs(store)
    left.model_copy(update=changed).write(store)
    found = call("status", output)
    assert found.code == 0
    assert told in found.out
    assert "8 of 12 rows done" in found.out
    assert "\x1b" not in found.out
    [run] = json.loads(call("status", output, "--json").out)["unfinished"]
    assert (run["state"], run["going"]) == (state, refusal == "is going on")
    refused = call("clean", output, "--force")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert refusal in refused.err
    if not run["going"]:
        assert "finish it first with the same command" in call("clean", output).err
