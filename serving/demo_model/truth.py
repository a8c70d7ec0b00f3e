"""The correct answers to questions about a scene, in full, in short, and in several sentences."""

import random
from collections.abc import Sequence

from .questions import (
    NUMBERS,
    UNSHOWN_FACTS,
    Question,
    QuestionKind,
    questions_of,
)
from .scenes import KINDS, Scene, Shape

BACKGROUND = "The background is plain and pale."
_CORNERS = {"circle": "no", "square": "four", "triangle": "three", "star": "ten"}
_SAYS = {
    QuestionKind.COLOUR: "colour",
    QuestionKind.SHAPE: "colour",
    QuestionKind.CHECK: "colour",
    QuestionKind.LOOK: "colour",
    QuestionKind.SIZE: "size",
    QuestionKind.SIZE_CHECK: "size",
    QuestionKind.WHERE: "place",
    QuestionKind.PLACE: "place",
    QuestionKind.PRESENCE: "",
}
"""Questions about one shape: which fact the answer states."""


def answer_to(scene: Scene, question: Question) -> str | None:
    """The correct answer to a recognised question, or None if the scene has no single one."""
    if question.shape:
        return _about_shape(scene, question)
    match question.kind:
        case QuestionKind.COUNT:
            return _count(len(scene), "")
        case QuestionKind.OTHERS:
            return _count(len(scene) - 1, "other ")
        case QuestionKind.COLOUR_COUNT:
            return _count(len(_coloured(scene, question.colour)), f"{question.colour} ")
        case QuestionKind.SHAPE:
            found = _coloured(scene, question.colour)
            if not found:
                return f"There is no {question.colour} shape in the image."
            return f"The {found[0].kind} is {question.colour}." if len(found) == 1 else None
        case QuestionKind.PLACE:
            shape = _placed(scene, question.detail)
            if shape is None:
                return f"There is no shape in the {question.detail}."
            return f"The {shape.kind} is in the {shape.place}."
        case QuestionKind.MORE:
            verdict = "yes" if len(scene) > NUMBERS.index(question.detail) else "no"
            return f"{_count(len(scene), '').removesuffix('.')}, so {verdict}."
        case QuestionKind.MISSING:
            return f"No, there is no {question.detail} in the image."
        case QuestionKind.SCENE:
            shapes = "one shape" if len(scene) == 1 else f"{NUMBERS[len(scene)]} shapes"
            return f"It is a drawing of {shapes} on a plain background."
        case QuestionKind.BACKGROUND:
            return BACKGROUND
        case QuestionKind.OBJECTS:
            return _shows([f"a {shape.kind}" for shape in _in_order(scene)])
        case QuestionKind.CAPTION:
            return _shows(
                [
                    f"a {shape.size} {shape.colour} {shape.kind} in the {shape.place}"
                    for shape in _in_order(scene)
                ]
            )
    return None


def _about_shape(scene: Scene, question: Question) -> str:
    named = next((shape for shape in scene if shape.kind == question.shape), None)
    if question.kind is QuestionKind.PRESENCE:
        there = "No, there is no" if named is None else "Yes, there is a"
        return f"{there} {question.shape} in the image."
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
        case QuestionKind.SIZE_CHECK:
            verdict = "Yes" if named.size == question.detail else "No"
            return f"{verdict}, the {named.kind} is {named.size}."
        case QuestionKind.CORNERS:
            return f"A {named.kind} has {_CORNERS[named.kind]} corners."
        case QuestionKind.UNSHOWN:
            return f"The image does not show {UNSHOWN_FACTS[question.detail]}.".format(
                shape=named.kind
            )
    return _sentences(named, f"The {named.kind} is {named.colour}.", "colour")


def short_answer(scene: Scene, question: Question) -> str | None:
    """The correct answer in one to three words, or None if that does not suffice."""
    full = answer_to(scene, question)
    if full is None or question.kind in (QuestionKind.OBJECTS, QuestionKind.CAPTION):
        return None
    if full.startswith(("Yes", "No,")):
        return full.split(",")[0]
    if question.kind is QuestionKind.MORE:
        return full.removesuffix(".").rsplit(maxsplit=1)[1].capitalize()
    if full.startswith("There is no "):
        return "There is none"
    shape = _subject(scene, question)
    match question.kind:
        case QuestionKind.COUNT | QuestionKind.COLOUR_COUNT | QuestionKind.OTHERS:
            number = full.split()[2]
            return "None" if number == "no" else number.capitalize()
        case QuestionKind.SCENE:
            return "A drawing"
        case QuestionKind.BACKGROUND:
            return "Plain and pale"
    if shape is None:
        return None
    return {
        QuestionKind.COLOUR: shape.colour,
        QuestionKind.SIZE: shape.size,
        QuestionKind.WHERE: shape.place,
        QuestionKind.SHAPE: shape.kind,
        QuestionKind.PLACE: shape.kind,
        QuestionKind.LOOK: f"{shape.size} and {shape.colour}",
        QuestionKind.CORNERS: _CORNERS[shape.kind].replace("no", "none"),
        QuestionKind.UNSHOWN: "not shown",
    }[question.kind].capitalize()


def detailed_answer(scene: Scene, question: Question) -> str | None:
    """The correct answer in several sentences, or None if the scene has no single one."""
    full = answer_to(scene, question)
    if full is None:
        return None
    shape = _subject(scene, question)
    if shape is not None and question.kind in _SAYS:
        return _sentences(shape, full.split(". ")[0].removesuffix(".") + ".", _SAYS[question.kind])
    if question.kind in (QuestionKind.OBJECTS, QuestionKind.CAPTION):
        return f"{full} {BACKGROUND}"
    return f"{full} {answer_to(scene, Question(QuestionKind.OBJECTS))}"


def _sentences(shape: Shape, first: str, said: str) -> str:
    facts = {"colour": shape.colour, "size": shape.size, "place": f"in the {shape.place}"}
    return " ".join([first, *(f"It is {fact}." for name, fact in facts.items() if name != said)])


def _subject(scene: Scene, question: Question) -> Shape | None:
    """The shape that the answer is about."""
    if question.kind is QuestionKind.SHAPE:
        found = _coloured(scene, question.colour)
        return found[0] if len(found) == 1 else None
    if question.kind is QuestionKind.PLACE:
        return _placed(scene, question.detail)
    return next((shape for shape in scene if shape.kind == question.shape), None)


def _coloured(scene: Scene, colour: str) -> list[Shape]:
    return [shape for shape in scene if shape.colour == colour]


def _placed(scene: Scene, place: str) -> Shape | None:
    return next((shape for shape in scene if shape.place == place), None)


def _in_order(scene: Scene) -> list[Shape]:
    return sorted(scene, key=lambda shape: KINDS.index(shape.kind))


def _shows(things: Sequence[str]) -> str:
    *first, last = things
    return f"The image shows {', '.join(first)}{' and ' if first else ''}{last}."


def _count(count: int, adjective: str) -> str:
    if count == 1:
        return f"There is one {adjective}shape."
    return f"There are {NUMBERS[count]} {adjective}shapes."


def is_present(scene: Scene, question: Question) -> bool:
    """Whether everything the question names is in the scene, as a generated question requires."""
    if question.kind is QuestionKind.PRESENCE:
        return True
    if question.kind is QuestionKind.PLACE:
        return _placed(scene, question.detail) is not None
    if question.kind is QuestionKind.CHECK:
        return any(shape.kind == question.shape for shape in scene)
    return all(
        name in {value for shape in scene for value in (shape.kind, shape.colour)}
        for name in (question.shape, question.colour)
        if name
    )


def random_question(
    scene: Scene, rng: random.Random, kinds: Sequence[QuestionKind], absent: float = 0.0
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


_BY_KIND = {kind: questions_of(kind) for kind in QuestionKind}
