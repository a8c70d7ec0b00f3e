"""The check `perturbed`."""

import pytest
from prefect_imageqa.tasks.checking.perturbed import check
from prefect_imageqa.tasks.images.changes import CHANGES
from prefect_imageqa.tasks.prompting.style import PromptInput, Rendered
from prefect_imageqa.tasks.records import (
    Answered,
    FinishedRow,
    Kind,
    QAPair,
    Quarantined,
    RowError,
)

PAIR = QAPair("What color is the bus?", "The bus is red.")
FAILED = Quarantined("k" * 32, 0, "row 0", Kind.TIMEOUT, "no reply")


def asked(sample: int, image_count: int = 1) -> Rendered:
    return check().style(PromptInput((), image_count, "", "", {}, sample=sample, pair=PAIR))


def reply(text: str) -> FinishedRow:
    parsed = check().parsing.parse(text, asked(0).asked).value
    return Answered("k" * 32, text, parsed, "m", 1, 1, 0.1)


def test_each_request_has_the_images_with_another_change() -> None:
    assert check().times == len(CHANGES)
    for sample, change in enumerate(CHANGES):
        assert asked(sample, 2).messages[0]["content"] == [
            {"type": "image", "image": 0, "change": change},
            {"type": "image", "image": 1, "change": change},
            {"type": "text", "text": PAIR.question},
        ]
    with pytest.raises(RowError, match="no image"):
        asked(0, image_count=0)


def test_the_score_is_the_share_that_agrees() -> None:
    outcomes = [reply("Red"), reply("The bus is red."), reply("Blue"), reply("It is red.")]
    answers = "Red\nThe bus is red.\nBlue\nIt is red."
    assert check().verdict(PAIR, outcomes) == (0.75, answers)


def test_a_failed_request_is_no_result() -> None:
    assert check().verdict(PAIR, [reply("Red"), FAILED]) == (None, "Red")
    assert check().verdict(PAIR, [FAILED]) == (None, None)


def test_what_is_kept_of_an_answer_is_one_bounded_line() -> None:
    outcomes = [reply("Red\x1b[31m\n" + "x" * 10_000), reply("Red")]
    answers = str(check().verdict(PAIR, outcomes)[1])
    assert len(answers) < 1100
    assert len(answers.splitlines()) == 2
    assert "\x1b" not in answers
