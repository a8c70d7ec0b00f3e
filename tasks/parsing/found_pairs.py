"""What a reader of one form of reply finds in it."""

import re
from dataclasses import dataclass, replace

from ..records import QAPair


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """The pairs in a text.

    Attributes:
        pairs: in order.
        lost: how many more the text seems to have, which cannot be read or are not complete.
        reason: why the first of those is not among the pairs; empty if it is only incomplete.
        before_gap: how many pairs come before the first of those; None if that is not known.
    """

    pairs: list[QAPair]
    lost: int = 0
    reason: str = ""
    before_gap: int | None = None


_PLACEHOLDER = re.compile(
    r"\s*+[*_\"'`]*+(?:\.\.\.|…|<(?:question|answer|option|letter)>)[*_\"'`]*+\s*+",
    re.IGNORECASE,
)


def without_placeholders(found: FoundPairs) -> FoundPairs:
    """The pairs without those in which the reply repeats the example of its prompt."""
    if not any(map(_is_placeholder, found.pairs)):
        return found
    sound = [not _is_placeholder(pair) for pair in found.pairs]
    first = sound.index(False)
    return replace(
        found,
        pairs=[pair for pair, is_sound in zip(found.pairs, sound, strict=True) if is_sound],
        lost=found.lost + sound.count(False),
        reason=found.reason or "repeats the placeholders of the format instead of filling them in",
        before_gap=first if found.before_gap is None else min(first, found.before_gap),
    )


def _is_placeholder(pair: QAPair) -> bool:
    return any(map(_PLACEHOLDER.fullmatch, (pair.question, pair.answer, *pair.options)))
