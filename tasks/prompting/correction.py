"""The corrective request: the model sees its own unusable reply, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...serving.types import Message
from ..records import Asked
from .chat import last_question
from .reply_forms import stated_form

SHOWN_CHARACTERS = 4_000
"""How much of a reply the model is shown: its context has to hold the next one, too."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What a row that is asked again has replied.

    Attributes:
        unusable: the text of the reply; may be empty.
        fault: what is wrong with it, as the end of the sentence "It ...".
    """

    unusable: str
    fault: str


def corrective_messages(
    messages: Sequence[Message], asked: Asked, correction: Correction
) -> tuple[Message, ...]:
    """A row's conversation, then the reply, why it cannot be used, and the request once more.

    The request is repeated because a small model answers what comes last: told only to follow what
    was asked for before, the demo model corrected 1 of 21 replies, and with it most of them.

    An empty reply cannot be shown, since many chat templates refuse an empty turn, or two of the
    user in a row: such a row is asked the same once more.
    """
    unusable = correction.unusable.strip()[:SHOWN_CHARACTERS]
    if not unusable:
        return tuple(messages)
    text = f"Your reply cannot be used: it {correction.fault}."
    if not _asks_for_a_form(messages):
        text += f" {stated_form(asked.form)}"
    if request := last_question(messages):
        text += f"\n\n{request}"
    return (
        *messages,
        {"role": "assistant", "content": unusable},
        {"role": "user", "content": text},
    )


def _asks_for_a_form(messages: Sequence[Message]) -> bool:
    """Whether the conversation seems to say how the reply should be written."""
    return any(
        mark in text
        for message in messages
        if message["role"] in {"system", "user"}
        for text in _texts(message)
        for mark in _FORMS
    )


_FORMS = ("JSON", "json", "**Answer:**")


def _texts(message: Message) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]
