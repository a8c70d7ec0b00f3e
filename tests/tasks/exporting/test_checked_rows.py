from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prefect_imageqa.tasks.checking import AskedCheck, Values
from prefect_imageqa.tasks.exporting.checked_rows import WINDOW, asked_values, check_rows
from prefect_imageqa.tasks.exporting.row_pairs import RowPairs
from prefect_imageqa.tasks.parsing.parse import ANSWER
from prefect_imageqa.tasks.prompting.style import PromptInput, Rendered
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, QAPair, Quarantined, Row

PAIR = QAPair("Which?", "red")
NONE = np.zeros(1000, bool)
"""Of the pairs that are dropped."""
TURN = QAPair("And that?", "blue", turn=2)


def check(**changed: Any) -> AskedCheck:
    def style(_: PromptInput) -> Rendered:
        raise NotImplementedError

    def verdict(_: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
        failed = any(isinstance(outcome, Quarantined) for outcome in outcomes)
        return (None if failed else " ".join(outcome.key for outcome in outcomes),)

    return AskedCheck("test", (pa.field("test", pa.string()),), style, ANSWER, verdict, **changed)


def joined(images: str, pairs: Sequence[QAPair] = (PAIR,)) -> list[tuple[Row, RowPairs]]:
    """A row for each letter, which is its image; a space for a row without one."""
    return [
        (
            Row(number, {"image": name}, f"d:{number}"),
            RowPairs(number, f"k{number}", name.strip(), "", tuple(pairs)),
        )
        for number, name in enumerate(images)
    ]


def outcomes(count: int, failed: int = -1, missing: int = -1) -> Iterator[FinishedRow | None]:
    for number in range(count):
        if number == missing:
            yield None
        elif number == failed:
            yield Quarantined(f"{number}", number, "d", Kind.TIMEOUT, "")
        else:
            yield Answered(f"{number}", "", [], "m", 1, 1, 0.1)


def test_each_request_is_a_row_about_its_pair() -> None:
    rows = list(check_rows(check(times=2), joined("ab", [PAIR, TURN, PAIR]), 0, NONE))
    assert [(row.index, row.where, row.sample) for row in rows] == [
        (index, f"d:{index}, pair {number}", sample)
        for index in (0, 1)
        for number in (1, 3)
        for sample in (0, 1)
    ]
    assert {(row.question, row.pair) for row in rows} == {("Which?", PAIR)}


@pytest.mark.parametrize(
    ("count", "failed", "missing", "expected"),
    [
        (4, -1, -1, ["0 1", None, "2 3"]),
        (4, 1, -1, [None, None, "2 3"]),
        (4, -1, 2, ["0 1", None, None]),
        (2, -1, -1, ["0 1", None, None]),
    ],
    ids=["all", "a request failed", "one is not there", "only the first ones"],
)
def test_a_pair_has_the_verdict_on_its_own_outcomes_or_none(
    count: int, failed: int, missing: int, expected: list[str | None]
) -> None:
    pairs = [found for _, found in joined("a", [PAIR, TURN, PAIR])]
    values = asked_values(check(times=2), pairs, outcomes(count, failed, missing), 0, NONE)
    assert [value for (value,) in values] == expected


def test_a_pair_without_a_result_has_no_evidence_either() -> None:
    pairs = [found for _, found in joined("a")]
    columns = (pa.field("share", pa.float64()), pa.field("answers", pa.string()))
    partly = replace(check(times=2), columns=columns, verdict=lambda *_: (None, "Red"))
    assert list(asked_values(partly, pairs, outcomes(2, failed=1), 0, NONE)) == [(None, None)]


def other_images(images: str, seed: int = 0) -> list[str]:
    """The image that is shown in place of that of each row; a space if the row is not asked."""
    rows = check_rows(check(other_image=True), joined(images), seed, NONE)
    shown = {row.index: row.record["image"] for row in rows}
    return [shown.get(number, " ") for number in range(len(images))]


def test_another_image_is_one_with_another_content() -> None:
    assert other_images("aaba") == ["b", "b", "a", "b"]
    assert other_images("a a") == other_images("   ") == [" ", " ", " "]
    assert other_images(" ab") == [" ", "b", "a"]
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    shown = other_images(letters)
    assert all(image != own for image, own in zip(shown, letters, strict=True))
    assert len(set(shown)) > 50
    assert other_images(letters, seed=1) != shown
    assert other_images(letters[:150]) == shown[:150]  # more rows change nothing
    # Without the first row, only those change for which it could be drawn.
    assert other_images(letters[1:])[WINDOW:] == shown[WINDOW + 1 :]


def test_a_dataset_with_one_image_does_not_fill_the_memory() -> None:
    assert set(other_images("a" * 3 * WINDOW)) == {" "}


def test_outcomes_of_other_images_belong_to_the_pairs_that_were_asked() -> None:
    pairs = [found for _, found in joined("a b")]
    values = asked_values(check(other_image=True), pairs, outcomes(2), 0, NONE)
    assert [value for (value,) in values] == ["0", None, "1"]
