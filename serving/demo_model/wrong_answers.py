"""Plausible wrong answers: what would be right about another scene."""

import random
from collections.abc import Callable

from .judge import Verdict, judge_pair
from .questions import Question, QuestionKind
from .scenes import Scene, random_scene
from .truth import answer_to, is_present

AnswerOf = Callable[[Scene, Question], str | None]
"""The correct answer in some form, such as `truth.answer_to` or `truth.short_answer`."""

DEPENDING_KINDS = (
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.COUNT,
    QuestionKind.SHAPE,
    QuestionKind.COLOUR_COUNT,
    QuestionKind.CHECK,
    QuestionKind.SIZE_CHECK,
    QuestionKind.PRESENCE,
    QuestionKind.PLACE,
    QuestionKind.OBJECTS,
    QuestionKind.OTHERS,
    QuestionKind.MORE,
)
"""Kinds whose answer is another one in another scene."""


def wrong_answer(
    scene: Scene, question: Question, rng: random.Random, answer_of: AnswerOf = answer_to
) -> str:
    """Draw a wrong answer in the form of `answer_of`, which is right about some other scene.

    Args:
        scene: the scene that the question is about.
        question: of one of `DEPENDING_KINDS`; `answer_of` has an answer to it.
        rng: source of randomness.
        answer_of: gives the answer about the other scene.
    """
    text = question.phrasings()[0]
    while True:
        other = random_scene(rng)
        answer = answer_of(other, question)
        says_something = answer is not None and is_present(other, question)
        if says_something and judge_pair(scene, text, str(answer)) is Verdict.WRONG:
            return str(answer)
