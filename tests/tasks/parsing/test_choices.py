# ruff: noqa: RUF001 (fullwidth letters)
"""Which option an answer means, and when that is not certain."""

import pytest
from prefect_imageqa.tasks.parsing.choices import choice_in

OPTIONS = ["red", "blue", "green", "white"]


@pytest.mark.parametrize(
    "said",
    [
        *("B", "b", "(b)", "**B**", "B.", "[B]", '"B"', "`B`", "Ｂ", "B。"),
        *("\\boxed{B}", "$\\boxed{B}$"),
        *("B. blue", "(B) blue", "B) Blue.", "**B. blue**", "**B**. blue", "B: blue", "B - blue"),
        *("B blue", "blue", "Blue.", "**blue**", "Option B", "Option B: blue", "Option 2: blue"),
        *("option B is correct", "B is the correct answer.", "It is B.", "Answer: B"),
        *("The answer is B", "The correct answer is (B) blue.", "So, the answer is B."),
        *("答案是B", "正确答案：B", "故选B。", "La respuesta correcta es B", "Ответ: B"),
        *("Die richtige Antwort ist B.", "Let me see.\nTherefore, the answer is B."),
        *("B\n\nThe car is blue.", "B, because the sky is"),
    ],
)  # fmt: skip
def test_the_option_that_is_meant(said: str) -> None:
    choice = choice_in(said, OPTIONS)
    assert choice is not None
    assert choice.index == 1


@pytest.mark.parametrize(
    "said",
    [
        *("", "E", "E. black", "2", "A and C", "A, C", "B or C", "Both A and B", "red or blue"),
        *("B. bluer", "C. greenish, or so", "A) redwood", "B blues"),
        *("B. red", "A. blue", "The car is blue.", "not red", "A's car", "A quick look", "Bright"),
    ],
)
def test_an_answer_that_is_not_certain_means_no_option(said: str) -> None:
    assert choice_in(said, OPTIONS) is None


@pytest.mark.parametrize(
    ("said", "rest"),
    [
        ("B", ""),
        ("B. blue", ""),
        ("B. blue, as the sky is", "as the sky is"),
        ("B\n\nThe car is blue.", "The car is blue."),
        ("It has the colour of the sky.\nThe answer is B.", "It has the colour of the sky."),
    ],
)
def test_what_else_an_answer_says(said: str, rest: str) -> None:
    choice = choice_in(said, OPTIONS)
    assert choice is not None
    assert choice.rest == rest


def test_other_marks_and_articles() -> None:
    marked = choice_in("2", ["ten", "twelve"], ["1", "2"])
    article = choice_in("A cat", ["dog", "cat"])
    assert marked is not None
    assert article is not None
    assert (marked.index, article.index) == (1, 1)
    assert choice_in("3", ["3", "5"]) is not None
    assert choice_in("same", ["same", "Same."]) is None
