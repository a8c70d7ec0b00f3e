"""Training and validation: the same image is never in both."""

import hashlib
import json
from typing import Literal

from ...storing.key_index import KeyIndex, Location
from .conversations import Conversation

Split = Literal["train", "validation"]


class Splits:
    """Decides the split of a conversation by its images, whatever the order of the dataset.

    Args:
        share: of the images that are for validation.
        seed: another one gives another split.
        has_many: whether conversations may have several images. Then the images of each split are
            remembered: two conversations may share some but not all of theirs.
    """

    def __init__(self, share: float, seed: int, *, has_many: bool) -> None:
        self._share = share
        self._seed = seed
        self._sides = KeyIndex() if share and has_many else None

    def of(self, conversation: Conversation) -> Split | None:
        """The split of a conversation; None if its images are in both."""
        if not self._share:
            return "train"
        images = sorted({image.identity for image in conversation.images})
        digest = _digest([self._seed, *(images or [conversation.row.key])])
        side = int(int.from_bytes(digest[:8]) < self._share * 2**64)
        if self._sides is not None:
            keys = [_digest([image])[:16] for image in images]
            known = [self._sides.get(key) for key in keys]
            if sides := {found.row for found in known if found is not None}:
                if len(sides) > 1:
                    return None
                side = sides.pop()
            for key in keys:
                self._sides.put(key, Location(0, side, 0))
        return "validation" if side else "train"


def _digest(values: list[str | int]) -> bytes:
    return hashlib.sha256(json.dumps(values).encode()).digest()
