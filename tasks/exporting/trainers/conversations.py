"""The pairs of a row as the conversations that trainers train on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from string import ascii_uppercase
from typing import Any

from ...records import QAPair
from ..row_pairs import RowPairs

CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What LLaVA appends to the options of a question, and many benchmarks of others do."""

IMAGE_TAG = "<image>"

_CONTROL_TEXT = re.compile(
    r"""
    <[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>           # <|im_start|> and the like, DeepSeek's too
    | </?(?:image|video|audio|img|bbox|ref-object)>    # <image> of LLaVA and most, ms-swift's
    | <(?:ref-image|cot-process|image_soft_token)>     # ms-swift, Gemma 3
    | <im_(?:start|end|patch)> | <image-?placeholder>  # LLaVA's code
    | </?(?:img_context|quad|ref|box)>                 # InternVL
    | <(?:start|end)_of_(?:turn|image)> | \[/?(?:inst|img|img_break|img_end)\] | <</?sys>>
    | </?s> | <(?:unk|pad|bos|eos)>                    # special tokens of SentencePiece models
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What trainers take for an image or the end of a turn, wherever it is written."""


@dataclass(frozen=True, slots=True)
class ConversationImage:
    """An image as a format refers to it.

    Attributes:
        identity: the same for the same image, for the split; empty if there is none.
        path: what the format has for it: a path or URI; of an embedded one, a name for it.
        data: the encoded image; empty if it is not embedded.
        mime: its type; empty if it is not known.
    """

    identity: str
    path: str
    data: bytes = b""
    mime: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one record of a format has.

    Attributes:
        id: position of the row, and its number within the row.
        row: the row that it is of.
        pairs: one pair that stands on its own, or the turns of a dialogue.
        images: the row's images.
    """

    id: str
    row: RowPairs
    pairs: tuple[QAPair, ...]
    images: tuple[ConversationImage, ...] = ()

    def turns(self) -> Iterator[tuple[str, str]]:
        """What the user and the assistant say in each turn."""
        return map(_turn, self.pairs)

    def tagged_turns(self) -> Iterator[tuple[str, str]]:
        """The turns, with a tag for each image at the start, one a line."""
        tags = f"{IMAGE_TAG}\n" * len(self.images)
        for said, answer in self.turns():
            yield tags + said, answer
            tags = ""

    def has_control_text(self) -> bool:
        """Whether a trainer would take something in its texts for an image or an end of a turn."""
        return any(_CONTROL_TEXT.search(text) for turn in self.turns() for text in turn)

    def with_images(self, images: Sequence[ConversationImage]) -> "Conversation":
        """The same with the images of its row."""
        return replace(self, images=tuple(images))

    def columns(self) -> Mapping[str, Any]:
        """What it has apart from its texts, and question and answer if it is a single pair."""
        pair, is_single = self.pairs[0], len(self.pairs) == 1 and not self.pairs[0].turn
        return {
            "question": pair.question if is_single else None,
            "answer": pair.answer if is_single else None,
            "type": pair.type or None,
            "options": list(pair.options) or None,
            "correct": pair.correct or None,
            "language": pair.language or None,
            "reasoning": pair.reasoning or None if is_single else None,
            "style": self.row.style or None,
            "row": self.row.row,
            "key": self.row.key,
        }


def conversations_of(row: RowPairs) -> Iterator[Conversation]:
    """The conversations of a row: each dialogue is one, and so is each pair that is in none."""
    numbers, dialogue = count(), list[QAPair]()
    for pair in (pair for pair in row.pairs if pair.answer):
        if dialogue and pair.turn <= 1:
            yield _conversation(row, numbers, dialogue)
            dialogue = []
        if pair.turn:
            dialogue.append(pair)
        else:
            yield _conversation(row, numbers, [pair])
    if dialogue:
        yield _conversation(row, numbers, dialogue)


def _conversation(row: RowPairs, numbers: Iterator[int], pairs: Sequence[QAPair]) -> Conversation:
    return Conversation(f"{row.row}-{next(numbers)}", row, tuple(pairs))


def _turn(pair: QAPair) -> tuple[str, str]:
    if not pair.options:
        return pair.question, pair.answer
    options = (
        f"{letter}. {text}" for letter, text in zip(ascii_uppercase, pair.options, strict=False)
    )
    return "\n".join([pair.question, *options, CHOICE_INSTRUCTION]), pair.correct or pair.answer
