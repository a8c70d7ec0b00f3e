"""What a reader of one form of reply finds in it."""

from dataclasses import dataclass

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
