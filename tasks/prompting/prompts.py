"""Rows -> rendered messages with image references, and the row key.

Images are neither decoded nor downloaded here; local ones are read once, to identify them by
content.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefect import task

from ...serving.types import Message
from ..concurrency import STORE_THREADS, TASK_OPTIONS
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..records import ImageRef, Kind, Prompt, Record, Row, RowError
from .keys import RequestSpec, problem_key, row_key

DEFAULT_SYSTEM_PROMPT = (
    "You are a image question-answer generator. Your task is to generate a question-answer pair "
    "for the given image content."
)
DEFAULT_USER_PROMPT = "Please construct a QA pair based on the content in the image."

IMAGE_PLACEHOLDER = "<image>"
"""Position of an image in a turn's text, as in LLaVA's data."""

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
"""Speaker names of both conversation formats (`from`/`value` and `role`/`content`)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a row's conversation; its text may contain `<image>` placeholders."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class PromptInput:
    """Input of a prompt style for one row.

    Attributes:
        turns: the row's conversation; empty if it has none.
        image_count: how many images the row has.
        system_prompt: the run's system prompt; may be empty.
        user_prompt: used if the conversation leaves nothing to answer.
        record: the complete input record, for styles that use other columns.
    """

    turns: tuple[Turn, ...]
    image_count: int
    system_prompt: str
    user_prompt: str
    record: Record = field(repr=False)


PromptStyle = Callable[[PromptInput], Sequence[Message]]
"""Builds a row's messages; an image is a part `{"type": "image", "image": i}`.

Raises `RowError` for a row it cannot use. The style's name is part of the row key: rename a style
when you change the messages it builds.
"""


def default_user_prompt(pairs: int) -> str:
    """The user prompt that requests this many question-answer pairs about an image."""
    if pairs == 1:
        return DEFAULT_USER_PROMPT
    return f"Please construct {pairs} QA pairs based on the content in the image."


def chat_prompt(prompt_input: PromptInput) -> list[Message]:
    """The default style: system prompt, then all turns in order, with the images in place.

    System turns are merged into the system prompt. Trailing assistant turns are dropped, so that
    the model has something to answer; if the last turn has no text, the user prompt is used.
    `<image>` placeholders determine where the images go; images without a placeholder go before the
    first user text (vision models are trained image first).
    """
    system = [turn.text for turn in prompt_input.turns if turn.role == "system"]
    system.insert(0, prompt_input.system_prompt)
    turns = [turn for turn in prompt_input.turns if turn.role != "system"]
    while turns and turns[-1].role == "assistant":
        turns.pop()
    last = turns[-1].text if turns else ""
    if not last.replace(IMAGE_PLACEHOLDER, "").strip():
        turns[-1:] = [Turn("user", last + prompt_input.user_prompt)]
    messages: list[Message] = []
    if merged := "\n\n".join(text.strip() for text in system if text.strip()):
        messages.append({"role": "system", "content": merged})
    return messages + _place_images(turns, prompt_input.image_count)


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
        parts: list[dict[str, Any]] = []
        if turn.role == "user" and unplaced:
            parts = [{"type": "image", "image": next(upcoming)} for _ in range(unplaced)]
            unplaced = 0
        for number, text in enumerate(turn.text.split(IMAGE_PLACEHOLDER)):
            if number:
                parts.append({"type": "image", "image": next(upcoming)})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        if any(part["type"] == "image" for part in parts):
            messages.append({"role": turn.role, "content": parts})
        else:
            messages.append({"role": turn.role, "content": turn.text.strip()})
    return messages


def read_conversation(value: Any) -> tuple[Turn, ...]:
    """Read the value of a conversation column: a list of turns in either format, or one text.

    Raises:
        RowError: it is neither.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (Turn("user", _read_text(1, value)),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise RowError(Kind.BAD_ROW, f"the conversation is a {type(value).__name__}, not a list")
    return tuple(_read_turn(number, turn) for number, turn in enumerate(value, 1))


def _read_turn(number: int, turn: Any) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError(Kind.BAD_ROW, f"turn {number} of the conversation is not an object")
    # In a Parquet file with both formats, every turn has the names of both.
    speaker = next((turn[name] for name in ("from", "role") if turn.get(name) is not None), None)
    content = next(
        (turn[name] for name in ("value", "content") if turn.get(name) is not None), None
    )
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise RowError(
            Kind.BAD_ROW,
            f"turn {number} of the conversation is from {str(speaker)[:40]!r}; "
            f"known speakers: {', '.join(ROLES)}",
        )
    return Turn(role, _read_text(number, content))


def _read_text(number: int, content: Any) -> str:
    """The text of a turn; in a list of OpenAI content parts, images become placeholders."""
    if isinstance(content, str):
        # JSON can contain a lone surrogate, which no server accepts.
        return content.encode("utf-8", "replace").decode("utf-8")
    if isinstance(content, Sequence):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        if all(kind in {"text", "image", "image_url"} for kind in kinds):
            texts = (
                str(part.get("text") or "") if kind == "text" else IMAGE_PLACEHOLDER
                for kind, part in zip(kinds, content, strict=True)
            )
            return _read_text(number, "\n".join(texts))
    raise RowError(Kind.BAD_ROW, f"turn {number} of the conversation has no text")


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How rows become prompts.

    Attributes:
        base: what relative image paths are resolved against.
        reader: identifies the images.
        spec: everything else that decides an answer, for the row key.
        style: builds the messages.
        system_prompt: comes before every conversation.
        user_prompt: used if a row's conversation leaves nothing to answer.
        image_key: the image column; None sends no images.
        conversation_key: the conversation column, which rows may lack.
        limits: limits on the images of a row.
    """

    base: ImageBase
    reader: ImageReader
    spec: RequestSpec
    style: PromptStyle = chat_prompt
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    user_prompt: str = DEFAULT_USER_PROMPT
    image_key: str | None = "image"
    conversation_key: str = "conversation"
    limits: ImageSettings = field(default_factory=ImageSettings)


def _render_row(row: Row, settings: PromptSettings) -> Prompt:
    """The prompt of a row, with a problem or without a key yet."""
    if row.problem:
        return Prompt(row.index, problem_key(row), row.where, problem=row.problem)
    try:
        refs: tuple[ImageRef, ...] = ()
        if settings.image_key is not None:
            refs = image_refs(row.record.get(settings.image_key), settings.base)
            if not refs:
                raise RowError(
                    Kind.NO_IMAGE, f"the row has no image in column {settings.image_key!r}"
                )
        if len(refs) > settings.limits.max_images:
            raise RowError(
                Kind.BAD_ROW,
                f"the row has {len(refs)} images, more than max_images "
                f"({settings.limits.max_images})",
            )
        return Prompt(row.index, "", row.where, _build_messages(row, len(refs), settings), refs)
    except RowError as error:
        return Prompt(row.index, problem_key(row), row.where, problem=error.problem)


def _with_key(prompt: Prompt, row: Row, settings: PromptSettings) -> Prompt:
    """The prompt with its key, which requires identifying its images."""
    if prompt.problem:
        return prompt
    try:
        ids = [settings.reader.identify(ref) for ref in prompt.images]
    except RowError as error:
        return Prompt(row.index, problem_key(row), row.where, problem=error.problem)
    return replace(prompt, key=row_key(ids, prompt.messages, settings.spec))


def _build_messages(row: Row, image_count: int, settings: PromptSettings) -> tuple[Message, ...]:
    prompt_input = PromptInput(
        turns=read_conversation(row.record.get(settings.conversation_key)),
        image_count=image_count,
        system_prompt=settings.system_prompt,
        user_prompt=settings.user_prompt,
        record=row.record,
    )
    try:
        messages = tuple(settings.style(prompt_input))
        contents = [message["content"] for message in messages]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        referenced = {part["image"] for part in parts if part["type"] == "image"}
    except RowError:
        raise
    except Exception as error:
        # A custom style may fail in any way on unexpected rows.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RowError(Kind.BAD_ROW, f"the prompt style failed on this row ({reason})") from error
    if missing := referenced - set(range(image_count)):
        raise RowError(
            Kind.BAD_ROW,
            f"the prompt style refers to image {missing.pop()} (from 0), "
            f"but the row has {image_count}",
        )
    return messages


def prompt_run_name(parameters: dict[str, Any]) -> str:
    """Name of the task run that renders these rows, by their positions: `prompt-0-255`."""
    rows = parameters["rows"]
    return f"prompt-{rows[0].index}-{rows[-1].index}" if rows else "prompt"


@task(name="prompt", task_run_name=prompt_run_name, **TASK_OPTIONS)  # type: ignore[arg-type] # takes parameters
def prompt_rows(rows: Sequence[Row], settings: PromptSettings) -> list[Prompt]:
    """Render rows and compute their keys; a row that cannot be used has a problem instead."""

    def prompt_chunk(chunk: Sequence[Row]) -> list[Prompt]:
        prompts = [_render_row(row, settings) for row in chunk]
        settings.reader.preload_digests([ref for prompt in prompts for ref in prompt.images])
        return [
            _with_key(prompt, row, settings) for prompt, row in zip(prompts, chunk, strict=True)
        ]

    # Threads, because identifying an image waits for S3 or the disk. One chunk per thread, because
    # a row whose images are known already takes less time than handing it to a thread.
    size = -(-len(rows) // STORE_THREADS) or 1
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    results = settings.reader.executor.map(prompt_chunk, chunks)
    return [prompt for prompts in results for prompt in prompts]
