"""Rows -> rendered messages with image references, and the row key.

Images are neither decoded nor downloaded here; local ones are read once, to identify them by
content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task

from ...serving.printable import printable
from ...serving.types import Message
from ..concurrency import STORE_THREADS, TASK_OPTIONS
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..loading.columns import Columns, read_value
from ..loading.conversations import IMAGE_PLACEHOLDER, ImageIndex, Turn, read_conversation
from ..records import ImageRef, Kind, Prompt, Record, Row, RowError
from .keys import RequestSpec, problem_key, row_key

DEFAULT_SYSTEM_PROMPT = (
    "You are a image question-answer generator. Your task is to generate a question-answer pair "
    "for the given image content."
)
DEFAULT_USER_PROMPT = "Please construct a QA pair based on the content in the image."


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
        columns: where a row's images and conversation are.
        limits: limits on the images of a row.
    """

    base: ImageBase
    reader: ImageReader
    spec: RequestSpec
    style: PromptStyle = chat_prompt
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    user_prompt: str = DEFAULT_USER_PROMPT
    columns: Columns = Columns(image="image", conversation="conversation")  # noqa: RUF009 - frozen
    limits: ImageSettings = field(default_factory=ImageSettings)


def _render_row(row: Row, settings: PromptSettings) -> Prompt:
    """The prompt of a row, with a problem or without a key yet."""
    if row.problem:
        return Prompt(row.index, problem_key(row), row.where, problem=row.problem)
    try:
        turns = read_conversation(read_value(row.record, settings.columns.conversation))
        refs = _row_images(row.record, turns, settings)
        messages = _build_messages(row.record, turns, len(refs), settings)
        return Prompt(row.index, "", row.where, messages, refs)
    except RowError as error:
        return Prompt(row.index, problem_key(row), row.where, problem=error.problem)


def _row_images(
    record: Record, turns: Sequence[Turn], settings: PromptSettings
) -> tuple[ImageRef, ...]:
    """The images of a row, in the order in which a style numbers them.

    First those of the image column that have no place in the conversation, then those that have
    one, in its order. An image that the conversation has already is not sent twice, and one that
    belongs to an answer that is not asked for is not sent.
    """
    column, refs = settings.columns.image, list[ImageRef]()
    places = [image for turn in turns if turn.role != "system" for image in turn_images(turn)]
    if len(places) < sum(map(len, map(turn_images, turns))):
        raise RowError(Kind.BAD_ROW, "an image in a system turn; move it to a turn of the user")
    _check_count(len(places), settings)
    if column is not None and not settings.columns.has_embedded_images:
        limit = settings.limits.max_images
        refs = list(image_refs(read_value(record, column), settings.base, limit))
    own = [_own_image(image, refs, settings.base) for image in places]
    free = own.count(None)
    if len(refs) > free:
        refs = [ref for ref in refs if ref not in own]
    unplaced = max(len(refs) - free, 0)
    upcoming = iter(refs[unplaced:])
    placed = [next(upcoming, None) if ref is None else ref for ref in own]
    asked = sum(map(len, map(turn_images, asked_turns(turns))))
    found = [*refs[:unplaced], *(ref for ref in placed[:asked] if ref is not None)]
    found = found or refs  # then the image of an answer is that of the question
    if column is not None and not found:
        raise RowError(Kind.NO_IMAGE, f"the row has no image in column {printable(column, 60)!r}")
    _check_count(len(found), settings)
    return tuple(found)


def _check_count(images: int, settings: PromptSettings) -> None:
    if images > settings.limits.max_images:
        raise RowError(
            Kind.BAD_ROW,
            f"the row has {images} images, more than max_images ({settings.limits.max_images})",
        )


def _own_image(image: Any, refs: Sequence[ImageRef], base: ImageBase) -> ImageRef | None:
    """The image that a place in the conversation names; None for the next one of the column."""
    if not isinstance(image, ImageIndex):
        return None if image is None else _one_image(image, base)
    if not 0 <= image.index < len(refs):
        raise RowError(
            Kind.BAD_ROW,
            f"the conversation has image {image.index} (from 0), but the row has {len(refs)}",
        )
    return refs[image.index]


def _one_image(value: Any, base: ImageBase) -> ImageRef:
    refs = image_refs(value, base)
    if len(refs) != 1:
        raise RowError(Kind.BAD_ROW, f"an image in the conversation is {len(refs)} images")
    return refs[0]


def _with_key(prompt: Prompt, row: Row, settings: PromptSettings) -> Prompt:
    """The prompt with its key, which requires identifying its images."""
    if prompt.problem:
        return prompt
    try:
        ids = [settings.reader.identify(ref) for ref in prompt.images]
    except RowError as error:
        return Prompt(row.index, problem_key(row), row.where, problem=error.problem)
    return replace(prompt, key=row_key(ids, prompt.messages, settings.spec))


def _build_messages(
    record: Record, turns: tuple[Turn, ...], image_count: int, settings: PromptSettings
) -> tuple[Message, ...]:
    prompt_input = PromptInput(
        turns=turns,
        image_count=image_count,
        system_prompt=settings.system_prompt,
        user_prompt=settings.user_prompt,
        record=record,
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
