"""Pairs that the condition already drops are not asked about by the checks that are left."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect_imageqa import Checks, ImageQAError, Limits, image_qa
from prefect_imageqa.flows import checks as flow_checks
from prefect_imageqa.tasks.exporting import checked_rows
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.storing.layout import FILTERED, JUDGED

BOTH = Checks(
    names=("consistency", "blind"), keep="consistency >= 0.5 AND type IS NULL AND blind_answerable"
)


def row(*pairs: tuple[str, str]) -> str:
    """A row about which the stub writes these pairs, whose questions it obeys when asked again."""
    lines = [f"Question: STUB {again}\nAnswer: {answer}" for again, answer in pairs]
    return "STUB text " + "\n".join(lines)


ROWS = [
    row(("text It is red.", "red"), ("text Two", "three")),
    row(("finish length", "blue")),
    row(("text green", "green"), ("text old", "new")),
]
"""Of five pairs, the first and the fourth are answered alike, and one request fails."""


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> dict[str, Any]:
    write_rows(tmp_path / "rows.jsonl", ROWS, drawn)
    output, one = str(tmp_path / "out"), Limits(batch_size=1)
    dataset = str(tmp_path / "rows.jsonl")
    return {"dataset": dataset, "output": output, "endpoint": stub.url, "limits": one}


def write_rows(path: Path, rows: list[str], drawn: Path) -> None:
    images = [str(drawn / "images" / f"00{number}.png") for number in range(len(rows))]
    records = zip(images, rows, strict=True)
    lines = (json.dumps({"image": image, "conversation": text}) for image, text in records)
    path.write_text("\n".join(lines))


def table(run: dict[str, Any], name: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(f"{run['output']}/{name}").to_pydict()
    return columns


def test_only_pairs_that_are_left_are_asked_about(
    run: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    summary = image_qa(**run, checks=BOTH)
    assert summary.requests == 3 + 5 + 2
    assert (summary.pairs, summary.filtered_pairs) == (2, 3)
    assert summary.unjudged == {"blind": 1}
    judged = table(run, JUDGED)
    assert list(judged).index("consistency") < list(judged).index("blind_answerable")
    assert judged["blind_answerable"] == [True, False, None, True, False]
    assert judged["consistency"] == [1, None, None, 1, None]
    assert table(run, FILTERED)["filtered_by"] == [
        *("blind_answerable", "null in blind_answerable", "blind_answerable")
    ]
    assert "check consistency: 2 of 5 pairs have a result; 3 were not asked about" in caplog.text
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_another_condition_asks_what_is_missing_and_nothing_else(run: dict[str, Any]) -> None:
    image_qa(**run, checks=BOTH)
    strict = BOTH.model_copy(update={"keep": f"{BOTH.keep} AND answer = 'red'"})
    strict_run = image_qa(**run, checks=strict)
    assert (strict_run.requests, strict_run.pairs) == (0, 1)
    assert table(run, JUDGED)["blind_answerable"] == [True, None, None, None, None]
    loose = Checks(names=("consistency", "blind"), keep="consistency >= 0")
    loose_run = image_qa(**run, checks=loose)
    assert (loose_run.requests, loose_run.pairs) == (3, 4)
    assert loose_run.unjudged == {"blind": 1, "consistency": 1}
    assert table(run, PAIRS)["blind_answerable"] == [True, False, True, False]
    assert image_qa(**run, checks=Checks(names=("consistency", "blind"))).requests == 0
    assert image_qa(**run, checks=BOTH).requests == 0
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_dropped_pairs_can_be_asked_about_too(run: dict[str, Any]) -> None:
    both = BOTH.model_copy(update={"ask_dropped": True})
    assert image_qa(**run, checks=both).requests == 3 + 5 + 5
    assert table(run, JUDGED)["consistency"] == [1, 0, None, 1, 0]
    assert table(run, FILTERED)["filtered_by"][0] == "consistency >= 0.5"
    assert image_qa(**run, checks=BOTH).requests == 0


def test_what_is_computed_or_known_drops_pairs_before_any_request(run: dict[str, Any]) -> None:
    keep = "consistency >= 0 AND form <> 'cut_question' AND length(answer) = 5"
    summary = image_qa(**run, checks=Checks(names=("consistency", "form"), keep=keep))
    assert summary.requests == 3 + 2
    assert table(run, JUDGED)["consistency"] == [None, 0, None, 1, None]
    assert set(table(run, FILTERED)["filtered_by"]) == {"length(answer) = 5"}
    nothing = Checks(names=("consistency", "form"), keep="1 = 2")
    assert (image_qa(**run, checks=nothing).requests, table(run, PAIRS)["row"]) == (0, [])


def test_a_check_of_some_pairs_goes_on_where_it_was_stopped(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checked_rows.check_rows

    def stopped(check: Any, *args: Any) -> Iterator[Any]:
        rows = real(check, *args)
        if check.name == "blind":
            yield from rows
            return
        yield next(rows)
        raise ImageQAError("stopped")

    monkeypatch.setattr(flow_checks, "check_rows", stopped)
    with pytest.raises(ImageQAError, match="stopped"):
        image_qa(**run, checks=BOTH)
    monkeypatch.undo()
    assert image_qa(**run, checks=BOTH).requests == 1
    assert table(run, JUDGED)["consistency"] == [1, None, None, 1, None]


def test_more_rows_ask_only_what_is_new(run: dict[str, Any], drawn: Path) -> None:
    image_qa(**run, checks=BOTH)
    more = row(("text seven", "eight"), ("text nine", "nine"))
    write_rows(Path(run["dataset"]), [*ROWS, more], drawn)
    summary = image_qa(**run, checks=BOTH)
    assert (summary.requests, summary.pairs) == (1 + 2 + 1, 3)
    assert table(run, JUDGED)["consistency"] == [1, None, None, 1, None, None, 1]
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_judged_pairs_are_written_again_only_if_they_change(
    run: dict[str, Any], drawn: Path, tmp_path: Path
) -> None:
    benchmark = tmp_path / "benchmark"
    benchmark.mkdir()
    shutil.copy(drawn / "images" / "000.png", benchmark)
    names: Any = ("contamination", "duplicates", "consistency")
    keep = "contamination = '' AND consistency >= 0"
    checks = Checks(names=names, keep=keep, benchmarks=(str(benchmark),))
    assert image_qa(**run, checks=checks).requests == 3 + 3
    store = ObjectStore(uri=run["output"])
    before = [store.stamp(name) for name in (JUDGED, PAIRS)]
    assert image_qa(**run, checks=checks).requests == 0
    assert [store.stamp(name) for name in (JUDGED, PAIRS)] == before
    shutil.copy(drawn / "images" / "002.png", benchmark)
    assert image_qa(**run, checks=checks).pairs == 0
    assert table(run, JUDGED)["contamination"][3:] == ["benchmark/002.png"] * 2
