"""Datasets that have answers: their pairs are stored like any others, and nothing is asked."""

import inspect
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect_imageqa import Checks, Columns, Sampling, image_qa
from prefect_imageqa.flows.batch_requests import open_pending
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.parameters import Parsing, RunParameters

ROWS: list[dict[str, Any]] = [
    {"question": "STUB text It is red.", "gold": " red "},
    {"question": "How many?", "gold": 3},
    {"question": "STUB text a cat", "gold": None},
    {"question": "Which?", "gold": ["red", "blue"]},
    {"question": "", "gold": "red"},
    {"question": ["What?", "Why?"], "gold": "red"},
    {"question": "Which label?", "gold": "**Question:** [a] **Answer:** <think>b"},
    {"question": "STUB text It is red.", "gold": "blue"},
]


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> dict[str, Any]:
    write(tmp_path, ROWS)
    return {
        "dataset": str(tmp_path / "rows.json"),
        "output": str(tmp_path / "out"),
        "endpoint": stub.url,
        "columns": Columns(answer="gold"),
        "parsing": Parsing(parser="answer"),
        "images": {"root": str(drawn)},
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.json").write_text(json.dumps([{"image": "images/000.png", **r} for r in rows]))


def pairs(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = pq.read_table(f"{run['output']}/{PAIRS}")
    assert "gold" not in found.column_names
    columns = (found[name].to_pylist() for name in ("question", "answer", "style"))
    return list(zip(*columns, strict=True))


def test_only_rows_without_an_answer_are_asked(run: dict[str, Any], tmp_path: Path) -> None:
    first = image_qa(**run)
    assert (first.rows, first.ok, first.quarantined, first.requests) == (8, 5, 3, 1)
    assert pairs(run) == [
        ("STUB text It is red.", "red", "given"),
        ("How many?", "3", "given"),
        ("STUB text a cat", "a cat", "chat"),
        ("Which label?", "**Question:** [a] **Answer:** <think>b", "given"),
        ("STUB text It is red.", "blue", "given"),
    ]
    quarantine = Path(run["output"], "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["message"] for line in quarantine] == [
        "the answer in column 'gold' is a list; give one text",
        "the row has an answer, but no question",
        "the row has one answer and several questions; give each a row of its own",
    ]
    assert verify(ObjectStore(uri=run["output"])).problems == []
    assert image_qa(**run).requests == 0

    checked = image_qa(**run, checks=Checks(names=("consistency",), keep="consistency = 1"))
    assert (checked.requests, checked.pairs, checked.filtered_pairs) == (4, 2, 3)
    assert [answer for _, answer, _ in pairs(run)] == ["red", "a cat"]

    write(tmp_path, [{**ROWS[0], "gold": "green"}, *ROWS[1:]])
    assert image_qa(**run).requests == 0
    assert pairs(run)[0] == ("STUB text It is red.", "green", "given")


def test_another_parser_and_other_sampling_leave_the_answers_as_they_are(
    run: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, [ROWS[0], ROWS[6]])
    given = image_qa(**run)
    assert given.requests == 0
    before = pairs(run)
    other = {**run, "parsing": Parsing(), "sampling": Sampling(temperature=0.1)}
    assert image_qa(**other).requests == 0
    assert pairs(run) == before


def test_batch_files_do_not_ask_for_given_answers(run: dict[str, Any]) -> None:
    given = inspect.signature(image_qa.fn).bind(**run, model="m")
    given.apply_defaults()
    with open_pending(RunParameters(**given.arguments)) as pending:
        assert len(list(pending.lines())) == 1
    counts = pending.counts
    assert (counts.requests, counts.finished, counts.problems) == (1, 4, 3)


def test_a_column_of_answers_must_exist_and_be_to_the_rows_own_questions(
    run: dict[str, Any],
) -> None:
    with pytest.raises(DatasetError, match="no column 'answer' in the first 8 rows"):
        image_qa(**{**run, "columns": Columns(answer="answer")})
    with pytest.raises(DatasetError, match="which this style does not ask: leave the column out"):
        image_qa(**{**run, "style": "single", "parsing": Parsing()})
