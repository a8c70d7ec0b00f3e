"""Answers that are none, and answers that deny what is asked."""

import time

import pytest
from prefect_imageqa.tasks.checking.declining import is_denial, is_refusal

REFUSALS = [
    "I cannot tell without the image.",
    "I cannot see an image.",
    "I'm sorry, but I can't help with that.",
    "I’m unable to view images, so I can only guess.",  # noqa: RUF001
    "As an AI language model, I have no eyes.",
    "No image was provided. Please share it.",
    "It is impossible to say without seeing the picture.",
    "我无法看到图片。",
    "请提供图片。",
    "Ich kann das Bild leider nicht sehen.",
    "Je ne peux pas voir l'image.",
    "No puedo ver la imagen.",
]
DENIALS = [
    "There is no star in the image.",
    "No, there is no chart in the image.",
    "There isn't a dog in this picture.",
    "There are none.",
    "The image does not show who drew the circle.",
    "The picture doesn't really say when it was taken.",
    "The driver's name is not visible.",
    "Not shown",
    "The image shows no dog.",
    "It is not clear.",
    "It cannot be determined from the image.",
    "No dog is visible.",
    "图中没有狗。",
    "No hay ningún perro.",
    "Es gibt keinen Hund.",
]
ANSWERS = [
    "The circle is red.",
    "No, the star is blue.",
    "Red",
    "He sits alone; there is no one else.",
    "It is a cat. There is no dog.",
    "A sign that says: no parking.",
    "There is a note on the table.",
    "红色",
    "",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_model_that_cannot_see_or_will_not_help_has_not_answered(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", DENIALS)
def test_what_is_said_of_the_image_denies_the_question_and_is_an_answer(answer: str) -> None:
    assert is_denial(answer)
    assert not is_refusal(answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_other_answers_are_neither(answer: str) -> None:
    assert not is_refusal(answer)
    assert not is_denial(answer)


@pytest.mark.parametrize(
    "answer", ["I cannot tell without the image.", "No image was provided.", "I cannot help you."]
)
def test_a_model_without_an_image_denies_nothing(answer: str) -> None:
    assert not is_denial(answer)


@pytest.mark.parametrize("piece", ["i cannot ", "the image ", "no ", " \n", "is not ", "没有"])
def test_long_answers_take_no_longer(piece: str) -> None:
    began = time.process_time()
    is_refusal(piece * 1_000_000)
    is_denial(piece * 1_000_000)
    assert time.process_time() - began < 2
