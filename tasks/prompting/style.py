"""What a style is: it turns a row into messages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.types import Message
from ..loading.conversations import Turn
from ..records import Asked, ImageRef, QAPair, Record


@dataclass(frozen=True, slots=True)
class PromptInput:
    """Input of a style for one row.

    Attributes:
        turns: the row's conversation; empty if it has none.
        image_count: how many images the row has.
        system_prompt: the run's system prompt; may be empty.
        user_prompt: used if the conversation leaves nothing to answer.
        record: the complete input record, for styles that use other columns.
        sample: number among the rows that ask the same about the same record, from 0.
        image_ids: identifies each of its images by content.
        pair: the QA pair that a check is about.
    """

    turns: tuple[Turn, ...]
    image_count: int
    system_prompt: str
    user_prompt: str
    record: Record = field(repr=False)
    sample: int = 0
    image_ids: tuple[str, ...] = ()
    pair: QAPair | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a style makes of a row.

    Attributes:
        messages: an image is a part `{"type": "image", "image": i}`: those of the row come first,
            then those of the style's examples.
        asked: what the messages ask for.
        images: the images of the style's examples.
        options: request options of this row only, which constrain the form of its reply.
    """

    messages: tuple[Message, ...]
    asked: Asked = Asked()  # noqa: RUF009 - frozen
    images: tuple[ImageRef, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


Style = Callable[[PromptInput], Rendered]
"""Raises `RowError` for a row it cannot use."""

MessagesOf = Callable[[PromptInput], Sequence[Message]]
"""A style as a function from a row to its messages, of which the last one asks for QA pairs."""
