"""The checks `blind` and `swapped`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.tasks.checking.check import AskedCheck
from prefect_imageqa.tasks.checking.visual import NONE_OF_THE_ABOVE, blind_check, swapped_check
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
OPTIONS = ("red", "blue", "green", "white")
CHOICE = QAPair("What color is the bus?", "blue", options=OPTIONS, correct="B")
FAILED = Quarantined("k" * 32, 0, "row 0", Kind.TIMEOUT, "no reply")


def asked(check: AskedCheck, pair: QAPair, sample: int = 0, image_count: int = 1) -> Rendered:
    return check.style(PromptInput((), image_count, "", "", {}, sample=sample, pair=pair))


def reply(check: AskedCheck, pair: QAPair, text: str, sample: int = 0) -> FinishedRow:
    """The outcome of a request that was answered with that text."""
    parsed = check.parsing.parse(text, asked(check, pair, sample).asked).value
    return Answered("k" * 32, text, parsed, "m", 1, 1, 0.1)


def options_of(rendered: Rendered) -> list[str]:
    return [line[3:] for line in rendered.asked.question.split("\n")[1:]]


def letter_of(rendered: Rendered, option: str) -> str:
    return "ABCDE"[options_of(rendered).index(option)]


def test_blind_sends_the_question_alone() -> None:
    rendered = asked(blind_check(), PAIR, image_count=2)
    assert rendered.messages == ({"role": "user", "content": PAIR.question},)
    assert not blind_check().other_image


def test_swapped_shows_the_images_of_the_other_row_first() -> None:
    check = swapped_check()
    assert check.other_image
    content = asked(check, PAIR, image_count=2).messages[0]["content"]
    assert content == [
        {"type": "image", "image": 0},
        {"type": "image", "image": 1},
        {"type": "text", "text": PAIR.question},
    ]
    with pytest.raises(RowError, match="has none"):
        asked(check, PAIR, image_count=0)


@pytest.mark.parametrize("make", [blind_check, swapped_check])
@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["Red."], [True, "Red."]),
        (["The bus is blue."], [False, "The bus is blue."]),
        (["I cannot tell without the image."], [False, "I cannot tell without the image."]),
        ([None], [None, None]),
        (["The bus is red.", "Red"], [True, "The bus is red."]),
        (["The bus is red.", None], [None, "The bus is red."]),
        ([None, "The bus is blue."], [False, "The bus is blue."]),
        (["The bus is red.", "Blue"], [False, "Blue"]),
    ],
)
def test_all_answers_have_to_agree_and_a_failed_request_is_no_result(
    make: Any, texts: Sequence[str | None], values: Sequence[Any]
) -> None:
    check = make()
    outcomes = [FAILED if text is None else reply(check, PAIR, text) for text in texts]
    assert list(check.verdict(PAIR, outcomes)) == values


def test_a_refusal_is_no_agreement_with_a_pair_that_declines() -> None:
    pair = replace(PAIR, answer="I cannot tell without the image.")
    check = blind_check()
    assert check.verdict(pair, [reply(check, pair, pair.answer)])[0] is False


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_right_option_has_another_letter_each_time(seed: int, count: int) -> None:
    check, pair = blind_check(seed=seed), replace(CHOICE, options=OPTIONS[:count])
    assert check.times == 2
    letters = [letter_of(asked(check, pair, sample), "blue") for sample in range(2)]
    assert letters[0] not in {"B", letters[1]}
    assert letters == [letter_of(asked(check, pair, sample), "blue") for sample in range(2)]


def test_a_favourite_letter_is_not_taken_for_knowledge() -> None:
    check = blind_check()
    for letter in "ABCD":
        outcomes = [reply(check, CHOICE, letter, sample) for sample in range(2)]
        assert check.verdict(CHOICE, outcomes)[0] is False


def test_the_rotation_is_drawn_for_each_question() -> None:
    check = blind_check()
    pairs = [replace(CHOICE, question=f"What color is bus {number}?") for number in range(30)]
    assert {letter_of(asked(check, pair), "blue") for pair in pairs} == {"A", "C", "D"}


@pytest.mark.parametrize("pattern", ["{}", "{}.", "The answer is {}.", "({}) blue"])
def test_an_option_counts_by_its_text(pattern: str) -> None:
    check = blind_check()
    rendered = asked(check, CHOICE)
    right = letter_of(rendered, "blue")
    assert check.verdict(CHOICE, [reply(check, CHOICE, pattern.format(right))]) == (True, "blue")
    shown = options_of(rendered)["ABCD".index("B")]
    assert check.verdict(CHOICE, [reply(check, CHOICE, "B")]) == (False, shown)
    assert check.verdict(CHOICE, [reply(check, CHOICE, "Blue.")])[0] is True


def test_options_that_are_letters_are_told_from_the_letters_before_them() -> None:
    pair = QAPair("Which part is the valve?", "C", options=("A", "B", "C", "D"), correct="C")
    check = blind_check()
    for letter, shown in zip("ABCD", options_of(asked(check, pair)), strict=True):
        values = check.verdict(pair, [reply(check, pair, f"{letter}.")])
        assert values == (shown == "C", shown)


def test_none_of_the_above_is_the_last_option_and_agrees_with_nothing() -> None:
    check = blind_check(none_option=True)
    assert options_of(asked(check, CHOICE))[-1] == NONE_OF_THE_ABOVE
    values = check.verdict(CHOICE, [reply(check, CHOICE, "E")])
    assert values == (False, NONE_OF_THE_ABOVE)
    right = letter_of(asked(check, CHOICE), "blue")
    assert check.verdict(CHOICE, [reply(check, CHOICE, right)])[0] is True
    assert options_of(asked(check, PAIR)) == []


def test_options_of_another_question_are_no_result() -> None:
    check = blind_check()
    other = replace(CHOICE, options=("one", "two"))
    assert check.verdict(CHOICE, [reply(check, other, "A")]) == (None, None)


@pytest.mark.parametrize("parsed", [None, 7, [], [{"question": 1}], [{"x": "y"}], "text"])
def test_what_is_no_answer_in_the_output_is_no_result(parsed: Any) -> None:
    damaged = Answered("k" * 32, "", parsed, "m", 1, 1, 0.1)
    assert blind_check().verdict(PAIR, [damaged]) == (None, None)


def test_what_is_kept_of_an_answer_is_one_bounded_line() -> None:
    check = blind_check()
    _, answer = check.verdict(PAIR, [reply(check, PAIR, "It is\nred " + "x" * 10_000)])
    assert len(answer) == 1000
    assert "\n" not in answer
