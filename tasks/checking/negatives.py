"""Unanswerable pairs: a question with the image of another row, which does not answer it.

A model that has only seen questions with answers invents one to every question. So some questions
are asked about another image, and where the model says that it does not show what is asked, they
become pairs that say so:

1. `is_candidate` says which pairs have a question that another image may not answer, `rank` draws
   among them with a seed, and the check asks those below `tried_share`;
2. `chosen` takes as many of those that turned out unanswerable as there should be;
3. `unanswerable_pair` is the new pair, about the row whose image was shown.
"""

import heapq
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from ...serving.printable import printable
from ..parsing.parse import ANSWER
from ..prompting.file_style import user_message
from ..prompting.keys import canonical_digest
from ..prompting.style import PromptInput, Rendered
from ..records import Asked, FinishedRow, Kind, QAPair, ReplyForm, RowError
from .check import AskedCheck, CheckedPair, Values
from .consistency import asked_pair, question_text
from .declining import is_denial, is_refusal
from .visual import reply_of

NAME = "negatives"

COLUMNS = (pa.field("unanswerable", pa.bool_()), pa.field("unanswerable_answer", pa.string()))
"""Whether the model says that the other image does not show what is asked; and its answer."""

TYPE = "unanswerable"
"""Type of the pairs, as of those of the style of that name."""

DECLINING = (
    "The image does not show that.",
    "This cannot be answered from the image.",
    "The image does not show what the question asks about.",
    "That cannot be seen in the image.",
    "There is nothing in the image that answers this question.",
)

_TRIES = 4
"""Questions that are tried for each pair that is wanted: many are answered by other images, too."""

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
    """The check: the question with the image of another row, which the model has to deny."""
    return AskedCheck(
        name=NAME,
        columns=COLUMNS,
        style=_with_other_image,
        parsing=ANSWER,
        verdict=_verdict,
        other_image=True,
    )


def is_candidate(pair: QAPair, blind_answerable: bool | None = None) -> bool:
    """Whether a question could be one that another image does not answer.

    "No" and "none" are answers: questions for yes or no and for a number stay out. So do those
    that go with options or with earlier turns, that are denied already, or that need no image.

    Args:
        pair: the pair.
        blind_answerable: what the check `blind` says about it, if it was made.
    """
    answer = " ".join(pair.answer[:_MAX_ANSWER].casefold().split())
    return not (
        pair.options
        or pair.turn > 1
        or blind_answerable
        or pair.type.casefold() in _COUNTING_TYPES
        or _COUNTS.search(pair.question.casefold())
        or _YES_OR_NO.match(answer)
        or is_denial(answer)
        or is_refusal(answer)
    )


def rank(checked: CheckedPair, seed: int) -> float:
    """A number from 0 to 1 drawn for a pair: pairs with lower ones are taken first.

    It depends on images and question only: rows may be added to the dataset.
    """
    drawn = canonical_digest([checked.images, checked.pair.question, seed])
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


def chosen(found: Iterable[tuple[float, int, int]], count: int) -> list[tuple[float, int, int]]:
    """The pairs that are taken of those that turned out unanswerable, in order of their rank.

    Args:
        found: rank, row and number of each.
        count: how many there should be; there may be fewer.
    """
    return heapq.nsmallest(count, found)


def unanswerable_pair(
    pair: QAPair, answer: str, *, own_answer: bool = True, seed: int = 0
) -> QAPair:
    """The pair that says that an image does not show what is asked.

    Args:
        pair: the pair whose question was asked about that image.
        answer: what the model said of it.
        own_answer: whether that is the answer of the pair. Otherwise, and if the model speaks of
            itself ("I cannot see it."), it is one of `DECLINING`, in English.
        seed: which of them.
    """
    if not own_answer or is_refusal(answer):
        drawn = canonical_digest([pair.question, answer, seed])
        answer = DECLINING[int.from_bytes(drawn[:8], "big") % len(DECLINING)]
    return QAPair(pair.question, answer, type=TYPE, language=pair.language)


def _with_other_image(prompt_input: PromptInput) -> Rendered:
    if not prompt_input.image_count:
        raise RowError(Kind.NO_IMAGE, "the row whose image should be shown has none")
    text = question_text(asked_pair(prompt_input))
    asked = Asked(question=text, style=f"{NAME}@1", form=ReplyForm.ANSWER)
    return Rendered((user_message(text, range(prompt_input.image_count)),), asked)


def _verdict(_pair: QAPair, outcomes: Sequence[FinishedRow]) -> Values:
    for outcome in outcomes:
        if reply := reply_of(outcome):
            shown = printable(reply.answer, _MAX_ANSWER)
            return len(reply.answer) <= _MAX_ANSWER and is_denial(reply.answer), shown
    return None, None
