"""What checks are worth, on pairs whose truth is known, and what a page says about it."""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prefect_imageqa.serving.demo_model.questions import FOLLOW_UPS, Question, QuestionKind
from prefect_imageqa.serving.demo_model.scenes import Shape, random_scene
from prefect_imageqa.serving.demo_model.truth import answer_to
from prefect_imageqa.tasks.errors import DatasetError, ObjectCorruptedError
from prefect_imageqa.tasks.exporting.pairs_parquet import (
    FILTERED_BY,
    LATER_CHECKS,
    PAIRS,
    PAIRS_SCHEMA,
)
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.reporting.check_columns import result_columns
from prefect_imageqa.tasks.reporting.detection import Detection, Share, auc
from prefect_imageqa.tasks.reporting.evaluate import evaluate, evaluate_output
from prefect_imageqa.tasks.reporting.evaluation import Agreement, Evaluation
from prefect_imageqa.tasks.reporting.judged_pairs import (
    MAX_TEXTS,
    Filtered,
    add_counts,
    read_batches,
    whole_rows,
)
from prefect_imageqa.tasks.reporting.truth import column_truth, read_scenes, scene_truth
from prefect_imageqa.tasks.storing.layout import FILTERED, JUDGED

from .conftest import CHECKS, TRUTH, table_of, write

WRONG, INCONSISTENT, UNJUDGED, BLIND, TAKEN_OUT = {3, 7}, {3, 4}, {8}, {4, 7}, (3, 4)


def ten_pairs() -> pa.Table:
    return table_of(
        [
            {
                "consistency": None if number in UNJUDGED else float(number not in INCONSISTENT),
                "blind_answerable": number in BLIND,
                "is_right": number not in WRONG,
                "type": "counting" if number < 4 else None,
            }
            for number in range(10)
        ],
        *CHECKS,
        TRUTH,
    )


@pytest.fixture
def checked(local: ObjectStore) -> ObjectStore:
    """An output with ten judged pairs, of which two are filtered; row groups end within rows."""
    pairs = ten_pairs()
    write(local, JUDGED, pairs)
    filtered = pairs.take(list(TAKEN_OUT))
    write(local, FILTERED, filtered.append_column(FILTERED_BY, [["consistency >= 1", "type=0.3"]]))
    return local


def test_the_checks_of_an_output_are_measured(checked: ObjectStore) -> None:
    found = evaluate_output(checked, column_truth("is_right"), "is_right")
    assert (found.pairs, found.kept, found.images, found.questions) == (10, 8, 5, 10)
    assert found.per_image == {2: 5}
    assert found.types == {"counting": 4}
    assert found.reasons == {"consistency >= 1": 1, "type=0.3": 1}
    consistency, blind = found.checks
    assert (consistency.passed, consistency.failed, consistency.unjudged) == (7, 2, 1)
    assert (blind.passed, blind.failed, blind.unjudged) == (8, 2, 0)
    assert (consistency.so_far, blind.so_far) == (8, 7)
    assert consistency.bins == (("0", 2), ("1", 7))
    # A pair without a result tells nothing about the check.
    assert consistency.detection == Detection(6, 1, 1, 1)
    assert consistency.auc == pytest.approx((6 + 6 / 2 + 1 / 2) / 14)
    assert found.agreements == (Agreement("consistency", "blind_answerable", 6, 1, 1, 1),)
    assert found.filter == Detection(7, 1, 1, 1)
    assert found.kinds == {"counting": Detection(3, 0, 0, 1), "": Detection(4, 1, 1, 0)}
    assert (found.filter.before, found.filter.after) == (Share(8, 10), Share(7, 8))
    assert (found.filter.precision, found.filter.recall) == (Share(1, 2), Share(1, 2))
    assert found.filter.lost == Share(1, 8)


def test_an_output_without_checks_is_described(local: ObjectStore) -> None:
    write(local, PAIRS, table_of([{"question": q} for q in ("A?", " a? ", "B?", "C?")]))
    found = evaluate_output(local)
    assert (found.pairs, found.kept, found.questions, found.checks) == (4, 4, 3, ())
    assert not found.has_truth


def test_a_column_of_the_dataset_is_no_check(checked: ObjectStore) -> None:
    fields = (*CHECKS[:2], pa.field("confidence", pa.float64()))
    write(checked, JUDGED, table_of([{"consistency": 1.0, "confidence": 0.5}] * 4, *fields))
    names = [check.column.name for check in evaluate_output(checked).checks]
    assert names == ["consistency", "confidence"]
    [check] = evaluate_output(checked, checks=["consistency"]).checks
    assert check.column.name == "consistency"


def test_a_score_without_a_bound_of_its_own_fails_its_lowest_tenth(local: ObjectStore) -> None:
    lines = [{"confidence": -float(number) if number else None} for number in range(101)]
    write(local, JUDGED, table_of(lines, pa.field("confidence", pa.float64())), 7)
    [check] = evaluate_output(local).checks
    assert (check.passed, check.failed, check.unjudged) == (90, 10, 1)
    assert check.column.rule == "at least -90.1"
    assert len(check.bins) == 10


def test_equal_scores_pass(local: ObjectStore) -> None:
    """-0.7 is less than what it is in half the bits."""
    write(local, JUDGED, table_of([{"confidence": -0.7}] * 9, pa.field("confidence", pa.float64())))
    [check] = evaluate_output(local).checks
    assert (check.passed, check.failed) == (9, 0)


def test_pairs_that_were_not_asked_about_are_told_apart(local: ObjectStore) -> None:
    table = table_of([{"consistency": None}] * 3 + [{"consistency": 1.0}], CHECKS[0])
    write(local, JUDGED, table.replace_schema_metadata({LATER_CHECKS: "consistency=2 form=1"}))
    [check] = evaluate_output(local).checks
    assert (check.passed, check.failed, check.unjudged, check.unasked) == (1, 0, 1, 2)


def test_which_pairs_are_filtered_is_found_in_linear_time() -> None:
    filtered = Filtered(np.arange(0, 3_000_000, 3, dtype=np.int64) << 32)
    table = table_of([{"row": row, "pair": row % 2} for row in range(12)])
    [batch] = table.to_batches()
    began = time.process_time()
    for _ in range(20):
        assert np.flatnonzero(filtered.has(batch)).tolist() == [0, 6]
    assert time.process_time() - began < 2
    assert not Filtered().has(batch).any()


@pytest.mark.parametrize(
    ("field", "values", "passes"),
    [
        (pa.field("form", pa.string()), ["", "cut", None], [True, False, False]),
        (pa.field("near_duplicate_image", pa.bool_()), [False, True], [True, False]),
        (pa.field("judge_relevance", pa.int32()), [4, 3, None], [True, False, False]),
        (pa.field("judge_my_axis", pa.float32()), [5.0, 3.9], [True, False]),
        (pa.field("perturbed", pa.float64()), [0.75, 0.5, float("nan")], [True, False, False]),
        (pa.field("consistency", pa.bool_()), [True, False, None], [True, False, False]),
    ],
    ids=lambda value: value.name if isinstance(value, pa.Field) else "",
)
def test_a_pair_passes_or_not(field: pa.Field, values: list[Any], passes: list[bool]) -> None:
    [column] = result_columns(pa.schema([*PAIRS_SCHEMA, field]))
    judged, passed = column.outcomes(pa.array(values, field.type))
    assert passed.tolist() == passes
    assert judged.tolist() == [value is not None and value == value for value in values]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_no_batch_ends_within_a_row(size: int) -> None:
    rows = [0, 0, 0, 1, 3, 3, 3, 3, 3, 4]
    table = table_of([{"row": row} for row in rows])
    batches = [batch.column("row").to_pylist() for batch in whole_rows(table.to_batches(size))]
    assert [row for batch in batches for row in batch] == rows
    for before, after in pairwise(batches):
        assert before[-1] != after[0]


def test_rows_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        list(whole_rows(table_of([{"row": row} for row in (1, 1, 0)]).to_batches(2)))


@pytest.mark.parametrize(
    ("count", "of", "interval"),
    [(0, 10, (0, 0.2775)), (8, 10, (0.4902, 0.9433)), (98, 100, (0.9300, 0.9945)), (0, 0, (0, 1))],
)
def test_the_interval_of_a_share(count: int, of: int, interval: tuple[float, float]) -> None:
    """As published for Wilson's score interval."""
    assert Share(count, of).interval == pytest.approx(interval, abs=5e-5)


def test_the_auc_is_that_of_all_pairs_of_pairs() -> None:
    rng = np.random.default_rng(7)
    values, right = rng.integers(0, 20, 200).astype(float), rng.random(200) < 0.7
    won = [(a > b) + (a == b) / 2 for a in values[right] for b in values[~right]]
    assert auc(values, right) == pytest.approx(sum(won) / len(won))
    assert auc(values, np.ones(200, bool)) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [("is_wrong", "no column 'is_wrong': .* are blind_answerable, is_right"), ("consistency", "")],
)
def test_a_column_that_is_no_truth(checked: ObjectStore, name: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message or "of type double: the truth of a pair is"):
        evaluate_output(checked, column_truth(name), name)


def test_corrupted_files_are_reported(checked: ObjectStore) -> None:
    checked.write(FILTERED, b"PAR1")
    with pytest.raises(ObjectCorruptedError, match=r"filtered\.parquet is corrupted"):
        evaluate_output(checked)
    strange = table_of([{"x": {"a": 1}}], pa.field("x", pa.struct([("a", pa.int64())])))
    for table in (strange, table_of([{"row": -1}]), table_of([{"row": None}])):
        write(checked, JUDGED, table)
        with pytest.raises(ObjectCorruptedError, match=r"judged\.parquet is corrupted"):
            list(read_batches(checked, JUDGED, ["question"]))


def test_the_number_of_reasons_is_bounded() -> None:
    counts: Counter[str] = Counter()
    for number in range(MAX_TEXTS + 5):
        add_counts(counts, {str(number): 1, "0": 1})
    assert (len(counts), counts["0"]) == (MAX_TEXTS, MAX_TEXTS + 5)


SCENE = (
    Shape("circle", "red", "large", 0, 0, 0.2, 0.2, 0.1),
    Shape("square", "blue", "small", 2, 2, 0.8, 0.8, 0.05),
)


def judged_by_scenes(lines: Sequence[Mapping[str, Any]], **options: Any) -> Evaluation:
    return evaluate(
        whole_rows(table_of(lines).to_batches(1)), (), None, scene_truth([SCENE], **options)
    )


def test_the_truth_of_a_drawn_scene() -> None:
    asked = {"question": "What color is the circle?"}
    about_none = {"question": "What color is the star?", "answer": "There is no star in the image."}
    lines = [
        {**asked, "answer": "The circle is red."},
        {**asked, "answer": "Blue"},
        about_none,
        {**about_none, "style": "unanswerable@1"},
        {**about_none, "type": "unanswerable"},
        {"question": "What?", "answer": "That."},
    ]
    found = judged_by_scenes([{**line, "row": 0, "pair": n} for n, line in enumerate(lines)])
    assert found.filter.before == Share(3, 6)
    assert found.kinds["other"].before == Share(0, 1)
    assert found.kinds[QuestionKind.COLOUR].before == Share(3, 5)


def test_turns_of_a_dialogue_in_several_batches_are_judged_together() -> None:
    follow_up = next(text for text, kind in FOLLOW_UPS.items() if kind is QuestionKind.COLOUR)
    turns = [("What shape is red?", "The circle is red."), (follow_up, "It is red.")]
    lines = [
        {"row": 0, "pair": n, "question": question, "answer": answer, "turn": n + 1}
        for n, (question, answer) in enumerate(turns)
    ]
    assert judged_by_scenes(lines).filter.before == Share(2, 2)
    negative = {"question": "What color is the star?", "answer": "There is no star in the image."}
    lines.append({**negative, "row": 0, "pair": 2, "type": "unanswerable"})
    assert judged_by_scenes(lines).filter.before == Share(3, 3)


def test_samples_of_a_record_are_about_its_scene() -> None:
    scenes = [random_scene(random.Random(number)) for number in range(3)]
    question = Question(QuestionKind.COUNT)
    lines = [
        {"question": "How many shapes are there?", "answer": answer_to(scenes[row // 2], question)}
        for row in range(6)
    ]
    table = table_of([{**line, "row": row, "pair": 0} for row, line in enumerate(lines)])
    found = evaluate(table.to_batches(), (), None, scene_truth(scenes, samples=2))
    assert found.filter.before == Share(6, 6)
    with pytest.raises(DatasetError, match="there are 3 scenes, and row 3 has pairs"):
        evaluate(table.to_batches(), (), None, scene_truth(scenes))


@pytest.mark.parametrize("content", [None, "[", "[1]", '[[{"kind": "star"}]]', "{}x"])
def test_a_file_without_scenes(tmp_path: Any, content: str | None) -> None:
    path = tmp_path / "scenes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=r"scenes\.json"):
        read_scenes(str(path))


@pytest.mark.parametrize("style", ["short@1", "unanswerable@1"])
def test_scenes_of_something_else_are_refused(style: str) -> None:
    strange: Any = Shape(kind=5, colour="red", size="large", column=0, row=0, x=0, y=0, radius=0)  # type: ignore[arg-type]
    lines = [{"question": "What color is the star?", "answer": "There is none.", "style": style}]
    with pytest.raises(DatasetError, match="not those of a demo dataset"):
        evaluate(table_of(lines).to_batches(), (), None, scene_truth([(strange,)]))


def test_memory_does_not_grow_with_the_texts(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without end is refused, also if a small file claims it."""
    monkeypatch.setattr("prefect_imageqa.tasks.reporting.judged_pairs.MAX_ROW_BYTES", 50_000)
    write(local, JUDGED, table_of([{"row": 0, "question": "x" * 1000}] * 100), 5)
    with pytest.raises(ObjectCorruptedError, match="judged"):
        list(read_batches(local, JUDGED, ["question"]))
