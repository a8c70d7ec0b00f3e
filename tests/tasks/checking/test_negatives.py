"""Unanswerable pairs."""

from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.tasks.checking.consistency import agrees
from prefect_imageqa.tasks.checking.form import problem_of
from prefect_imageqa.tasks.checking.negatives import (
    DECLINING,
    check,
    is_candidate,
    rank,
    tried_share,
    unanswerable_pair,
    wanted,
)
from prefect_imageqa.tasks.checking.visual import blind_check
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, QAPair, Quarantined

PAIR = QAPair("What color is the star?", "The star is red.", type="colour")
NEGATIVE = unanswerable_pair(PAIR, "There is no star in the image.", 0)
FAILED = Quarantined("k" * 32, 0, "row 0", Kind.TIMEOUT, "no reply")
NO_STAR = "There is no star in the image."
UNSEEN = "I cannot tell without the image."


def prompt(sample: int) -> PromptInput:
    return PromptInput((), 1, "", "", {}, pair=PAIR, sample=sample)


def reply(text: str) -> FinishedRow:
    parsed = check().parsing.parse(text, check().style(prompt(0)).asked).value
    return Answered("k" * 32, text, parsed, "m", 1, 1, 0.1)


@pytest.mark.parametrize(
    ("sighted", "blind", "expected"),
    [
        (NO_STAR, UNSEEN, True),
        (NO_STAR, NO_STAR, True),
        ("The image does not show a star.", "The star is blue.", True),
        ("I cannot tell what color it is.", UNSEEN, True),
        (NO_STAR, "Red.", False),
        ("The star is blue.", UNSEEN, False),
        ("I cannot see an image.", UNSEEN, False),
        ("I'm sorry, but I can't help with that.", UNSEEN, False),
        ("There is no " + "star " * 400, UNSEEN, False),
    ],
)
def test_it_is_denied_of_the_other_image_and_not_answered_without_one(
    sighted: str, blind: str, expected: bool
) -> None:
    assert check().verdict(PAIR, [reply(sighted), reply(blind)]) == (expected,)


@pytest.mark.parametrize("outcomes", [[FAILED, reply(UNSEEN)], [reply(NO_STAR), FAILED]])
def test_a_failed_request_is_no_result(outcomes: list[FinishedRow]) -> None:
    assert check().verdict(PAIR, outcomes) == (None,)


def test_the_question_goes_with_the_images_of_another_row_and_without_any() -> None:
    text = {"type": "text", "text": PAIR.question}
    contents = [check().style(prompt(sample)).messages[0]["content"] for sample in (0, 1)]
    assert check().other_image
    assert contents[0] == [{"type": "image", "image": 0}, text]
    assert contents[1] == PAIR.question


@pytest.mark.parametrize(
    "changed",
    [
        {"options": ("red", "blue"), "answer": "red"},
        {"turn": 1},
        {"question": "How many stars are there?"},
        {"type": "counting"},
        {"question": "图中有多少颗星?"},
        {"answer": "Yes, it is."},
        {"answer": "No"},
        {"answer": "There is no star in the image."},
        {"answer": "I cannot tell."},
    ],
)
def test_questions_that_other_images_answer_too_stay_out(changed: Any) -> None:
    assert is_candidate(PAIR)
    assert not is_candidate(replace(PAIR, **changed))


def test_a_share_is_of_all_pairs_and_drawn_by_image_and_question() -> None:
    ranks = [rank(f"d{number}", "What?", 7) for number in range(2000)]
    assert all(0 <= number < 1 for number in ranks)
    count = wanted(0.1, len(ranks))
    assert count / (count + len(ranks)) == pytest.approx(0.1, abs=1e-3)
    tried = sum(number < tried_share(0.1) for number in ranks)
    assert tried / len(ranks) == pytest.approx(tried_share(0.1), abs=0.05)
    assert tried_share(0.01) < tried_share(0.1) < 1
    assert tried_share(0.5) == 1
    assert len({rank("d5", "What?", 7), rank("d5", "Who?", 7), rank("d5", "What?", 8)}) == 3


def test_the_pair_says_what_the_model_said() -> None:
    pair = replace(PAIR, language="English", reasoning="It is red.")
    found = unanswerable_pair(pair, NO_STAR, 0)
    assert found == QAPair(PAIR.question, NO_STAR, type="unanswerable", language="English")


def test_a_model_that_speaks_of_itself_is_not_quoted() -> None:
    answers = {unanswerable_pair(PAIR, "I cannot tell.", seed).answer for seed in range(60)}
    assert answers == set(DECLINING)


@pytest.mark.parametrize("answer", [NO_STAR, "The image does not show a star.", *DECLINING])
def test_other_checks_take_a_denial_for_the_answer(answer: str) -> None:
    pair = replace(NEGATIVE, answer=answer)
    assert problem_of(pair) == ("", "")
    for other in (NO_STAR, "The image shows no star.", "It cannot be determined from the image."):
        assert agrees(pair, other)
    assert not agrees(pair, "The star is red.")
    denied = [reply(NO_STAR)] * 2
    assert blind_check().verdict(pair, denied) == (False, NO_STAR)


def test_the_denial_of_a_question_that_has_an_answer_is_none() -> None:
    assert not agrees(PAIR, NO_STAR)
    assert blind_check().verdict(replace(PAIR, answer=NO_STAR), [reply(NO_STAR)] * 2)[0]
