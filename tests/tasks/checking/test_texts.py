"""The normal form of questions."""

import time

import pytest
from prefect_imageqa.tasks.checking.texts import form_digest, question_form


@pytest.mark.parametrize(
    "question",
    [
        "What is the dog doing?",
        "  what is the Dog doing ",
        "What is the dog doing in the image?",
        "In the image, what is the dog doing?",
        "Looking at the picture, what is the dog doing?",
        "Based on the provided photo: what is the dog doing?",
        "Can you tell me what is the dog doing in this scene, please?",
        "Could you please tell me what is the dog doing?",
        "What is the dog doing that is shown in the photograph?",
        "“What is the dog doing?”",
    ],
)
def test_a_question_in_other_words_of_courtesy_has_the_same_form(question: str) -> None:
    assert question_form(question) == "what is the dog doing"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What colour is the red car?", "What colour is the blue car?"),
        ("What is in the first image?", "What is in the second image?"),
        ("What is highest in the chart?", "What is highest in the table?"),
        ("Can you see a dog?", "See a dog?"),
        ("Is it -5 degrees?", "Is it 5 degrees?"),
        ("What is left of the image?", "What is left?"),
        ("Who is in the imagery?", "Who is?"),
        ("What pleased the man?", "What the man?"),
    ],
)
def test_other_questions_have_other_forms(one: str, other: str) -> None:
    assert question_form(one) != question_form(other)


@pytest.mark.parametrize("question", ["ما لون السيارة؟", "बस का रंग क्या है।"])
def test_the_end_of_a_question_in_other_scripts_does_not_count(question: str) -> None:
    assert question_form(question) == question_form(question[:-1])


@pytest.mark.parametrize("text", ["In the image?", "please", "?", "In this photo, please"])
def test_a_text_of_nothing_but_stock_words_keeps_some(text: str) -> None:
    assert question_form(text)


def test_options_are_part_of_a_question_in_any_order() -> None:
    assert form_digest("Which?", ("red", "blue")) == form_digest("which", ("Blue.", "red"))
    assert form_digest("Which?", ("red", "blue")) != form_digest("Which?", ("red", "green"))
    assert form_digest("Which?", ("red", "blue")) != form_digest("Which?")
    assert form_digest("half a \ud800 pair")


@pytest.mark.parametrize("part", [" in the image", "please ", " that is shown", "can you ", "the "])
def test_long_questions_take_linear_time(part: str) -> None:
    text = part * (2_000_000 // len(part))
    started = time.process_time()
    question_form(text)
    assert time.process_time() - started < 5
