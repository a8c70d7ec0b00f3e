"""The style `chat`: a row's own conversation, or a request for QA pairs where it has none."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ...serving.types import Message
from ..loading.conversations import IMAGE_PLACEHOLDER, Turn
from ..records import Asked, Kind, ReplyForm, RowError
from .style import MessagesOf, PromptInput, Rendered, Style

DEFAULT_SYSTEM_PROMPT = (
    "You are a image question-answer generator. Your task is to generate a question-answer pair "
    "for the given image content."
)
DEFAULT_USER_PROMPT = "Please construct a QA pair based on the content in the image."


def default_user_prompt(pairs: int) -> str:
    """The user prompt that requests this many question-answer pairs about an image."""
    if pairs == 1:
        return DEFAULT_USER_PROMPT
    return f"Please construct {pairs} QA pairs based on the content in the image."


def chat_prompt(prompt_input: PromptInput) -> list[Message]:
    """System prompt, then all turns in order, with the images in place.

    System turns are merged into the system prompt. Trailing assistant turns are dropped, so that
    the model has something to answer; if the last turn has no text, the user prompt is used.
    `<image>` placeholders determine where the images go; images without a placeholder go before the
    first user text (vision models are trained image first).
    """
    system = [turn.text for turn in prompt_input.turns if turn.role == "system"]
    system.insert(0, prompt_input.system_prompt)
    turns = asked_turns(prompt_input.turns)
    last = turns[-1].text if turns else ""
    if not last.replace(IMAGE_PLACEHOLDER, "").strip():
        turns[-1:] = [Turn("user", last + prompt_input.user_prompt)]
    messages: list[Message] = []
    if merged := "\n\n".join(text.strip() for text in system if text.strip()):
        messages.append({"role": "system", "content": merged})
    return messages + _place_images(turns, prompt_input.image_count)


def asked_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns up to the last one of the user, without those of the system."""
    asked = [turn for turn in turns if turn.role != "system"]
    while asked and asked[-1].role == "assistant":
        asked.pop()
    return asked


def turn_images(turn: Turn) -> tuple[Any, ...]:
    """The image of each placeholder in a turn's text; None for one of the image column."""
    return turn.images or (None,) * turn.text.count(IMAGE_PLACEHOLDER)


def _place_images(turns: Sequence[Turn], image_count: int) -> list[Message]:
    placed = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if placed > image_count:
        raise RowError(
            Kind.BAD_ROW,
            f"the conversation has {placed} {IMAGE_PLACEHOLDER} placeholders, "
            f"but the row has {image_count} images",
        )
    upcoming = iter(range(image_count))
    unplaced = image_count - placed
    messages: list[Message] = []
    for turn in turns:
        texts, parts = turn.text.split(IMAGE_PLACEHOLDER), list[dict[str, Any]]()
        if turn.role == "user" and unplaced:
            parts = [{"type": "image", "image": next(upcoming)} for _ in range(unplaced)]
            unplaced = 0
        if not parts and len(texts) == 1:
            messages.append({"role": turn.role, "content": turn.text.strip()})
            continue
        for number, text in enumerate(texts):
            if number:
                parts.append({"type": "image", "image": next(upcoming)})
            if stripped := text.strip():
                parts.append({"type": "text", "text": stripped})
        messages.append({"role": turn.role, "content": parts})
    return messages


def last_question(messages: Sequence[Message]) -> str:
    """The text of the user's last message, without its images; empty if there is none."""
    last: Any = ""
    for message in messages:
        if message.get("role") == "user":
            last = message.get("content")
    if isinstance(last, str):
        return last.strip()
    parts = [part.get("text") for part in last or () if isinstance(part, dict)]
    return "\n".join([text for text in parts if isinstance(text, str)]).strip()


def style_of(messages_of: MessagesOf, label: str) -> Style:
    """The style that a function from a row to messages is.

    Args:
        messages_of: builds the messages.
        label: the style in row keys: another label is another style.
    """

    def style(prompt_input: PromptInput) -> Rendered:
        messages = tuple(messages_of(prompt_input))
        return Rendered(messages, Asked(question=last_question(messages), style=label))

    return style


CHAT = "chat"

_chat = style_of(chat_prompt, CHAT)


def chat_style(prompt_input: PromptInput) -> Rendered:
    """The default style."""
    if prompt_input.turns:
        return _chat(prompt_input)
    return _without_turns(
        prompt_input.image_count, prompt_input.system_prompt, prompt_input.user_prompt
    )


GIVEN = "given"
"""Style of the pairs whose answers the dataset has."""


def given_style(answer: str) -> Style:
    """The style of a row that has an answer to its question: nothing is asked."""

    def style(prompt_input: PromptInput) -> Rendered:
        own = replace(prompt_input, system_prompt="", user_prompt="")
        messages = (*chat_prompt(own), {"role": "assistant", "content": answer})
        question = last_question(messages)
        if not question:
            raise RowError(Kind.BAD_ROW, "the row has an answer, but no question")
        return Rendered(messages, Asked(question, GIVEN, ReplyForm.GIVEN))

    return style


@lru_cache(maxsize=64)
def _without_turns(image_count: int, system_prompt: str, user_prompt: str) -> Rendered:
    """The prompt of all rows without a conversation."""
    return _chat(PromptInput((), image_count, system_prompt, user_prompt, record={}))
