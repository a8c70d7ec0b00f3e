import json
import time
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.flows.summary import RunSummary, summarise
from prefect_imageqa.tasks.exporting import QA_JSONL, Counts, dump_record
from prefect_imageqa.tasks.object_store import ObjectStore


def summary(output: str = "out", **changed: Any) -> RunSummary:
    nothing = dict.fromkeys(
        ("ok", "filtered", "quarantined", "reused", "retried", "pairs", "requests"), 0
    ) | dict.fromkeys(("prompt_tokens", "completion_tokens", "seconds", "rows"), 0)
    return RunSummary(**(nothing | changed), output=output)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "0 answered, 0 quarantined"),
        ({"ok": 1234, "reused": 1000}, "1,234 answered (1,000 of them before), 0 quarantined"),
        (
            {"ok": 5, "filtered": 2, "quarantined": 4, "reasons": {"b": 1, "c": 2, "a": 1}},
            "5 answered, 2 filtered, 4 quarantined: 2 c, 1 a, 1 b",
        ),
    ],
)
def test_a_summary_is_one_line(changed: dict[str, Any], line: str) -> None:
    assert str(summary(**changed)) == line


def test_a_summary_is_counts_and_what_was_sent() -> None:
    counts = Counts(rows=10, ok=7, filtered=1, quarantined=2, pairs=9)
    counts.reasons["empty"] = 2
    progress = RunProgress(retried=3, started=time.monotonic() - 1.5)
    made = summarise(counts, progress, ObjectStore(uri="out"))
    assert (made.rows, made.ok, made.filtered, made.quarantined, made.pairs) == (10, 7, 1, 2, 9)
    assert (made.reasons, made.retried) == ({"empty": 2}, 3)
    assert 1.5 <= made.seconds < 100
    told = json.loads(made.to_json_line())
    assert told["rows"] == told["ok"] + told["filtered"] + told["quarantined"]


def test_the_answered_rows_come_as_a_frame(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"image": "a.png", "1": "007", "date": "2024-01-02", "n": 2**70, "output": "x\u2028y"},
        {"image": ["b.png"], "1": "1e5", "date": None, "n": 0.1, "output": "half \ud83d"},
    ]
    lines = b"".join(dump_record(record, None) + b"\n" for record in records)
    ObjectStore(uri=str(tmp_path)).write(QA_JSONL, lines)
    frame = summary(str(tmp_path)).to_pandas()
    assert list(frame.columns) == list(records[0])
    assert frame["1"].tolist() == ["007", "1e5"]
    assert frame["date"].tolist()[0] == "2024-01-02"
    assert frame["n"].tolist() == [2**70, 0.1]
    assert frame["output"].tolist() == ["x\u2028y", "half \ud83d"]


def test_no_answered_rows_are_an_empty_frame(tmp_path: Path) -> None:
    ObjectStore(uri=str(tmp_path)).write(QA_JSONL, b"")
    assert summary(str(tmp_path)).to_pandas().empty
