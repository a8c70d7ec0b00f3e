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
    """

    pairs: list[QAPair]
    lost: int = 0
    reason: str = ""
