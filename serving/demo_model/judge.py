"""Compares a model's question-answer pairs with the scene they are about."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .questions import FOLLOW_UPS, Question, QuestionKind, parse_question
from .scenes import KINDS, Scene
from .truth import answer_to, detailed_answer, is_present, short_answer


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


def judge_pair(scene: Scene, question: str, answer: str) -> Verdict:
    """Compare a generated pair with the scene; surrounding whitespace is ignored.

    The answer may be the full one, one of one to three words, or one of several sentences.
    """
    known = parse_question(question)
    if known is None:
        return Verdict.UNKNOWN_QUESTION
    truth = answer_to(scene, known)
    if truth is None:
        return Verdict.UNDEFINED
    truths = {truth, short_answer(scene, known), detailed_answer(scene, known)}
    if answer.strip() not in truths:
        return Verdict.WRONG
    return Verdict.RIGHT if is_present(scene, known) else Verdict.ABSENT


def judge_choice(scene: Scene, question: str, options: Sequence[str], answer: str) -> Verdict:
    """Compare a multiple-choice question with the scene.

    The answer is the text of the option that is said to be right; the question is without options.
    """
    known = parse_question(question)
    if known is None:
        return Verdict.UNKNOWN_QUESTION
    truth = short_answer(scene, known)
    if truth is None or not is_present(scene, known):
        return Verdict.UNDEFINED
    distinct = len({option.strip().lower() for option in options}) == len(options)
    right = distinct and answer in options and answer.strip().lower() == truth.lower()
    return Verdict.RIGHT if right else Verdict.WRONG


def judge_dialogue(scene: Scene, turns: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Compare each turn of a dialogue with the scene.

    "It" is the shape that was named last; a turn that asks about it before any was named is an
    unknown question.
    """
    verdicts: list[Verdict] = []
    it = ""
    for question, answer in turns:
        kind = FOLLOW_UPS.get(question.strip())
        if kind is not None and it:
            truth = answer_to(scene, Question(kind, it)) or ""
            right = answer.strip() == truth.replace(f"The {it}", "It")
            verdicts.append(Verdict.RIGHT if right else Verdict.WRONG)
        else:
            verdicts.append(judge_pair(scene, question, answer))
        named = [word for word in _words(f"{question} {answer}") if word in KINDS]
        it = named[-1] if named else it
    return verdicts


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def is_denial(scene: Scene, question: str, answer: str) -> bool:
    """Whether a question has no answer in the image, and the answer says so."""
    known = parse_question(question)
    verdict = judge_pair(scene, question, answer)
    unshown = known is not None and known.kind is QuestionKind.UNSHOWN
    return verdict is Verdict.ABSENT or (unshown and verdict is Verdict.RIGHT)


@dataclass(frozen=True, slots=True)
class Claim:
    """A pair as it was parsed.

    Attributes:
        question: without its options.
        answer: of multiple choice, the text of the right option.
        options: of multiple choice.
        turn: its place in a dialogue, from 1; 0 for a pair that stands on its own.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    turn: int = 0


def judge_claims(scene: Scene, claims: Sequence[Claim]) -> list[Verdict]:
    """Compare all pairs about one image with the scene, each by its form."""
    if claims and all(claim.turn for claim in claims):
        return judge_dialogue(scene, [(claim.question, claim.answer) for claim in claims])
    return [
        judge_choice(scene, claim.question, claim.options, claim.answer)
        if claim.options
        else judge_pair(scene, claim.question, claim.answer)
        for claim in claims
    ]
