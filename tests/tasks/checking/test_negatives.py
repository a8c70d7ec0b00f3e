"""Unanswerable pairs."""

from dataclasses import replace
from typing import Any

import pytest
from prefect_imageqa.tasks.checking.check import CheckedPair
from prefect_imageqa.tasks.checking.negatives import (
    DECLINING,
    check,
    chosen,
    is_candidate,
    rank,
    tried_share,
    unanswerable_pair,
    wanted,
)
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, QAPair, Quarantined

PAIR = QAPair("What color is the star?", "The star is red.", type="colour")
FAILED = Quarantined("k" * 32, 0, "row 0", Kind.TIMEOUT, "no reply")


def reply(text: str) -> FinishedRow:
    rendered = check().style(PromptInput((), 1, "", "", {}, pair=PAIR))
    parsed = check().parsing.parse(text, rendered.asked).value
    return Answered("k" * 32, text, parsed, "m", 1, 1, 0.1)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("There is no star in the image.", True),
        ("The image does not show a star.", True),
        ("I cannot tell what color it is.", True),
        ("The star is blue.", False),
        ("I cannot see an image.", False),
        ("I'm sorry, but I can't help with that.", False),
        ("There is no " + "star " * 400, False),
    ],
)
def test_the_model_has_to_deny_what_is_asked(text: str, values: bool) -> None:
    found, answer = check().verdict(PAIR, [reply(text)])
    assert found is values
    assert text.startswith(answer.removesuffix("..."))


def test_a_failed_request_is_no_result() -> None:
    assert check().verdict(PAIR, [FAILED]) == (None, None)


def test_the_question_goes_with_the_images_of_another_row() -> None:
    assert check().other_image
    rendered = check().style(PromptInput((), 1, "", "", {}, pair=PAIR))
    assert rendered.messages[0]["content"] == [
        {"type": "image", "image": 0},
        {"type": "text", "text": PAIR.question},
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"options": ("red", "blue"), "answer": "red"},
        {"turn": 2},
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


def test_questions_that_need_no_image_stay_out() -> None:
    assert is_candidate(PAIR, blind_answerable=False)
    assert not is_candidate(PAIR, blind_answerable=True)


def test_as_many_are_taken_as_there_should_be_wherever_their_rows_are() -> None:
    pairs = [CheckedPair(n, 0, replace(PAIR, question=f"{n}?"), f"d{n}") for n in range(2000)]
    ranks = [rank(pair, 7) for pair in pairs]
    assert all(0 <= number < 1 for number in ranks)
    count = wanted(0.1, len(pairs))
    assert count / (count + len(pairs)) == pytest.approx(0.1, abs=1e-3)
    tried = [pair for pair, number in zip(pairs, ranks, strict=True) if number < tried_share(0.1)]
    assert 0.4 < len(tried) / len(pairs) < 0.5
    found = [(rank(pair, 7), pair.row, pair.number) for pair in tried]
    taken = chosen(found, count)
    assert len(taken) == count
    assert taken == chosen(reversed(found), count)
    assert chosen(found[:3], count) == sorted(found[:3])
    moved = replace(pairs[5], row=99, number=3)
    assert rank(moved, 7) == ranks[5] != rank(moved, 8)


def test_the_pair_says_what_the_model_said() -> None:
    answer = "There is no star in the image."
    pair = replace(PAIR, language="English", reasoning="It is red.", turn=1)
    found = unanswerable_pair(pair, answer)
    assert found == QAPair(PAIR.question, answer, type="unanswerable", language="English")


def test_other_answers_are_drawn_with_a_seed() -> None:
    drawn = {
        unanswerable_pair(PAIR, "There is no star.", own_answer=False, seed=seed).answer
        for seed in range(60)
    }
    assert drawn == set(DECLINING)
    assert unanswerable_pair(PAIR, "I cannot tell what color it is.").answer in DECLINING
