"""What the replies to each built-in style say about a scene."""

import random

from ..questions import (
    FOLLOW_UPS,
    GENERATED_KINDS,
    NUMBERS,
    PLACES,
    Question,
    QuestionKind,
    questions_of,
)
from ..scenes import COLOURS, KINDS, Scene
from ..truth import answer_to, is_present, random_question, short_answer
from .forms import LETTERS, Content

SHORT_KINDS = (*GENERATED_KINDS, QuestionKind.PLACE)
KNOWLEDGE = {
    "objects": (QuestionKind.OBJECTS, QuestionKind.OBJECTS, QuestionKind.PRESENCE),
    "counting": (QuestionKind.COUNT, QuestionKind.COUNT, QuestionKind.COLOUR_COUNT),
    "colour": (QuestionKind.COLOUR, QuestionKind.COLOUR, QuestionKind.CHECK),
    "spatial": (QuestionKind.WHERE, QuestionKind.PLACE),
    "scene": (QuestionKind.SCENE, QuestionKind.BACKGROUND),
    "reasoning": (QuestionKind.MORE,),
    "commonsense": (QuestionKind.CORNERS,),
}
"""Kinds of the knowledge style about what scenes show; they show nothing of the other kinds."""

_CHOICES = {
    QuestionKind.COLOUR: tuple(COLOURS),
    QuestionKind.WHERE: PLACES,
    QuestionKind.COUNT: NUMBERS[1:],
    QuestionKind.PLACE: KINDS,
    QuestionKind.SHAPE: KINDS,
}


def content_of(
    style: str, drawn: str, pairs: int, scene: Scene, rng: random.Random, *, letter_given: bool
) -> Content:
    """Draw what a reply says.

    Args:
        style: name of a built-in style.
        drawn: its kind, letter or verdict, if it has one.
        pairs: number of QA pairs or turns.
        scene: what the image shows.
        rng: source of randomness.
        letter_given: whether the prompt names the letter of the right option.
    """
    match style:
        case "multiple-choice":
            return _multiple_choice(scene, rng, drawn, letter_given)
        case "dialogue":
            return _dialogue(scene, rng, pairs)
        case "several":
            return _pairs(scene, rng, different_questions(scene, rng, pairs))
        case "yes-no":
            return _pairs(scene, rng, [_with_verdict(scene, rng, drawn)])
        case "short":
            return _short(scene, rng)
        case "detailed":
            question = random_question(scene, rng, (QuestionKind.LOOK,))
            return _pairs(scene, rng, [question])
        case "unanswerable":
            return _pairs(scene, rng, [_unanswerable(scene, rng)])
        case "caption":
            return _pairs(scene, rng, [Question(QuestionKind.CAPTION)])
        case "knowledge":
            return _pairs(scene, rng, [_of_kind(scene, rng, drawn)])
    return _pairs(scene, rng, [random_question(scene, rng, GENERATED_KINDS)])


def different_questions(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """Different questions: their kinds follow each other in a fixed cycle."""
    first = rng.randrange(len(GENERATED_KINDS))
    kinds = [GENERATED_KINDS[(first + step) % len(GENERATED_KINDS)] for step in range(count)]
    return [random_question(scene, rng, (kind,)) for kind in kinds]


def _pairs(scene: Scene, rng: random.Random, questions: list[Question]) -> Content:
    return Content(
        tuple(
            (rng.choice(question.phrasings()), str(answer_to(scene, question)))
            for question in questions
        )
    )


def _short(scene: Scene, rng: random.Random) -> Content:
    question = random_question(scene, rng, SHORT_KINDS)
    return Content(((rng.choice(question.phrasings()), str(short_answer(scene, question))),))


def _of_kind(scene: Scene, rng: random.Random, kind: str) -> Question:
    if kind not in KNOWLEDGE:
        return Question(QuestionKind.MISSING, detail=kind)
    return random_question(scene, rng, KNOWLEDGE[kind])


def _with_verdict(scene: Scene, rng: random.Random, verdict: str) -> Question:
    kinds = (QuestionKind.CHECK, QuestionKind.SIZE_CHECK, QuestionKind.PRESENCE)
    while True:
        question = random_question(scene, rng, kinds)
        if str(answer_to(scene, question)).lower().startswith(f"{verdict},"):
            return question


def _unanswerable(scene: Scene, rng: random.Random) -> Question:
    """About a missing shape or colour, or about what no image shows."""
    kinds = rng.choice(
        (
            (QuestionKind.UNSHOWN,),
            (QuestionKind.COLOUR, QuestionKind.SIZE, QuestionKind.WHERE),
            (QuestionKind.SHAPE,),
        )
    )
    unshown = kinds == (QuestionKind.UNSHOWN,) or (len(scene) == 4 and len(kinds) == 3)
    if unshown:
        return random_question(scene, rng, (QuestionKind.UNSHOWN,))
    return random_question(scene, rng, kinds, absent=1)


def _multiple_choice(scene: Scene, rng: random.Random, letter: str, letter_given: bool) -> Content:
    """The options follow each other in a fixed circle, so that the first determines the others."""
    kind = rng.choice(list(_CHOICES))
    values = _CHOICES[kind]
    candidates = [
        question
        for question in questions_of(kind)
        if is_present(scene, question) and short_answer(scene, question) is not None
    ]
    if not candidates:
        return _multiple_choice(scene, rng, letter, letter_given)
    question = rng.choice(candidates)
    truth = str(short_answer(scene, question)).lower()
    first = values.index(truth) - LETTERS.index(letter)
    options = tuple(values[(first + step) % len(values)] for step in range(len(LETTERS)))
    return Content(((rng.choice(question.phrasings()), letter),), options, not letter_given)


def _dialogue(scene: Scene, rng: random.Random, turns: int) -> Content:
    """A question that names a shape or leads to one, then what else there is to say about it."""
    shape = rng.choice(scene)
    alone = [other.colour for other in scene].count(shape.colour) == 1
    openings = [
        (Question(QuestionKind.PLACE, detail=shape.place), QuestionKind.WHERE),
        (Question(QuestionKind.COLOUR, shape.kind), QuestionKind.COLOUR),
        (Question(QuestionKind.SIZE, shape.kind), QuestionKind.SIZE),
        (Question(QuestionKind.WHERE, shape.kind), QuestionKind.WHERE),
    ]
    if alone:
        by_colour = Question(QuestionKind.SHAPE, colour=shape.colour)
        openings += [(by_colour, QuestionKind.COLOUR)] * 2
    opening, said = rng.choice(openings)
    follow_ups = [(text, kind) for text, kind in FOLLOW_UPS.items() if kind is not said]
    rng.shuffle(follow_ups)
    pairs = [(rng.choice(opening.phrasings()), str(answer_to(scene, opening)))]
    for text, kind in follow_ups:
        answer = str(answer_to(scene, Question(kind, shape.kind)))
        pairs.append((text, answer.replace(f"The {shape.kind}", "It")))
    others = Question(QuestionKind.OTHERS)
    pairs.append((others.phrasings()[0], str(answer_to(scene, others))))
    return Content(tuple(pairs[:turns]))
