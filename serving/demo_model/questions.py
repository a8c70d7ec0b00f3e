"""Questions about a scene, their correct answers, and the evaluation of a model's pairs."""

import random
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from .scenes import COLOURS, KINDS, Scene, Shape


class QuestionKind(StrEnum):
    """What a question asks for."""

    COLOUR = "colour"
    SIZE = "size"
    WHERE = "where"
    COUNT = "count"
    SHAPE = "shape"
    COLOUR_COUNT = "colour_count"
    CHECK = "check"


GENERATED_KINDS = (
    QuestionKind.COLOUR,
    QuestionKind.SIZE,
    QuestionKind.WHERE,
    QuestionKind.COUNT,
)
"""The kinds the model generates; it can answer all kinds."""

PHRASINGS = {
    QuestionKind.COLOUR: ("What color is the {shape}?", "What is the color of the {shape}?"),
    QuestionKind.SIZE: ("What size is the {shape}?", "How big is the {shape}?"),
    QuestionKind.WHERE: ("Where is the {shape}?", "Where is the {shape} in the image?"),
    QuestionKind.COUNT: ("How many shapes are there?", "How many objects are in the image?"),
    QuestionKind.SHAPE: ("What shape is {colour}?", "Which shape is {colour}?"),
    QuestionKind.COLOUR_COUNT: (
        "How many {colour} shapes are there?",
        "How many {colour} objects are in the image?",
    ),
    QuestionKind.CHECK: ("Is the {shape} {colour}?",),
}

_NUMBERS = ("no", "one", "two", "three", "four")


class Verdict(StrEnum):
    """The evaluation of a question-answer pair.

    Attributes:
        RIGHT: the answer is correct, and about something in the image.
        WRONG: the question is valid, the answer is not.
        UNKNOWN_QUESTION: not one of the known questions.
        UNDEFINED: the scene has no single answer ("What shape is red?" with two red shapes).
        ABSENT: answered correctly, but about something that is not in the image.
    """

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN_QUESTION = "unknown_question"
    UNDEFINED = "undefined"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Question:
    """A question independent of its wording; `shape` and `colour` are "" if it names none."""

    kind: QuestionKind
    shape: str = ""
    colour: str = ""

    def phrasings(self) -> tuple[str, ...]:
        """All wordings of the question."""
        return tuple(
            text.format(shape=self.shape, colour=self.colour) for text in PHRASINGS[self.kind]
        )


def _all_questions() -> dict[str, Question]:
    questions = {Question(QuestionKind.COUNT)}
    for shape in KINDS:
        for kind in (QuestionKind.COLOUR, QuestionKind.SIZE, QuestionKind.WHERE):
            questions.add(Question(kind, shape=shape))
    for colour in COLOURS:
        for kind in (QuestionKind.SHAPE, QuestionKind.COLOUR_COUNT):
            questions.add(Question(kind, colour=colour))
    for shape, colour in product(KINDS, COLOURS):
        questions.add(Question(QuestionKind.CHECK, shape, colour))
    return {text: question for question in questions for text in question.phrasings()}


_QUESTIONS = _all_questions()


def parse_question(text: str) -> Question | None:
    """Recognise a question in any of its wordings; surrounding whitespace is ignored."""
    return _QUESTIONS.get(text.strip())


def answer(scene: Scene, question: str) -> str | None:
    """The correct answer, or None if the question is unknown or has no single answer."""
    known = parse_question(question)
    return answer_to(scene, known) if known else None


def answer_to(scene: Scene, question: Question) -> str | None:
    """The correct answer to a recognised question, or None if the scene has no single one."""
    match question.kind:
        case QuestionKind.COUNT:
            return _count(len(scene), "")
        case QuestionKind.COLOUR_COUNT:
            return _count(len(_coloured(scene, question.colour)), f"{question.colour} ")
        case QuestionKind.SHAPE:
            found = _coloured(scene, question.colour)
            if not found:
                return f"There is no {question.colour} shape in the image."
            return f"The {found[0].kind} is {question.colour}." if len(found) == 1 else None
    named = next((shape for shape in scene if shape.kind == question.shape), None)
    if named is None:
        return f"There is no {question.shape} in the image."
    match question.kind:
        case QuestionKind.COLOUR:
            return f"The {named.kind} is {named.colour}."
        case QuestionKind.SIZE:
            return f"The {named.kind} is {named.size}."
        case QuestionKind.WHERE:
            return f"The {named.kind} is in the {named.place}."
        case QuestionKind.CHECK:
            verdict = "Yes" if named.colour == question.colour else "No"
            return f"{verdict}, the {named.kind} is {named.colour}."


def _coloured(scene: Scene, colour: str) -> list[Shape]:
    return [shape for shape in scene if shape.colour == colour]


def _count(count: int, adjective: str) -> str:
    if count == 1:
        return f"There is one {adjective}shape."
    return f"There are {_NUMBERS[count]} {adjective}shapes."


def is_present(scene: Scene, question: Question) -> bool:
    """Whether everything the question names is in the scene, as a generated question requires."""
    if question.kind is QuestionKind.CHECK:
        return any(shape.kind == question.shape for shape in scene)
    return all(
        name in {value for shape in scene for value in (shape.kind, shape.colour)}
        for name in (question.shape, question.colour)
        if name
    )


def judge_pair(scene: Scene, question: str, answer: str) -> Verdict:
    """Compare a generated pair with the scene; surrounding whitespace is ignored."""
    known = parse_question(question)
    if known is None:
        return Verdict.UNKNOWN_QUESTION
    truth = answer_to(scene, known)
    if truth is None:
        return Verdict.UNDEFINED
    if answer.strip() != truth:
        return Verdict.WRONG
    return Verdict.RIGHT if is_present(scene, known) else Verdict.ABSENT


def random_question(
    scene: Scene, rng: random.Random, kinds: tuple[QuestionKind, ...], absent: float = 0.0
) -> Question:
    """Draw a random question of one of the kinds, with an answer in the scene.

    Args:
        scene: the scene to ask about.
        rng: source of randomness.
        kinds: the kinds to choose from; at least one must apply to any scene.
        absent: share (0 to 1) of questions that name something that is not in the scene.
    """
    choices: list[Question] = []
    while not choices:
        kind = rng.choice(kinds)
        present = rng.random() >= absent
        choices = [
            question
            for question in _BY_KIND[kind]
            if is_present(scene, question) is present and answer_to(scene, question) is not None
        ]
    question = rng.choice(choices)
    if kind is QuestionKind.CHECK and present and rng.random() < 0.5:
        # For half of the checks the answer is yes; otherwise "No" would nearly always be right.
        named = next(shape for shape in scene if shape.kind == question.shape)
        return Question(kind, named.kind, named.colour)
    return question


_BY_KIND = {
    kind: tuple(
        sorted(
            {question for question in _QUESTIONS.values() if question.kind is kind},
            key=lambda question: (question.shape, question.colour),
        )
    )
    for kind in QuestionKind
}
