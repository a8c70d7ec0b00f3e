"""The results of batch files, by row key."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.flows.batch_results import BatchResults
from prefect_imageqa.serving.client.bodies import reply_limit
from prefect_imageqa.serving.types import Completion, Failure
from prefect_imageqa.tasks.errors import EndpointError

KEYS = [f"{number:032x}" for number in range(9)]


def result(key: str, text: str = "", status: int = 200) -> str:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    response: dict[str, Any] = {"status_code": status, "body": {"choices": [choice]}}
    return json.dumps({"custom_id": key, "response": response, "error": None}) + "\n"


def text_of(results: BatchResults, key: str) -> str | None:
    outcome = results.get(key)
    return outcome.text if isinstance(outcome, Completion) else None


def test_each_row_finds_its_result_in_any_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(result(KEYS[2], "two") + "\n" + result(KEYS[0], "zero"))
    (tmp_path / "a.jsonl").write_text("\ufeff" + result(KEYS[1], "one").rstrip())
    (tmp_path / "requests.txt").write_text("not read")
    results = BatchResults([tmp_path])
    assert [file.name for file in results.files] == ["a.jsonl", "b.jsonl"]
    assert len(results) == 3
    assert [text_of(results, key) for key in KEYS[:4]] == ["zero", "one", "two", None]
    assert (KEYS[2] in results, KEYS[3] in results) == (True, False)
    assert results.notes == []


def test_of_several_results_a_completion_counts_then_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text(result(KEYS[0], status=500) + result(KEYS[1], "a") + result(KEYS[2], "a"))
    second.write_text(result(KEYS[0], "b") + result(KEYS[1], status=500) + result(KEYS[2], "b"))
    results = BatchResults([first, second])
    assert [text_of(results, key) for key in KEYS[:3]] == ["b", "a", "a"]
    assert results.counts == {"results": 3, "duplicates": 3}
    assert results.notes == [f"further results about a row that has one: 3, the first: {second}:1"]


def test_lines_that_are_no_result_are_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("{\n" + result("row-1") + result(KEYS[0], "a") + "[]\n" + result("row-2"))
    results = BatchResults([file])
    assert results.counts == {"results": 1, "unreadable": 2, "unknown": 2}
    assert results.notes == [
        f"lines of the results that cannot be read: 2, the first: {file}:1 is not JSON",
        f"results with a custom_id that no run gives: 2, the first: {file}:2, 'row-1'",
    ]


def test_a_line_longer_than_a_reply_is_skipped_as_one(tmp_path: Path) -> None:
    limit = reply_limit(1)
    file = tmp_path / "r.jsonl"
    file.write_text(result(KEYS[0], "x" * (2 * limit)) + result(KEYS[1], "b") + "[" * limit)
    results = BatchResults([file], max_tokens=1)
    assert results.counts == {"results": 1, "unreadable": 2}
    assert results.notes == [
        f"lines of the results that cannot be read: 2, the first: {file}:1 is longer than a reply "
        "may be"
    ]
    assert text_of(results, KEYS[1]) == "b"


def test_results_that_nobody_asked_for_are_counted(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("".join(result(key, "a") for key in KEYS[:5]))
    results = BatchResults([tmp_path])
    assert results.unused == 5
    for key in (KEYS[0], KEYS[3], KEYS[0], KEYS[7]):
        results.get(key)
    assert results.unused == 3


def test_a_file_that_changes_meanwhile_answers_no_other_row(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(result(KEYS[0], "a") + result(KEYS[1], "b"))
    results = BatchResults([file])
    file.write_text(result(KEYS[2], "c") + result(KEYS[1], "b")[1:])
    assert [results.get(key) for key in KEYS[:2]] == [None, None]


def test_a_failure_is_an_outcome_too(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(result(KEYS[0], status=400))
    assert isinstance(BatchResults([tmp_path]).get(KEYS[0]), Failure)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder has no *.jsonl file with results"),
        ({"a.jsonl": ""}, "no result is about a row: "),
        ({"a.jsonl": "{\n"}, "lines of the results that cannot be read: 1"),
        ({"a.jsonl": result("row-1")}, "custom_id that no run gives: 1, the first"),
    ],
    ids=["no file", "empty", "not JSON", "foreign"],
)
def test_results_without_any_row_are_one_clear_error(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(EndpointError) as caught:
        BatchResults([tmp_path])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_results_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"none\.jsonl: cannot be read: No such file"):
        BatchResults([tmp_path / "none.jsonl"])
