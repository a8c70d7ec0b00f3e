"""`filter` on the output of a real run: other pairs are kept, and nothing is asked."""

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa import Exports, ObjectStore, image_qa
from prefect_imageqa.flows import filtering
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA
from prefect_imageqa.tasks.exporting.split import split_pairs
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.runs.heartbeat import this_process
from prefect_imageqa.tasks.runs.run_record import RunRecord, completed_run, read_runs
from prefect_imageqa.tasks.storing.layout import FILTERED, JUDGED, SPLIT, run_name

from .conftest import Call

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


def rows_in(store: ObjectStore, name: str) -> list[int]:
    found: list[int] = pq.read_table(io.BytesIO(store.read(name)))["row"].to_pylist()
    return found


@pytest.fixture
def output(stub: Any, drawn: Path, tmp_path: Path) -> ObjectStore:
    """The output of a run on six rows, each with a pair, and their export."""
    store = ObjectStore(uri=str(tmp_path / "out"))
    exports = Exports(formats=("llava",))
    dataset = str(drawn / "dataset.json")
    image_qa(dataset, store.uri, endpoint=stub.url, max_rows=6, exports=exports)
    return store


def judge(store: ObjectStore) -> None:
    """Give the pairs the columns of two checks, as those of a run do."""
    pairs = pq.read_table(io.BytesIO(store.read(PAIRS)))
    own = len(PAIRS_SCHEMA)
    scores = pa.array([1.0, 1.0, 0.5, 0.0, None, 1.0])
    judged = pairs.add_column(own, "consistency", scores)
    judged = judged.add_column(own + 1, "blind_answerable", pa.array([False] * 5 + [True]))
    sink = pa.BufferOutputStream()
    pq.write_table(judged, sink)
    store.write(JUDGED, sink.getvalue().to_pybytes())


def test_another_filter_asks_nothing_and_keeps_everything_in_order(
    call: Call, output: ObjectStore, stub: Any, drawn: Path
) -> None:
    judge(output)
    requests = stub.stats()["requests"]
    condition = "consistency >= 0.5 AND NOT blind_answerable"
    dataset = ["--dataset", str(drawn / "dataset.json")]
    code, out, err = call("filter", output.uri, "--keep", condition, *dataset)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["met", "not", "met", "no", "result", "not", "asked"],
        ["consistency", ">=", "0.5", "4", "1", "1", "0"],
        ["NOT", "blind_answerable", "5", "1", "0", "0"],
        ["filtered:", "null", "in", "consistency", "1"],
        ["filtered:", "consistency", ">=", "0.5", "1"],
        ["filtered:", "NOT", "blind_answerable", "1"],
        ["3", "of", "6", "pairs", "kept", "(50.0", "%),", "of", "3", "of", "6", "rows"],
    ]
    assert (rows_in(output, PAIRS), rows_in(output, FILTERED)) == ([0, 1, 2], [3, 4, 5])
    assert len(json.loads(output.read("export/llava/train.json"))) == 3
    last = completed_run(output)
    counts = last.counts
    assert (counts.rows, counts.ok, counts.filtered, counts.quarantined) == (6, 3, 3, 0)
    assert (counts.pairs, counts.filtered_pairs) == (3, 3)
    assert last.parameters.checks.keep == condition
    assert verify(output).problems == []
    assert b"report" in output.read("report.html")
    assert [run.run for run in read_runs(output)] == [last.run]

    code, out, _ = call("filter", output.uri, "--keep", "TRUE", *dataset, "--json")
    assert code == 0
    assert (rows_in(output, PAIRS), rows_in(output, FILTERED)) == ([0, 1, 2, 3, 4, 5], [])
    assert len(json.loads(output.read("export/llava/train.json"))) == 6
    found = json.loads(out)
    assert (found["pairs"], found["filtered_pairs"], found["dry_run"]) == (6, 0, False)
    assert completed_run(output).counts.ok == 6
    assert verify(output).problems == []
    assert stub.stats()["requests"] == requests


def test_a_dry_run_says_the_same_and_writes_nothing(call: Call, output: ObjectStore) -> None:
    judge(output)
    flags = ["filter", output.uri, "--keep", "consistency > 0", "--max-per", "answer=2"]
    flags += ["--keep-best", "consistency=0.7"]
    before = {name: output.stamp(name) for name in output.list()}
    code, planned, err = call(*flags, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert {name: output.stamp(name) for name in output.list()} == before
    code, out, err = call(*flags, "--json")
    assert code == 0
    assert err.splitlines() == [
        "export llava still has the pairs from before: write it anew with `prefect-imageqa export "
        f"{output.uri} --format llava --dataset ...`",
        "the report has no images: give the run's dataset as --dataset",
    ]
    assert json.loads(planned) == {**json.loads(out), "dry_run": True}
    assert json.loads(out)["reasons"] == {
        "null in consistency": 1,
        "consistency > 0": 1,
        "not among the best 70 % by consistency": 1,
        "more than answer=2": 1,
    }
    checks = completed_run(output).parameters.checks
    assert (checks.keep_best, checks.max_per) == (("consistency=0.7",), ("answer=2",))
    _, out, _ = call(*flags, "--dry-run")
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["consistency", ">", "0", "4", "1", "1", "0"],
        ["best", "70", "%", "by", "consistency", "3", "2", "1", "0"],
    ]


def test_pairs_that_no_check_has_judged_can_be_filtered_too(
    call: Call, output: ObjectStore, stub: Any, drawn: Path
) -> None:
    whole = output.read(PAIRS)
    code, out, _ = call("filter", output.uri, "--keep", "row % 2 = 0", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "3 of 6 pairs kept (50.0 %), of 3 of 6 rows")
    assert not output.exists(JUDGED)
    assert call("filter", output.uri, "--keep", "row % 2 = 0")[0] == 0
    assert (rows_in(output, PAIRS), rows_in(output, FILTERED)) == ([0, 2, 4], [1, 3, 5])
    assert output.read(JUDGED) == whole
    assert verify(output).problems == []
    assert call("filter", output.uri, "--keep", "row > 1")[0] == 0
    assert rows_in(output, PAIRS) == [2, 3, 4, 5]

    requests = stub.stats()["requests"]
    image_qa(str(drawn / "dataset.json"), output.uri, endpoint=stub.url, max_rows=6)
    assert stub.stats()["requests"] == requests
    assert rows_in(output, PAIRS) == list(range(6))
    assert not output.exists(FILTERED)
    assert verify(output).problems == []


def test_killed_before_the_pairs_are_written_and_repeated(
    call: Call, output: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(output)
    put = ObjectStore.put

    def dying(store: ObjectStore, name: str, path: Path) -> None:
        if name == PAIRS:
            raise KeyboardInterrupt
        put(store, name, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", dying)
        assert call("filter", output.uri, "--keep", "consistency = 1")[0] == 130
    assert len(rows_in(output, PAIRS)) == 6
    assert call("filter", output.uri, "--keep", "consistency = 1")[0] == 0
    assert (len(rows_in(output, PAIRS)), len(rows_in(output, FILTERED))) == (3, 3)
    assert verify(output).problems == []


def test_killed_before_the_pairs_are_written_and_then_a_run(
    call: Call, output: ObjectStore, stub: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put

    def dying(store: ObjectStore, name: str, path: Path) -> None:
        if name == PAIRS:
            raise KeyboardInterrupt
        put(store, name, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", dying)
        assert call("filter", output.uri, "--keep", "row > 2")[0] == 130
    assert len(rows_in(output, FILTERED)) == 3
    image_qa(str(drawn / "dataset.json"), output.uri, endpoint=stub.url, max_rows=6)
    assert not output.exists(FILTERED)
    assert not output.exists(JUDGED)
    assert "6 of 6 pairs are kept" in call("evaluate", output.uri)[1]
    assert verify(output).problems == []


def test_only_one_writes_to_an_output(
    call: Call,
    output: ObjectStore,
    record_of: Callable[..., RunRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge(output)
    live = record_of(run="other", state="running", ago=0)
    live.write(output)
    before = output.read(PAIRS)
    code, out, err = call("filter", output.uri, "--keep", "consistency = 1")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "(other) is writing there; wait until it has finished" in err
    assert output.read(PAIRS) == before
    assert call("filter", output.uri, "--keep", "consistency = 1", "--dry-run")[0] == 0
    output.remove(run_name("other"))

    reached, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **others: Any) -> Any:
        reached.set()
        assert go_on.wait(30)
        return split_pairs(*arguments, **others)

    monkeypatch.setattr("prefect_imageqa.flows.filtering.split_pairs", slow)

    def first() -> None:
        with filtering.filtered(output, "consistency = 1", []):
            pass

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert reached.wait(30)
        [record] = [run for run in read_runs(output) if not run.is_completed]
        assert (record.is_live, record.process) == (True, this_process()["process"])
        code, _, err = call("filter", output.uri, "--keep", "TRUE")
        assert (code, err.count("\n")) == (1, 1)
        assert "is writing there" in err
    finally:
        go_on.set()
        thread.join()
    assert len(rows_in(output, PAIRS)) == 3
    assert all(run.is_completed for run in read_runs(output))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --keep, --keep-best or --max-per; --keep true keeps all pairs"),
        (["--keep", " "], "give --keep, --keep-best or --max-per; --keep true keeps all pairs"),
        (["--keep-best", "confidence"], "--keep-best: 'confidence' is no share to keep"),
        (["--max-per", "type"], "--max-per: 'type' is no limit"),
        (["--max-per", "row=3"], "--max-per: 'row=3' is no limit"),
    ],
    ids=["nothing", "empty", "no share", "no limit", "other column"],
)
def test_usage_errors(flags: list[str], message: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call("filter", str(tmp_path / "out"), *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_a_mistake_is_one_line_and_changes_nothing(
    dry: list[str], call: Call, output: ObjectStore, tmp_path: Path
) -> None:
    def refused(*flags: str) -> str:
        before = {name: output.stamp(name) for name in output.list()}
        code, out, err = call("filter", output.uri, *flags, *dry)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert {name: output.stamp(name) for name in output.list()} == before
        return err

    output.write(FILTERED, b"mine")
    assert "was not written by a run: move it away" in refused("--keep", "TRUE")
    output.remove(FILTERED)
    output.write(SPLIT, b"{}")
    assert "is missing, which has the pairs before" in refused("--keep", "TRUE")
    output.remove(SPLIT)
    judge(output)
    if not dry:
        assert "none.json" in refused("--keep", "consistency = 1", "--dataset", "none.json")
    for keep, message in (
        ("clarity > 1", "there is no column clarity (texts are in single quotes); the columns"),
        ("row > 0; DROP TABLE pairs", "it must be one condition"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "a subquery cannot be part"),
        ("CAST(answer AS INTEGER) > 1", "TRY_CAST gives NULL instead"),
    ):
        assert message in refused("--keep", keep)
    for column in ("blind_answerable", "clarity", "row"):
        message = refused("--keep-best", f"{column}=0.5")
        assert f"'{column}=0.5': there is no such column of numbers" in message
        assert "those that there are: consistency" in message
    assert "leave none of 6 pairs" in refused("--max-per", "answer=0.3")
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(io.BytesIO(output.read(JUDGED))).slice(1), sink)
    output.write(JUDGED, sink.getvalue().to_pybytes())
    assert "has 5 pairs, but the last completed run counts 6" in refused("--keep", "TRUE")
    output.write(JUDGED, os.urandom(100))
    assert "judged.parquet is corrupted" in refused("--keep", "TRUE")
    assert call("filter", str(tmp_path / "none"), "--keep", "TRUE", *dry)[0] == 1
