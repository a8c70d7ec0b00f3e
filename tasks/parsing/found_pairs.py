"""What a reader of one form of question-answer pairs finds in a reply."""

from dataclasses import dataclass

from ..records import QAPair


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """The pairs in a text.

    Attributes:
        pairs: in order.
        lost: how many more the text seems to have, which cannot be read or are not complete.
    """

    pairs: list[QAPair]
    lost: int = 0
