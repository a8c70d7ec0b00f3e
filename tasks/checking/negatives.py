"""Unanswerable pairs: a question with the image of another row, which does not answer it.

A model that has only seen questions with answers invents one to every question. So some questions
are asked about another image, and again without any. Where the model says that the image does not
show what is asked, and cannot answer without one, they become pairs that say so.
"""

import re
from collections.abc import Sequence

from ..parsing.parse import ANSWER
from ..prompting.file_style import user_message
from ..prompting.keys import canonical_digest
from ..prompting.style import PromptInput, Rendered
from ..records import Asked, FinishedRow, QAPair, ReplyForm
from .agreement import agree
from .catalogue import NEGATIVES
from .check import AskedCheck, Values
from .consistency import answer_of, asked_pair, question_text
from .declining import UNANSWERABLE, is_denial, is_refusal

STYLE = f"{NEGATIVES}@1"

DECLINING = (
    "The image does not show that.",
    "This cannot be answered from the image.",
    "The image does not show what the question asks about.",
    "That cannot be seen in the image.",
    "There is nothing in the image that answers this question.",
)

_TRIES = 6
"""Pairs that are tried for each one that is wanted: many are no candidates, and of these many are
answered by the other image, too."""

_MAX_ANSWER = 1000
"""Characters of an answer; a longer one is not used."""

_COUNTS = re.compile(
    r"\b(?:how (?:many|much)|number of|amount of)\b|多少|几[个只条张辆位名]|"
    r"\b(?:cuánt|combien|wie ?viel|quant[ioae]s?\b)"
)
_YES_OR_NO = re.compile(
    r"\W*(?:(?:yes|no|yeah|nope|true|false|sí|si|oui|non|ja|nein|sim|não)\b|是|否|不是|有|没有)"
)
_COUNTING_TYPES = frozenset({"counting", "count", "number"})


def check() -> AskedCheck:
    """The pass: each question with the image of another row, and without any.

    Its verdict is one value, whether the question turned out unanswerable; it gives no column.
    """
    return AskedCheck(
        name=NEGATIVES,
        columns=(),
        style=_style,
        parsing=ANSWER,
        verdict=_verdict,
        times=2,
        other_image=True,
    )


def is_candidate(pair: QAPair) -> bool:
    """Whether a question could be one that another image does not answer.

    "No" and "none" are answers: questions for yes or no and for a number stay out. So do those
    that go with options or are turns of a dialogue, and those that are denied already.
    """
    answer = " ".join(pair.answer[:_MAX_ANSWER].casefold().split())
    return not (
        pair.options
        or pair.turn
        or pair.type.casefold() in _COUNTING_TYPES
        or _COUNTS.search(pair.question.casefold())
        or _YES_OR_NO.match(answer)
        or is_denial(answer)
        or is_refusal(answer)
    )


def rank(images: str, question: str, seed: int) -> float:
    """A number from 0 to 1 drawn for a question: those with lower ones are taken first.

    It depends on images and question only: rows may be added to the dataset.
    """
    drawn = canonical_digest([images, question, seed])
    return int.from_bytes(drawn[:8], "big") / 2**64


def wanted(share: float, pairs: int) -> int:
    """How many unanswerable pairs make up a share of all, if they are added to so many others.

    Args:
        share: 0 to 0.5.
        pairs: how many pairs there are without them.
    """
    return round(pairs * share / (1 - share))


def tried_share(share: float) -> float:
    """The rank below which questions are tried, so that a share of all pairs may be found."""
    return min(1.0, _TRIES * share / (1 - share))


def unanswerable_pair(pair: QAPair, answer: str, seed: int) -> QAPair:
    """The pair that says that an image does not show what is asked.

    Args:
        pair: the pair whose question was asked about that image.
        answer: what the model said of it. If it speaks of itself ("I cannot see it."), one of
            `DECLINING` takes its place, in English.
        seed: which of them.
    """
    if is_refusal(answer):
        drawn = canonical_digest([pair.question, answer, seed])
        answer = DECLINING[int.from_bytes(drawn[:8], "big") % len(DECLINING)]
    return QAPair(pair.question, answer, type=UNANSWERABLE, language=pair.language)


def _style(prompt_input: PromptInput) -> Rendered:
    text = question_text(asked_pair(prompt_input))
    images = range(0 if prompt_input.sample else prompt_input.image_count)
    return Rendered((user_message(text, images),), Asked(text, STYLE, ReplyForm.ANSWER))


def _verdict(pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    """Whether the other image does not answer the question; None if a request failed."""
    sighted, blind = map(answer_of, outcomes)
    if not sighted or not blind:
        return (None,)
    is_denied = len(sighted) <= _MAX_ANSWER and is_denial(sighted)
    return (is_denied and not agree(pair.answer, blind, question=pair.question),)
