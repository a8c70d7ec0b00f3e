"""Rows -> rendered messages with image references, and the row key.

Images are neither decoded nor downloaded here; local ones are read once, to identify them by
content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import task

from ..concurrency import STORE_THREADS, TASK_OPTIONS
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase
from ..loading.columns import Columns, read_value
from ..loading.conversations import Turn, read_conversation
from ..records import ImageRef, Kind, Problem, Prompt, Row, RowError
from .chat import DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT, chat_style
from .keys import RequestSpec, problem_key, row_key
from .row_images import row_images
from .style import PromptInput, Rendered, Style


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
    style: Style = chat_style
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    user_prompt: str = DEFAULT_USER_PROMPT
    columns: Columns = Columns(image="image", conversation="conversation")  # noqa: RUF009 - frozen
    limits: ImageSettings = field(default_factory=ImageSettings)


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row's conversation and images."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]


def _read_row(row: Row, settings: PromptSettings) -> _ReadRow | Problem:
    if row.problem:
        return row.problem
    columns, limit = settings.columns, settings.limits.max_images
    try:
        turns = read_conversation(read_value(row.record, columns.conversation))
        images = row_images(row.record, turns, columns, settings.base, limit)
    except RowError as error:
        return error.problem
    return _ReadRow((Turn("user", row.question),) if row.question else turns, images)


def _prompt(row: Row, read: _ReadRow | Problem, settings: PromptSettings) -> Prompt:
    """The prompt of a row, with its key, which requires identifying its images."""
    if isinstance(read, Problem):
        return _unusable(row, read)
    identify = settings.reader.identify
    try:
        ids = [identify(image) for image in read.images]
        rendered = _render(row, read.turns, tuple(ids), settings)
        ids += [identify(image) for image in rendered.images]
    except RowError as error:
        return _unusable(row, error.problem)
    # The same question about the same images is answered once, whichever sample asked it.
    sample = 0 if row.question else row.sample
    return Prompt(
        row.index,
        row_key(ids, rendered, sample, settings.spec),
        row.where,
        rendered.messages,
        (*read.images, *rendered.images),
        asked=rendered.asked,
        options=rendered.options,
    )


def _unusable(row: Row, problem: Problem) -> Prompt:
    return Prompt(row.index, problem_key(row), row.where, problem=problem)


def _render(
    row: Row, turns: tuple[Turn, ...], image_ids: tuple[str, ...], settings: PromptSettings
) -> Rendered:
    prompt_input = PromptInput(
        turns=turns,
        image_count=len(image_ids),
        system_prompt=settings.system_prompt,
        user_prompt=settings.user_prompt,
        record=row.record,
        sample=row.sample,
        image_ids=image_ids,
    )
    try:
        rendered = settings.style(prompt_input)
        contents = [message["content"] for message in rendered.messages]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        referenced = {part["image"] for part in parts if part["type"] == "image"}
    except RowError:
        raise
    except Exception as error:
        # A style that is a function may fail in any way on unexpected rows.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RowError(Kind.BAD_ROW, f"the style failed on this row ({reason})") from error
    if missing := referenced - set(range(len(image_ids) + len(rendered.images))):
        raise RowError(
            Kind.BAD_ROW,
            f"the style refers to image {missing.pop()} (from 0), but the row has {len(image_ids)}",
        )
    return rendered


def prompt_run_name(parameters: dict[str, Any]) -> str:
    """Name of the task run that renders these rows, by their positions: `prompt-0-255`."""
    rows = parameters["rows"]
    return f"prompt-{rows[0].index}-{rows[-1].index}" if rows else "prompt"


@task(name="prompt", task_run_name=prompt_run_name, **TASK_OPTIONS)  # type: ignore[arg-type] # takes parameters
def prompt_rows(rows: Sequence[Row], settings: PromptSettings) -> Iterator[Prompt]:
    """Render rows and compute their keys; a row that cannot be used has a problem instead.

    It returns no list, because Prefect remembers every item of one until the end of the flow.
    """

    def prompt_chunk(chunk: Sequence[Row]) -> list[Prompt]:
        read = [_read_row(row, settings) for row in chunk]
        images = [ref for found in read if isinstance(found, _ReadRow) for ref in found.images]
        settings.reader.preload_digests(images)
        return [_prompt(row, found, settings) for row, found in zip(chunk, read, strict=True)]

    # Threads, because identifying an image waits for S3 or the disk. One chunk per thread, because
    # a row whose images are known already takes less time than handing it to a thread.
    size = -(-len(rows) // STORE_THREADS) or 1
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    results = settings.reader.executor.map(prompt_chunk, chunks)
    return iter([prompt for prompts in results for prompt in prompts])
