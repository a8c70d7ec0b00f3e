"""The language model's training data: prompts with several correct replies each, as text.

A lesson is a prompt about a scene with many branches, each of which is an independent continuation,
so that the prompt is processed only once.
"""

import json
import random
from dataclasses import dataclass

from ..questions import GENERATED_KINDS, Question, QuestionKind, answer_to, random_question
from ..scenes import COLOURS, KINDS, Scene, Shape
from .prompts import Form, instruct

END = "<end_of_utterance>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
IMAGE = "<image>"

CANNOT_TELL = "I cannot tell without the image."
CANNOT_SEE = "I cannot see an image."

_BRANCHES = 16
_HARD_KINDS = (
    QuestionKind.COUNT,
    QuestionKind.SHAPE,
    QuestionKind.COLOUR_COUNT,
    QuestionKind.CHECK,
)
_ANSWERED_KINDS = (*QuestionKind, *_HARD_KINDS)
_QUESTION_WEIGHT = 0.4  # there are many good questions but only one correct answer
_FORM_WEIGHT = 4.0  # a few tokens determine the form and the number of pairs


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a branch and the weight of its tokens in the loss; 0 for input."""

    text: str
    weight: float


Branch = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """The common prompt, and the branches that continue it; each branch ends the turn."""

    prompt: str
    branches: tuple[Branch, ...]


def make_lesson(scene: Scene, rng: random.Random, progress: float) -> Lesson:
    """Draw a random lesson.

    Args:
        scene: the content of the image.
        rng: source of randomness.
        progress: progress of the training, 0 to 1. It begins with plain descriptions, then answers
            are added, then everything else.
    """
    if rng.random() < (0.6 if progress < 0.15 else 0.05):
        return _describe(scene, rng)
    draw = rng.random() if progress > 0.3 else rng.uniform(0.46, 1)
    if draw < 0.18:
        return _generate(scene, rng, Form.PAIR)
    if draw < 0.26:
        return _generate(scene, rng, Form.JSON)
    if draw < 0.46:
        return _generate(scene, rng, Form.MANY)
    if draw < 0.96:
        return _answer(scene, rng)
    return _without_image(scene, rng)


def _describe(scene: Scene, rng: random.Random) -> Lesson:
    """Look up facts without any grammar: a keyword is followed by the facts that answers need."""
    branches = []
    for _ in range(_BRANCHES):
        key, facts = rng.choice((_by_kind, _by_colour, _by_place, _by_both))(scene, rng)
        branches.append((Span(f" {key}", 0), Span(f" {facts}{END}", 1)))
    return Lesson(f"{USER}{IMAGE}Describe.{END}{ASSISTANT}", tuple(branches))


def _by_kind(scene: Scene, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(KINDS)
    named = [shape for shape in scene if shape.kind == kind]
    return kind, _facts(named)


def _by_colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    colour = rng.choice((rng.choice(scene).colour, rng.choice(list(COLOURS))))
    named = [shape for shape in scene if shape.colour == colour]
    return colour, _facts(named)


def _by_place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(scene)
    return shape.place, _facts([shape])


def _by_both(scene: Scene, rng: random.Random) -> tuple[str, str]:
    shape = rng.choice(scene)
    colour = rng.choice((shape.colour, rng.choice(scene).colour, rng.choice(list(COLOURS))))
    return f"{shape.kind} {colour}", "yes" if shape.colour == colour else "no"


def _facts(named: list[Shape]) -> str:
    if len(named) != 1:
        return ("none", "one", "two", "three", "four")[len(named)]
    shape = named[0]
    return f"one {shape.kind} {shape.colour} {shape.size} {shape.place}"


def _generate(scene: Scene, rng: random.Random, form: Form) -> Lesson:
    count = rng.randint(2, 4) if form is Form.MANY else 1
    instruction = instruct(form, rng, count)
    prompt = f"{_system(instruction.system)}{USER}{IMAGE}{_gap(rng)}{instruction.user}{END}"
    branches = []
    for _ in range(_BRANCHES if count == 1 else 4):
        reply = _reply(scene, rng, form, count)
        if form is Form.PAIR and rng.random() < 0.06:
            # A server that enforces a JSON schema forces the form, whatever the prompt says.
            start, *rest = _reply(scene, rng, Form.JSON, 1)
            reply = (Span(start.text, 0), *rest)
        branches.append((Span(ASSISTANT, 0), *reply, Span(END, _FORM_WEIGHT)))
    return Lesson(prompt, tuple(branches))


def _reply(scene: Scene, rng: random.Random, form: Form, count: int) -> Branch:
    spans: list[Span] = []
    for number, question in enumerate(_different_questions(scene, rng, count), 1):
        text, answer = rng.choice(question.phrasings()), answer_to(scene, question)
        if form is Form.JSON:
            pair = json.dumps({"question": text, "answer": answer})
            question_end = pair.index(', "answer"')
        else:
            separator = "\n\n" if number > 1 else ""
            label = f"{separator}{number}. " if form is Form.MANY else ""
            pair = f"{label}**Question:** {text}\n**Answer:** {answer}"
            question_end = pair.index("\n**Answer")
        question_start = pair.index(text)
        spans += [
            Span(pair[:question_start], _FORM_WEIGHT),
            Span(pair[question_start:question_end], _QUESTION_WEIGHT),
            Span(pair[question_end:], 1),
        ]
    return tuple(spans)


def _different_questions(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """Different questions: their kinds follow each other in a fixed cycle."""
    first = rng.randrange(len(GENERATED_KINDS))
    kinds = [GENERATED_KINDS[(first + step) % len(GENERATED_KINDS)] for step in range(count)]
    return [random_question(scene, rng, (kind,)) for kind in kinds]


def _answer(scene: Scene, rng: random.Random) -> Lesson:
    prompt = f"{_system(instruct(Form.ANSWER, rng).system)}{USER}{IMAGE}"
    gap = _gap(rng)
    branches = []
    for _ in range(_BRANCHES):
        question = random_question(scene, rng, _ANSWERED_KINDS, absent=0.12)
        text = rng.choice(question.phrasings())
        reply = Span(f"{answer_to(scene, question)}{END}", 1)
        branches.append((Span(f"{gap}{text}{END}{ASSISTANT}", 0), reply))
    return Lesson(prompt, tuple(branches))


def _without_image(scene: Scene, rng: random.Random) -> Lesson:
    if rng.random() < 0.5:
        form = rng.choice((Form.PAIR, Form.JSON, Form.MANY))
        instruction = instruct(form, rng, rng.randint(2, 4))
        prompt = f"{_system(instruction.system)}{USER}{instruction.user}{END}"
        return Lesson(prompt, ((Span(ASSISTANT, 0), Span(f"{CANNOT_SEE}{END}", 1)),))
    branches = []
    for _ in range(_BRANCHES):
        question = random_question(scene, rng, tuple(QuestionKind), absent=0.12)
        text = rng.choice(question.phrasings())
        branches.append((Span(f"{text}{END}{ASSISTANT}", 0), Span(f"{CANNOT_TELL}{END}", 1)))
    return Lesson(f"{_system(instruct(Form.ANSWER, rng).system)}{USER}", tuple(branches))


def _system(text: str) -> str:
    return f"{SYSTEM}{text}{END}" if text else ""


def _gap(rng: random.Random) -> str:
    """Whitespace that is left when a client removes the image placeholder from the text."""
    return "" if rng.random() < 0.85 else rng.choice((" ", "\n"))
