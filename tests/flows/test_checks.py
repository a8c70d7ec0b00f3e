"""Checks of pairs: each is a further pass of a run, on the stub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_imageqa import (
    Asking,
    Checks,
    ImageQAError,
    Limits,
    Sampling,
    StoreError,
    image_qa,
)
from prefect_imageqa.flows import checks as flow_checks
from prefect_imageqa.flows.batch_results import BatchResults
from prefect_imageqa.serving.client.retry_policy import MAX_ATTEMPTS
from prefect_imageqa.serving.types import FailureKind
from prefect_imageqa.tasks.exporting import checked_rows
from prefect_imageqa.tasks.exporting.clean_output import find_unused, remove_unused
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.runs.run_record import last_completed
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, FILTERED, JUDGED
from pydantic import ValidationError

CONSISTENCY = Checks(names=("consistency",))
KEPT = Checks(names=("consistency",), keep="consistency >= 0.5")


def asked(*pairs: tuple[str, str]) -> str:
    """A row about which the stub writes these pairs, whose questions it obeys when asked again."""
    lines = [f"Question: STUB {again}\nAnswer: {answer}" for again, answer in pairs]
    return "STUB text " + "\n".join(lines)


ROWS = [
    asked(("text It is red.", "red"), ("text Two", "three")),
    asked(("finish length", "blue")),
    asked(("text green", "yellow")),
]


@pytest.fixture
def run(stub: Any, drawn: Path, tmp_path: Path) -> dict[str, Any]:
    """A run on three rows with four pairs: one that agrees, two that do not, one that fails."""
    images = [str(drawn / "images" / f"00{number}.png") for number in range(3)]
    frame = pd.DataFrame({"image": images, "conversation": ROWS, "consistency": ["x", "y", "z"]})
    frame.to_parquet(tmp_path / "rows.parquet")
    return {
        "dataset": str(tmp_path / "rows.parquet"),
        "output": str(tmp_path / "out"),
        "endpoint": stub.url,
    }


def table(run: dict[str, Any], name: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(f"{run['output']}/{name}").to_pydict()
    return columns


def test_every_pair_gets_the_columns_of_a_check(run: dict[str, Any]) -> None:
    first = image_qa(**run, checks=CONSISTENCY)
    assert (first.rows, first.ok, first.filtered, first.quarantined) == (3, 3, 0, 0)
    assert (first.requests, first.pairs, first.filtered_pairs) == (3 + 4, 4, 0)
    assert first.unjudged == {"consistency": 1}
    assert "1 pairs without a result of check consistency" in str(first)
    pairs = table(run, PAIRS)
    assert list(pairs) == [
        *PAIRS_SCHEMA.names,
        *("consistency", "consistency_answer", "dataset_consistency"),
    ]
    assert pairs["consistency"] == [1.0, 0.0, None, 0.0]
    assert pairs["consistency_answer"] == ["It is red.", "Two", None, "green"]
    assert pairs["dataset_consistency"] == ["x", "x", "y", "z"]
    store = ObjectStore(uri=run["output"])
    assert any(name.startswith("checks/consistency/parts/") for name in store.list())
    assert verify(store).problems == []
    record = last_completed(store)
    assert record is not None
    assert record.counts.unjudged == {"consistency": 1}
    stamps = [store.stamp(name) for name in (ALL_PAIRS, JUDGED)]
    again = image_qa(**run, checks=CONSISTENCY)
    assert (again.requests, again.pairs, again.unjudged) == (0, 4, {"consistency": 1})
    assert [store.stamp(name) for name in (ALL_PAIRS, JUDGED)] == stamps


def test_the_question_is_asked_greedily_with_its_image(stub: Any, run: dict[str, Any]) -> None:
    image_qa(**run, checks=CONSISTENCY)
    body = next(
        body
        for body in stub.stats()["bodies"][::-1]
        if body["messages"][-1]["content"][-1] == {"type": "text", "text": "STUB text It is red."}
    )
    assert body["temperature"] == 0
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]


def test_one_more_check_asks_for_nothing_else(run: dict[str, Any]) -> None:
    assert image_qa(**run).requests == 3
    assert image_qa(**run, checks=CONSISTENCY).requests == 4
    assert image_qa(**run, checks=Checks(names=("consistency", "blind"))).requests == 4
    assert {"consistency", "blind_answerable"} <= table(run, PAIRS).keys()
    store = ObjectStore(uri=run["output"])
    assert verify(store).problems == []
    last = image_qa(**run)
    assert (last.requests, last.pairs, last.unjudged) == (0, 4, {})
    assert list(table(run, PAIRS)) == [*PAIRS_SCHEMA.names, "consistency"]
    assert not any(map(store.exists, (ALL_PAIRS, JUDGED, FILTERED)))
    assert verify(store).problems == []


def test_pairs_that_do_not_meet_the_condition_are_kept_apart(run: dict[str, Any]) -> None:
    kept = image_qa(**run, checks=KEPT)
    assert (kept.rows, kept.ok, kept.filtered, kept.quarantined) == (3, 1, 2, 0)
    assert (kept.pairs, kept.filtered_pairs) == (1, 3)
    assert "1 answered, 2 filtered, 0 quarantined; 1 of 4 pairs kept" in str(kept)
    assert table(run, PAIRS)["answer"] == ["red"]
    filtered = table(run, FILTERED)
    assert filtered["answer"] == ["three", "blue", "yellow"]
    assert all(filtered["filtered_by"])
    store = ObjectStore(uri=run["output"])
    assert verify(store).problems == []
    other = image_qa(**run, checks=Checks(names=("consistency",), keep="consistency < 0.5"))
    assert (other.requests, other.pairs, other.filtered_pairs, other.ok) == (0, 2, 2, 2)
    assert verify(store).problems == []
    store.write(FILTERED, store.read(PAIRS))
    assert [line for line in verify(store).problems if "are not those of" in line]


def test_a_check_that_is_stopped_goes_on_where_it_was(
    run: dict[str, Any], stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checked_rows.check_rows

    def stopped(*args: Any) -> Iterator[Any]:
        rows = real(*args)
        yield from (next(rows) for _ in range(2))
        raise ImageQAError("stopped")

    monkeypatch.setattr(flow_checks, "check_rows", stopped)
    one = Limits(batch_size=1)
    with pytest.raises(ImageQAError, match="stopped"):
        image_qa(**run, checks=CONSISTENCY, limits=one)
    monkeypatch.undo()
    before = stub.stats()["requests"]
    resumed = image_qa(**run, checks=CONSISTENCY, limits=one)
    assert stub.stats()["requests"] - before == resumed.requests == 2
    assert (resumed.pairs, resumed.unjudged) == (4, {"consistency": 1})
    assert verify(ObjectStore(uri=run["output"])).problems == []


def test_a_failure_that_may_pass_is_asked_again_by_the_next_run(
    run: dict[str, Any], quick_retries: None
) -> None:
    frame = pd.read_parquet(run["dataset"])
    frame["conversation"] = [asked(("status 500", "blue"), ("text red", "red"))] * 3
    run["dataset"] = frame  # which has no digest
    tries = MAX_ATTEMPTS[FailureKind.SERVER_ERROR]
    one = image_qa(**run, checks=CONSISTENCY)
    assert (one.requests, one.unjudged) == (3 + 3 * (tries + 1), {"consistency": 3})
    assert table(run, PAIRS)["consistency"] == [None, 1.0] * 3
    assert image_qa(**run, checks=CONSISTENCY).requests == 3 * tries


def test_clean_keeps_what_the_checks_of_the_kept_configuration_need(run: dict[str, Any]) -> None:
    store = ObjectStore(uri=run["output"])
    image_qa(**run, checks=CONSISTENCY)
    assert find_unused(store).objects == {}
    image_qa(**run, checks=CONSISTENCY, asking=Asking(samples=2))
    remove_unused(store, find_unused(store))
    assert verify(store).problems == []
    assert image_qa(**run, checks=CONSISTENCY, asking=Asking(samples=2)).requests == 0
    image_qa(**run, sampling=Sampling(temperature=1.5))
    remove_unused(store, find_unused(store))
    assert not [name for name in store.list() if name.startswith("checks/consistency/")]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "column": ({"keep": "consistence > 1"}, "consistence"),
    "condition": ({"names": ("consistency",), "keep": "consistency >="}, "consistency >="),
    "best by a check that is not made": (
        {"names": ("consistency",), "keep_best": ("confidence=0.9",)},
        "no such column of numbers; run with --check confidence",
    ),
    "column of a check that is not made": ({"keep": "consistency > 0.5"}, "consistency"),
    "rubric": ({"names": ("judge",), "rubric": "nowhere.md"}, "nowhere.md"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_any_request(
    mistake: str, stub: Any, run: dict[str, Any]
) -> None:
    given, expected = MISTAKES[mistake]
    before = stub.stats()["requests"]
    with pytest.raises(ImageQAError, match=expected) as raised:
        image_qa(**run, checks=Checks(**given))
    assert "\n" not in str(raised.value)
    assert stub.stats()["requests"] == before
    assert not Path(run["output"]).exists()


@pytest.mark.parametrize(
    "given", [{"names": ("consistence",)}, {"max_per": ("type",)}, {"keep_best": ("x=1",)}]
)
def test_unknown_names_and_limits_are_no_parameters(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Checks(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ("form",), "benchmarks": ("mmbench",)}, "for check contamination, which is not"),
        ({"names": ("contamination",)}, "name the test sets that check contamination compares"),
        ({"rubric": "nowhere.md"}, "for check judge, which is not made"),
        ({"names": ("form",), "judge_endpoint": "http://gpu:8000"}, "for check judge"),
        ({"names": ("form",), "judge_model": "arbiter"}, "for check judge"),
        ({"names": ("judge",), "times": 3}, "for check consistency"),
        ({"none_option": True}, "for check blind or swapped"),
    ],
)
def test_what_no_check_uses_and_what_one_needs_is_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Checks(**given)


def test_the_form_may_send_what_no_check_uses_as_it_is_by_default() -> None:
    shown = Checks().model_dump()
    assert Checks(**shown | {"names": ("form",), "rubric": None}).names == ("form",)


def test_the_results_of_batch_files_have_no_checks(run: dict[str, Any], tmp_path: Path) -> None:
    choice = {"message": {"content": "text"}, "finish_reason": "stop"}
    response = {"status_code": 200, "body": {"choices": [choice]}}
    line = {"custom_id": "0" * 32, "response": response, "error": None}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    run["endpoint"] = BatchResults([tmp_path / "results.jsonl"])
    with pytest.raises(ImageQAError, match="batch files have no requests of checks"):
        image_qa(**run, model="stub", checks=CONSISTENCY)


def test_a_file_with_the_name_of_the_filtered_pairs_is_not_replaced(run: dict[str, Any]) -> None:
    image_qa(**run)
    own = Path(run["output"], FILTERED)
    own.write_text("mine")
    with pytest.raises(StoreError, match=r"filtered\.parquet already exists"):
        image_qa(**run, checks=CONSISTENCY)
    image_qa(**run, asking=Asking(samples=2))
    assert own.read_text() == "mine"


def test_a_computed_check_is_made_without_requests(run: dict[str, Any]) -> None:
    summary = image_qa(**run, checks=Checks(names=("duplicates", "form")))
    assert (summary.requests, summary.pairs, summary.unjudged) == (3, 4, {})
    pairs = table(run, PAIRS)
    assert pairs["near_duplicate_image"] == [""] * 4
    assert len(pairs["form"]) == 4


def test_a_check_that_shows_another_image_sends_it(stub: Any, run: dict[str, Any]) -> None:
    summary = image_qa(**run, checks=Checks(names=("swapped",)))
    assert (summary.requests, summary.unjudged) == (3 + 4, {"swapped": 1})


def test_a_copy_is_not_another_image(run: dict[str, Any], drawn: Path, tmp_path: Path) -> None:
    original, copy = drawn / "images" / "000.png", tmp_path / "copy.jpg"
    Image.open(original).save(copy, quality=80)
    frame = pd.DataFrame({"image": [str(original), str(copy)], "conversation": ROWS[::2]})
    summary = image_qa(**run | {"dataset": frame}, checks=Checks(names=("swapped",)))
    assert (summary.requests, summary.unjudged) == (2, {"swapped": 3})
