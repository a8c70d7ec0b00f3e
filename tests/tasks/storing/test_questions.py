from typing import Any

import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined, Row
from prefect_imageqa.tasks.storing.questions import question_rows, with_answers


def answered(key: str, parsed: Any, **changed: Any) -> Answered:
    return Answered(key, "raw", parsed, "m", 1, 1, 0.1, **changed)


def asked(key: str, *questions: str) -> Answered:
    return answered(key, [{"question": question, "answer": ""} for question in questions])


def reply(text: str, **changed: Any) -> Answered:
    return answered("0", [{"question": "as it was sent", "answer": text}], **changed)


def failed(key: str, kind: Kind = Kind.TRUNCATED) -> Quarantined:
    return Quarantined(key, 7, "d.json:7, question 2", kind, "cut off", attempts=2, attempt=3)


ROWS = [Row(number, {"image": f"{number}.png"}, f"d.json:{number}") for number in range(3)]


def test_each_question_of_an_answered_row_is_a_row() -> None:
    outcomes: list[FinishedRow | None] = [asked("a", "One?", "Two?"), failed("b"), asked("c", "3?")]
    rows = list(question_rows(ROWS, outcomes))
    assert [(row.index, row.question, row.where) for row in rows] == [
        (0, "One?", "d.json:0, question 1"),
        (0, "Two?", "d.json:0, question 2"),
        (2, "3?", "d.json:2, question 1"),
    ]
    assert rows[0].record == ROWS[0].record


def test_answers_are_joined_with_their_questions() -> None:
    outcomes: list[FinishedRow | None] = [asked("a", "One?", "Two?"), failed("b"), asked("c", "3?")]
    answers: list[FinishedRow | None] = [reply("1"), failed("x"), reply("3", reasoning="I did.")]
    first, second, third = with_answers(outcomes, answers)
    assert isinstance(first, Answered)
    assert [(pair.question, pair.answer) for pair in first.pairs] == [("One?", "1")]
    assert [(failure.question, failure.kind) for failure in first.unanswered] == [
        ("Two?", Kind.TRUNCATED)
    ]
    assert second == outcomes[1]
    assert isinstance(third, Answered)
    assert (third.pairs[0].answer, third.reasoning, third.unanswered) == ("3", "I did.", ())
    assert third.text == "**Question:** 3?\n**Answer:** 3"


def test_an_answer_brings_its_own_columns() -> None:
    outcome = answered("a", [{"question": "One?", "answer": "", "type": "t", "language": "French"}])
    said = {"question": "as sent", "answer": "1", "language": "Latin", "reasoning": "I counted."}
    (row,) = with_answers([outcome], [answered("0", [said], lost=2)])
    assert isinstance(row, Answered)
    (pair,) = row.pairs
    assert (pair.question, pair.answer, pair.type) == ("One?", "1", "t")
    assert (pair.language, pair.reasoning, row.lost) == ("Latin", "I counted.", 2)


def test_a_row_without_any_answer_is_quarantined_as_its_first_question() -> None:
    answers = [failed("x", Kind.EMPTY), failed("y")]
    (row,) = with_answers([asked("a", "One?", "Two?")], answers)
    assert isinstance(row, Quarantined)
    assert (row.key, row.kind, row.question) == ("a", Kind.EMPTY, "")


def test_a_row_that_asks_nothing_stays_answered() -> None:
    (row,) = with_answers([asked("a")], [])
    assert isinstance(row, Answered)
    assert row.pairs == ()


@pytest.mark.parametrize(
    ("answers", "error"),
    [([], StoreError), ([None], StoreError), ([answered("x", [])], ObjectCorruptedError)],
    ids=["missing", "pending", "corrupted"],
)
def test_a_missing_or_corrupted_answer_is_an_error(
    answers: list[FinishedRow | None], error: type[Exception]
) -> None:
    with pytest.raises(error):
        list(with_answers([asked("a", "One?")], answers))
