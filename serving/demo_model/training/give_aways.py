"""Questions whose text gives their answer away, and those that only look so, without an image."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..questions import Question, QuestionKind
from ..scenes import Scene, Shape
from ..truth import answer_to, random_question

KINDS = (
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.COUNT,
    QuestionKind.SHAPE,
    QuestionKind.PLACE,
    QuestionKind.COLOUR_COUNT,
)
"""Kinds whose answer is a statement that a text can contain."""

STATED = (
    "{Clause}. {Question}?",
    "In this picture, {clause}. {Question}?",
    "{Question}? {Clause}.",
    "Given that {clause}, {question}?",
    "Someone says that {clause}. {Question}?",
    "{Question}? Hint: {clause}.",
    "As {clause}, {question}?",
    "{Clause}, so {question}?",
    "If {clause}, {question}?",
    "Look: {clause}. {Question}?",
)
"""How a statement and a question are joined: `{clause}` and `{question}` begin with a small letter,
`{Clause}` and `{Question}` with a capital."""

_NAMED = {
    QuestionKind.COLOUR: (
        "What color is the {colour} {kind}?",
        "Which color has the {colour} {kind}?",
    ),
    QuestionKind.SIZE: ("What size is the {size} {kind}?", "How big is the {size} {kind}?"),
    QuestionKind.WHERE: ("Where is the {kind} in the {place}?", "Where is the {place} {kind}?"),
}
"""Questions about a shape that name the fact they ask for."""


@dataclass(frozen=True, slots=True)
class BlindQuestion:
    """A question that is asked without the image.

    Attributes:
        text: as it is asked.
        plain: the question that it means, in plain words.
        answer: the correct answer about the scene.
        is_given_away: whether the text gives that answer.
    """

    text: str
    plain: str
    answer: str
    is_given_away: bool = False


def blind_question(scene: Scene, rng: random.Random) -> BlindQuestion:
    """Draw a question; about a third gives its answer away."""
    draw = rng.random()
    if draw < 0.35:
        return give_away(scene, rng)
    if draw < 0.6:
        return no_give_away(scene, rng)
    question = random_question(scene, rng, tuple(QuestionKind), absent=0.12)
    text = rng.choice(question.phrasings())
    return BlindQuestion(text, text, str(answer_to(scene, question)))


def give_away(
    scene: Scene, rng: random.Random, templates: Sequence[str] = STATED, named: float = 0.4
) -> BlindQuestion:
    """Draw a question that gives its answer away.

    Args:
        scene: the scene that it is about.
        rng: source of randomness.
        templates: as `STATED`.
        named: share (0 to 1) of those questions that name the fact instead, if their kind can.
    """
    question = random_question(scene, rng, KINDS)
    plain, answer = rng.choice(question.phrasings()), str(answer_to(scene, question))
    if question.kind in _NAMED and rng.random() < named:
        text = _about(_named(scene, question.shape), rng.choice(_NAMED[question.kind]))
    else:
        text = join(rng.choice(templates), answer, plain)
    return BlindQuestion(text, plain, answer, is_given_away=True)


def no_give_away(scene: Scene, rng: random.Random) -> BlindQuestion:
    """Draw a question that states another fact than the one it asks for."""
    question = random_question(scene, rng, KINDS)
    plain, answer = rng.choice(question.phrasings()), str(answer_to(scene, question))
    if question.kind in _NAMED and rng.random() < 0.4:
        text = _about(_named(scene, question.shape), rng.choice(_OTHER_FACT[question.kind]))
        return BlindQuestion(text, plain, answer)
    other = question
    while fact(scene, other) == fact(scene, question):
        other = random_question(scene, rng, _STATED_OF_OTHERS)
    return BlindQuestion(
        join(rng.choice(STATED), str(answer_to(scene, other)), plain), plain, answer
    )


_STATED_OF_OTHERS = KINDS[:-1]
"""Four shapes of one colour would be all there are."""

_OTHER_FACT = {
    QuestionKind.COLOUR: (
        "What color is the {size} {kind}?",
        "What color is the {kind} in the {place}?",
    ),
    QuestionKind.SIZE: (
        "What size is the {colour} {kind}?",
        "How big is the {kind} in the {place}?",
    ),
    QuestionKind.WHERE: ("Where is the {colour} {kind}?", "Where is the {size} {kind}?"),
}
"""Questions about a shape that name another fact than the one they ask for."""


def fact(scene: Scene, question: Question) -> tuple[str, str]:
    """What a question asks for, and of what: equal for "What shape is red?" and the circle's color.

    The question is one of `KINDS` with an answer in the scene.
    """
    match question.kind:
        case QuestionKind.SHAPE:
            (named,) = [shape for shape in scene if shape.colour == question.colour]
            return QuestionKind.COLOUR, named.kind
        case QuestionKind.PLACE:
            (named,) = [shape for shape in scene if shape.place == question.detail]
            return QuestionKind.WHERE, named.kind
    return question.kind, question.shape or question.colour


def join(template: str, answer: str, question: str) -> str:
    """A question and the statement of an answer, joined as one of `STATED` says."""
    clause, question = answer.removesuffix("."), question.removesuffix("?")
    return template.format(
        clause=clause[0].lower() + clause[1:],
        Clause=clause,
        question=question[0].lower() + question[1:],
        Question=question,
    )


def _named(scene: Scene, kind: str) -> Shape:
    return next(shape for shape in scene if shape.kind == kind)


def _about(shape: Shape, template: str) -> str:
    return template.format(kind=shape.kind, colour=shape.colour, size=shape.size, place=shape.place)
