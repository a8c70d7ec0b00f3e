"""Rows -> rendered messages with image references, and the row key.

Images are neither decoded nor downloaded here; local ones are read once, to identify them by
content.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task

from ..concurrency import STORE_THREADS, TASK_OPTIONS
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase
from ..loading.columns import Columns, given_answer, read_value
from ..loading.conversations import Turn, read_conversation
from ..records import ImageRef, Kind, Problem, Prompt, Row, RowError
from .chat import DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT, chat_style, given_style
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
        columns: where a row's images, conversation and answer are.
        limits: limits on the images of a row.
        label: what task runs are named by, besides the rows; empty for the main pass.
    """

    base: ImageBase
    reader: ImageReader
    spec: RequestSpec
    style: Style = chat_style
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    user_prompt: str = DEFAULT_USER_PROMPT
    columns: Columns = Columns(image="image", conversation="conversation")  # noqa: RUF009 - frozen
    limits: ImageSettings = field(default_factory=ImageSettings)
    label: str = ""


_ReadRow = tuple[tuple[Turn, ...], tuple[ImageRef, ...]]
"""A row's conversation and images."""


def _read_row(row: Row, settings: PromptSettings) -> _ReadRow | Problem:
    if row.problem:
        return row.problem
    columns, limit = settings.columns, settings.limits.max_images
    try:
        turns = read_conversation(read_value(row.record, columns.conversation))
        images = row_images(row.record, turns, columns, settings.base, limit)
    except RowError as error:
        return error.problem
    return (Turn("user", row.question),) if row.question else turns, images


def _prompt(row: Row, read: _ReadRow | Problem, settings: PromptSettings) -> Prompt:
    """The prompt of a row, with its key, which requires identifying its images."""
    if isinstance(read, Problem):
        return _unusable(row, read)
    turns, images = read
    identify = settings.reader.identify
    try:
        if answer := "" if row.question else given_answer(row.record, settings.columns.answer):
            settings = replace(settings, style=given_style(answer))
        ids = [identify(image) for image in images]
        rendered, referenced = _render(row, turns, tuple(ids), settings)
        if row.pair is not None and not referenced:
            ids, images = [], ()  # all pairs with this question are asked once
        ids += [identify(image) for image in rendered.images]
    except RowError as error:
        return _unusable(row, error.problem)
    # The same question about the same images is answered once, whichever sample asked it; but a
    # check may ask it several times, if the answers can differ.
    is_greedy = settings.spec.sampling.get("temperature") == 0
    is_same = answer or (row.question and (row.pair is None or is_greedy))
    sample = 0 if is_same else row.sample
    return Prompt(
        row.index,
        row_key(ids, rendered, sample, settings.spec),
        row.where,
        rendered.messages,
        images + rendered.images,
        asked=rendered.asked,
        options=rendered.options,
    )


def _unusable(row: Row, problem: Problem) -> Prompt:
    return Prompt(row.index, problem_key(row), row.where, problem=problem)


def _render(
    row: Row, turns: tuple[Turn, ...], image_ids: tuple[str, ...], settings: PromptSettings
) -> tuple[Rendered, set[int]]:
    """What the style makes of a row, and the images it refers to."""
    prompt_input = PromptInput(
        turns=turns,
        image_count=len(image_ids),
        system_prompt=settings.system_prompt,
        user_prompt=settings.user_prompt,
        record=row.record,
        sample=row.sample,
        image_ids=image_ids,
        pair=row.pair,
    )
    try:
        rendered = settings.style(prompt_input)
        referenced = {
            part["image"]
            for message in rendered.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image"
        }
    except RowError:
        raise
    except Exception as error:
        # A style that is a function may fail in any way on unexpected rows.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RowError(Kind.BAD_ROW, f"the style failed on this row ({reason})") from error
    if missing := referenced.difference(range(len(image_ids) + len(rendered.images))):
        raise RowError(
            Kind.BAD_ROW,
            f"the style refers to image {missing.pop()} (from 0), but the row has {len(image_ids)}",
        )
    return rendered, referenced


def prompt_run_name(parameters: dict[str, Any]) -> str:
    """Name of the task run that renders these rows: `prompt-0-255`, `prompt-blind-0-255`."""
    rows, label = parameters["rows"], parameters["settings"].label
    places = [str(row.index) for row in (rows[0], rows[-1])] if rows else []
    return "-".join(filter(None, ["prompt", label, *places]))


_PIECE = 32
"""Rows after which a task looks whether it is slow."""

_IDLE_SECONDS = 1e-3
"""For a row: if the process waits longer and has nothing else to do, its images are slow to read,
and several are read at once."""

_one_at_a_time = threading.Lock()


def _idle_clock() -> float:
    """Seconds during which this process used no CPU, plus a constant."""
    return time.perf_counter() - time.process_time()


@task(name="prompt", task_run_name=prompt_run_name, **TASK_OPTIONS)  # type: ignore[arg-type] # takes parameters
def prompt_rows(rows: Sequence[Row], settings: PromptSettings) -> Iterator[Prompt]:
    """Render rows and compute their keys; a row that cannot be used has a problem instead.

    It returns no list, because Prefect remembers every item of one until the end of the flow.
    """
    # Known images, and new ones on a local disk, take less time than handing them to threads, which
    # would take the interpreter from each other.
    prompts, is_quick = list[Prompt](), True
    while is_quick and len(prompts) < len(rows):
        piece = rows[len(prompts) : len(prompts) + _PIECE]
        with _one_at_a_time:
            idle = _idle_clock()
            read = [_read_row(row, settings) for row in piece]
            if is_quick := all(map(settings.reader.is_quick, _images(read))):
                prompts += _prompts(piece, read, settings)
                is_quick = _idle_clock() - idle < _PIECE * _IDLE_SECONDS

    def prompt_chunk(chunk: Sequence[Row]) -> list[Prompt]:
        return _prompts(chunk, [_read_row(row, settings) for row in chunk], settings)

    # Others wait for S3, the web or a slow disk, or are large.
    others = rows[len(prompts) :]
    size = -(-len(others) // STORE_THREADS) or 1
    chunks = [others[start : start + size] for start in range(0, len(others), size)]
    for found in settings.reader.executor.map(prompt_chunk, chunks):
        prompts += found
    return iter(prompts)


def _prompts(
    rows: Sequence[Row], read: Sequence[_ReadRow | Problem], settings: PromptSettings
) -> list[Prompt]:
    settings.reader.preload_digests(_images(read))
    return [_prompt(row, found, settings) for row, found in zip(rows, read, strict=True)]


def _images(read: Sequence[_ReadRow | Problem]) -> list[ImageRef]:
    return [image for found in read if isinstance(found, tuple) for image in found[1]]
