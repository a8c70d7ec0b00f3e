"""A run that changes nothing leaves the exports and the report as they are."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect_imageqa import Exports, ImageQAError, ObjectStore, Parsing, QAPair, image_qa
from prefect_imageqa.flows.publish import publish
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.exporting.export import ALWAYS_EXPORTED
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.storing.layout import EXPORTED

pytestmark = pytest.mark.usefixtures("with_report")

WRITTEN = (*ALWAYS_EXPORTED, "report.html", "README.md")


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> Callable[..., RunSummary]:
    """Runs the flow over a copy of the dataset, which the tests may change."""
    dataset = tmp_path / "dataset.json"
    records = json.loads((drawn / "dataset.json").read_bytes())[:3]
    for record in records:
        record["image"] = str(drawn / record["image"])
    dataset.write_text(json.dumps(records))

    def run(**options: Any) -> RunSummary:
        summary: RunSummary = image_qa(
            str(dataset), str(tmp_path / "out"), endpoint=stub.url, **options
        )
        return summary

    return run


@pytest.fixture
def output(tmp_path: Path) -> ObjectStore:
    return ObjectStore(uri=str(tmp_path / "out"))


def written_by(output: ObjectStore, run: Callable[[], object]) -> set[str]:
    """The files that a run has written again."""
    before = {name: output.stamp(name) for name in WRITTEN if output.exists(name)}
    run()
    return {name for name in WRITTEN if before.get(name) != output.stamp(name)}


def artifacts(output: ObjectStore) -> set[str]:
    """What the last run has published."""
    run = json.loads(output.read("manifest.json"))["run"]
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    return {str(artifact.key).rpartition("-")[2] for artifact in found}


def test_a_run_that_changes_nothing_writes_no_export_and_no_report(
    run: Callable[..., RunSummary], output: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = run()
    assert artifacts(output) == {"progress", "summary", "gallery", "quarantine"}
    assert written_by(output, run) == set()
    assert artifacts(output) == {"progress", "summary", "quarantine"}
    assert "the exports are up to date" in caplog.text
    again = json.loads(output.read("manifest.json"))["counts"]
    assert {**again, "seconds": 0} == first.model_dump(exclude={"output", "store"}) | {
        **dict.fromkeys(("requests", "attempted", "prompt_tokens", "completion_tokens"), 0),
        "reused": first.ok,
        "seconds": 0,
    }


def test_what_is_missing_or_edited_is_written_again(
    run: Callable[..., RunSummary], output: ObjectStore
) -> None:
    run()
    page = output.read("report.html")
    output.remove("report.html")
    assert written_by(output, run) >= {"report.html"}
    assert "gallery" in artifacts(output)
    output.write("report.html", page + b" ")
    assert not written_by(output, run) & {*ALWAYS_EXPORTED}
    assert not output.read("report.html").endswith(b" ")
    answers = output.read("qa.jsonl")
    output.write("qa.jsonl", b"")
    assert written_by(output, run) >= {*ALWAYS_EXPORTED, "report.html"}
    assert output.read("qa.jsonl") == answers
    assert written_by(output, run) == set()


def test_other_settings_and_new_rows_are_exported(
    run: Callable[..., RunSummary], output: ObjectStore, tmp_path: Path
) -> None:
    run(max_rows=2)
    assert written_by(output, run) >= {*ALWAYS_EXPORTED, "report.html"}
    run(exports=Exports(formats=["llava"]))
    assert "export/llava" in output.read("report.html").decode()
    dataset = tmp_path / "dataset.json"
    dataset.write_text(dataset.read_text().replace('"image": "', '"tag": "new", "image": "', 1))
    assert "qa.jsonl" in written_by(output, run)
    assert b'"tag":"new"' in output.read("qa.jsonl")


def test_a_dataset_at_another_place_is_named_in_the_report(
    run: Callable[..., RunSummary], output: ObjectStore, stub: Any, tmp_path: Path
) -> None:
    run()
    moved = tmp_path / "moved" / "dataset.json"
    moved.parent.mkdir()
    (tmp_path / "dataset.json").rename(moved)
    image_qa(str(moved), output.uri, endpoint=stub.url)
    assert str(moved) in output.read("report.html").decode()


MARK = ["!"]


def marked(text: str) -> list[QAPair]:
    return [QAPair(question="What is shown?", answer=text + MARK[0])]


def test_replies_that_are_parsed_again_are_exported_again(
    run: Callable[..., RunSummary], output: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = Parsing(parser=marked)
    run(parsing=parsing)
    monkeypatch.setattr(sys.modules[__name__], "MARK", ["?!"])
    for name in output.list("pairs/parts"):
        output.remove(name)
    run(parsing=parsing)
    with output.open(PAIRS) as file:
        answers = pq.read_table(file).column("answer").to_pylist()
    assert [answer[-2:] for answer in answers] == ["?!"] * 3


def test_a_record_with_other_counts_costs_one_run(
    run: Callable[..., RunSummary], output: ObjectStore
) -> None:
    first = run()
    record = json.loads(output.read(EXPORTED))
    record["counts"] |= {"ok": 1, "quarantined": 2}
    output.write(EXPORTED, json.dumps(record).encode())
    with pytest.raises(StoreError, match="run again"):
        run()
    assert run().pairs == first.pairs


def test_a_report_that_could_not_be_written_is_written_by_the_next_run(
    run: Callable[..., RunSummary], output: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImageQAError("no space left")

    run(max_rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "make_report", fail)
        run()
    assert b"3 of 3 answered" not in output.read("report.html")
    assert written_by(output, run) == {"report.html", "README.md"}
    assert b"3 of 3 answered" in output.read("report.html")
