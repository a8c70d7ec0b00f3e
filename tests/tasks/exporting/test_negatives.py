"""Questions asked about other images, and the pairs that are chosen of those."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_imageqa.tasks.checking.negatives import check, tried_share
from prefect_imageqa.tasks.exporting.negatives import (
    Tried,
    Try,
    chosen_pairs,
    negative_rows,
    unanswerable,
)
from prefect_imageqa.tasks.exporting.row_pairs import RowPairs
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, QAPair, Quarantined, Row

CHECK = check()
NO = "There is no such thing in the image."


def joined(count: int, question: str = "What is {}?") -> list[tuple[Row, RowPairs]]:
    """Rows with images of their own, each with two pairs."""
    return [
        (
            Row(row, {"image": f"{row}.png"}, f"d:{row}"),
            RowPairs(
                row,
                f"k{row}",
                f"digest{row}",
                "",
                (
                    QAPair(question.format(row), "a dog"),
                    QAPair(f"How many are {row}?", "two"),
                ),
            ),
        )
        for row in range(count)
    ]


def outcomes(rows: list[Row], failed: int = -1) -> Iterator[FinishedRow]:
    """The other image is said not to show it, and nothing is answered without one."""
    for number, row in enumerate(rows):
        text = "I cannot tell." if row.sample else NO
        pairs = [{"question": row.question, "answer": text}]
        if number == failed:
            yield Quarantined("k", number, "d", Kind.TIMEOUT, "")
        else:
            yield Answered("k", text, pairs, "m", 1, 1, 0.1)


def test_each_question_is_asked_about_another_image_and_blind() -> None:
    rows = list(negative_rows(CHECK, joined(3), 0.5, 0))
    assert [(row.index, row.sample) for row in rows] == [(n, s) for n in range(3) for s in (0, 1)]
    for row in rows:
        assert row.record["image"] != f"{row.index}.png"
        assert row.question == row.pair.question == f"What is {row.index}?" if row.pair else False
    assert rows == list(negative_rows(CHECK, joined(3), 0.5, 0))


def test_only_some_are_asked_and_more_rows_change_nothing() -> None:
    asked = [row.index for row in negative_rows(CHECK, joined(1000), 0.05, 0)][::2]
    assert len(asked) / 1000 == pytest.approx(tried_share(0.05), abs=0.05)
    fewer = [row.index for row in negative_rows(CHECK, joined(500), 0.05, 0)][::2]
    assert fewer == [row for row in asked if row < 500]
    assert [row.index for row in negative_rows(CHECK, joined(1000), 0.05, 1)][::2] != asked


def test_a_question_that_the_other_image_is_asked_too_stays_out() -> None:
    assert not list(negative_rows(CHECK, joined(3, "What is it?"), 0.5, 0))
    assert not list(negative_rows(CHECK, joined(1), 0.5, 0))


def test_failed_requests_give_no_pair_and_are_counted() -> None:
    rows = list(negative_rows(CHECK, joined(4), 0.5, 0))
    pairs = [(None, found) for _, found in joined(4)]
    tried = Tried()
    found = list(unanswerable(CHECK, pairs, outcomes(rows, failed=3), 0.5, 0, tried))
    assert [each.row for each, _ in found] == [0, 2, 3]
    assert {pair.answer for _, pair in found} == {NO}
    assert all(each.other != each.row for each, _ in found)
    assert (tried.questions, tried.failed, tried.unanswerable) == (4, 1, 3)
    assert tried.reasons == {Kind.TIMEOUT: 1}
    unfinished = unanswerable(CHECK, pairs, iter([None] * 8), 0.5, 0, tried)
    assert not list(unfinished)


def found(*places: tuple[int, str, float]) -> Iterator[tuple[Try, QAPair]]:
    for number, (other, question, rank) in enumerate(places):
        pair = QAPair(question, NO, type="unanswerable", language="English")
        yield Try(number, 0, pair, other, rank), pair


def test_those_with_the_lowest_ranks_are_taken_in_the_order_of_their_rows(tmp_path: Path) -> None:
    given = [(7, "a?", 0.1), (2, "b?", 0.9), (2, "c?", 0.2), (7, "d?", 0.05), (0, "e?", 0.5)]
    taken = list(chosen_pairs(found(*given), 4, tmp_path / "found"))
    assert [(row, pair.question) for row, pair in taken] == [
        *((0, "e?"), (2, "c?"), (7, "d?"), (7, "a?")),
    ]
    assert taken[0][1] == QAPair("e?", NO, type="unanswerable", language="English")


def test_a_row_is_given_no_question_twice_and_not_all_pairs(tmp_path: Path) -> None:
    twice = [(1, "What is it?", 0.3), (1, "what is it", 0.1), (2, "What is it?", 0.2)]
    taken = list(chosen_pairs(found(*twice), 9, tmp_path / "twice"))
    assert [(row, pair.question) for row, pair in taken] == [(1, "What is it?"), (2, "What is it?")]
    many = [(1, f"{number}?", number / 100) for number in range(100)]
    assert len(list(chosen_pairs(found(*many), 99, tmp_path / "many"))) == 16


def test_odd_texts_are_stored_as_they_are(tmp_path: Path) -> None:
    pair = QAPair("a\0b'; DROP TABLE found; --?", "half \ud800")
    ((row, taken),) = chosen_pairs([(Try(0, 0, pair, 3, 0.1), pair)], 1, tmp_path / "found")
    assert (row, taken.question, taken.answer) == (3, pair.question, "half ?")
