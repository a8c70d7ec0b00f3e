import json
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.flows.summary import RunSummary
from prefect_imageqa.tasks.exporting.qa_json import QA_JSONL, dump_record
from prefect_imageqa.tasks.object_store.store import ObjectStore


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "0 answered, 0 quarantined"),
        (
            {"rows": 1234, "ok": 1234, "reused": 1000},
            "1,234 answered (1,000 of them before), 0 quarantined",
        ),
        (
            {
                "rows": 11,
                "ok": 5,
                "filtered": 2,
                "quarantined": 4,
                "reasons": {"b": 1, "c": 2, "a": 1},
            },
            "5 answered, 2 filtered, 4 quarantined: 2 c, 1 a, 1 b",
        ),
        (
            {"rows": 9, "ok": 9, "duplicates": 3},
            "9 answered, 0 quarantined; 3 duplicates share the outcome of another row",
        ),
        (
            {"rows": 2, "ok": 2, "duplicates": 1},
            "2 answered, 0 quarantined; 1 duplicate shares the outcome of another row",
        ),
        (
            {"rows": 2, "ok": 2, "pairs": 2, "lost_pairs": 3},
            "2 answered, 0 quarantined; 3 more of their pairs could not be read",
        ),
    ],
)
def test_a_summary_is_one_line(changed: dict[str, Any], line: str) -> None:
    assert str(RunSummary(**changed, output="out")) == line


def test_a_summary_as_one_line_of_json() -> None:
    summary = RunSummary(rows=10, ok=7, filtered=1, quarantined=2, seconds=1.5, output="out")
    counts = json.loads(summary.to_json_line())
    assert (counts["rows"], counts["ok"], counts["seconds"], counts["output"]) == (
        10,
        7,
        1.5,
        "out",
    )


def test_answered_rows_as_a_dataframe(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"image": "a.png", "1": "007", "date": "2024-01-02", "n": 2**70, "output": "x\u2028y"},
        {"image": ["b.png"], "1": "1e5", "date": None, "n": 0.1, "output": "half \ud83d"},
    ]
    lines = b"".join(dump_record(record) + b"\n" for record in records)
    ObjectStore(uri=str(tmp_path)).write(QA_JSONL, lines)
    frame = RunSummary(output=str(tmp_path)).to_pandas()
    assert list(frame.columns) == list(records[0])
    assert frame["1"].tolist() == ["007", "1e5"]
    assert frame["date"].tolist()[0] == "2024-01-02"
    assert frame["n"].tolist() == [2**70, 0.1]
    assert frame["output"].tolist() == ["x\u2028y", "half \ud83d"]


def test_no_answered_rows_as_an_empty_dataframe(tmp_path: Path) -> None:
    ObjectStore(uri=str(tmp_path)).write(QA_JSONL, b"")
    assert RunSummary(output=str(tmp_path)).to_pandas().empty
