"""A sample of rows of an output, evenly spread, with thumbnails."""

import json
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import DatasetError, StoreUnavailableError
from ..exporting.embedded import image_names
from ..exporting.export import REWRITE_REMEDY
from ..exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..exporting.row_pairs import pairs_of_rows
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..images.thumbnails import LARGE_SIDE, SIDE, SMALL_SIDE, thumbnails
from ..images.web_addresses import display_url
from ..loading.columns import Columns, image_value
from ..object_store.store import ObjectStore
from ..records import Answered, Kind, QAPair, Row, RowError
from ..runs.run_record import RunRecord
from ..storing.key_index import Array
from ..storing.parts import reported_corruption
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows

IMAGES_SECONDS = 20.0
"""Timeout for finding the image references of all rows, and again for reading those found by then.

Images that take longer, for example from a slow server, are left out.
"""

_MAX_IMAGES = 4
"""Images shown per row."""

_MAX_NAME = 120
"""Characters shown of an image's name."""

_ROWS_PER_CLOCK_CHECK = 1024


@dataclass(frozen=True, slots=True)
class SampledImage:
    """An image of a sampled row.

    Attributes:
        name: its path or URL in the dataset, without secrets; or a name for embedded bytes.
        thumbnail: `data:` URI of a small JPEG file; empty if it could not be read.
        large: the same for an enlarged image.
    """

    name: str
    thumbnail: str = ""
    large: str = ""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of an output with thumbnails of its images.

    Attributes:
        row: position in the dataset, from 0.
        where: its location in the dataset, for people.
        key: the row key.
        images: its first images; empty if the dataset was not read.
        more_images: how many images are left out.
        pairs: its exported QA pairs; empty for a quarantined row.
        text: the raw reply; empty if there was none.
        kind: why it is quarantined; empty for an answered row.
        reason: the same as a sentence.
        prompt_tokens: including image tokens.
        completion_tokens: tokens of the reply.
        latency: seconds.
        style: name and version of the style that asked.
    """

    row: int
    where: str
    key: str
    images: tuple[SampledImage, ...]
    pairs: tuple[QAPair, ...]
    text: str
    kind: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: float = 0.0
    more_images: int = 0
    style: str = ""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The dataset that images are read from, as given by the caller.

    Never what an output says: whoever wrote it could have any file of this machine shown.

    Attributes:
        rows: reads the rows from the start.
        columns: which of their columns hold images.
        base: what relative image paths are resolved against.
    """

    rows: Callable[[], Iterator[Row]]
    columns: Columns
    base: ImageBase


def sample_rows(
    store: ObjectStore,
    run: RunRecord,
    stored: StoredRows,
    *,
    answered: int,
    quarantined: int,
    reader: ImageReader,
    images: ImageSettings,
    source: ImageSource | None,
) -> list[SampledRow]:
    """Sample rows of a completed run, evenly spread over the dataset and in its order.

    Every kind of quarantined row gets its share. Memory does not grow with the size of the rows.

    Args:
        store: the output.
        run: its last completed run.
        stored: the rows as the run's parser stored them.
        answered: how many answered rows to sample.
        quarantined: how many quarantined rows to sample.
        reader: reads the images.
        images: limits on what is decoded.
        source: where the images are; None for rows without images.
    """
    keys = read_keys(store, run.keys)
    with reported_corruption(store, QUARANTINE_JSONL, REWRITE_REMEDY):
        lines_by_kind, quarantined_rows = _read_quarantine(store)
        answered_rows = np.delete(np.arange(len(keys)), np.asarray(quarantined_rows, np.int64))
        chosen = set(_spread_over_kinds(lines_by_kind, quarantined))
        failures = [_failure(line) for _, line in _numbered_lines(store, QUARANTINE_JSONL, chosen)]
    numbers = answered_rows[_evenly_spaced(len(answered_rows), answered)].tolist()
    pairs = pairs_of_rows(store, numbers)
    rows = [*_answers(run.dataset, stored, keys, numbers, pairs), *failures]
    shown: Mapping[int, Sequence[SampledImage]] = {}
    if source is not None:
        where_by_row = dict.fromkeys(numbers) | {failure.row: failure.where for failure in failures}
        make = partial(sampled_images, reader=reader, images=images, base=source.base)
        shown = _make_all(reader.executor, make, _image_values(source, where_by_row))
    with_images = (_with_images(row, shown.get(row.row, ())) for row in rows)
    return sorted(with_images, key=lambda row: row.row)


def _read_quarantine(store: ObjectStore) -> tuple[Mapping[Kind, Sequence[int]], Sequence[int]]:
    """Line numbers of the quarantined rows by kind, and their positions in the dataset."""
    lines: dict[Kind, array[int]] = {}
    rows = array("q")
    for number, line in enumerate(store.lines(QUARANTINE_JSONL)):
        record = json.loads(line)
        if record["question"] is not None:  # the row itself is answered
            continue
        lines.setdefault(Kind(record["kind"]), array("q")).append(number)
        rows.append(record["row"])
    return lines, rows


def _failure(line: bytes) -> SampledRow:
    record = json.loads(line)
    return SampledRow(
        row=int(record["row"]),
        where=str(record["where"]),
        key=str(record["key"]),
        images=(),
        pairs=(),
        text=str(record["text"] or ""),
        kind=Kind(record["kind"]).value,
        reason=str(record["message"]),
    )


def _answers(
    dataset: str,
    stored: StoredRows,
    keys: Array,
    numbers: Sequence[int],
    pairs: Mapping[int, Sequence[QAPair]],
) -> Iterator[SampledRow]:
    answers = stored.fetch(keys[np.asarray(numbers, np.int64)])
    for number, answer in zip(numbers, answers, strict=True):
        if isinstance(answer, Answered):
            yield SampledRow(
                row=number,
                where=f"{dataset}, row {number}",
                key=answer.key,
                images=(),
                pairs=tuple(pairs.get(number, ())),
                text=answer.text,
                style=answer.style,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                latency=answer.latency,
            )


def _image_values(
    source: ImageSource, where_by_row: Mapping[int, str | None]
) -> Iterator[tuple[int, Any, Sequence[str]]]:
    """Positions of rows with their images and the images' names, until the deadline.

    Args:
        source: the dataset.
        where_by_row: the positions; a row is left out if it is not where it was.
    """
    deadline, last = time.monotonic() + IMAGES_SECONDS, max(where_by_row, default=-1)
    try:
        with closing(source.rows()) as rows:  # type: ignore[type-var]
            for row in rows:
                if row.index in where_by_row and where_by_row[row.index] in (None, row.where):
                    with suppress(RowError):
                        value = image_value(row.record, source.columns)
                        yield row.index, value, image_names(row, source.columns)
                if row.index >= last or _deadline_passed(row.index, deadline):
                    return
    except DatasetError:
        return  # moved or changed since the run: these rows are shown without images


def _make_all(
    executor: ThreadPoolExecutor,
    make: Callable[[Any, Sequence[str]], Sequence[SampledImage]],
    values: Iterable[tuple[int, Any, Sequence[str]]],
) -> Mapping[int, Sequence[SampledImage]]:
    """Make the images of each value, by the position of its row.

    Those that time out have only their name.
    """
    names_by_row = {}
    futures = {}
    for row, value, names in values:
        names_by_row[row] = [SampledImage(_shown_name(name)) for name in names]
        futures[executor.submit(make, value, names)] = row
    done, pending = wait(futures, IMAGES_SECONDS)
    for future in pending:
        future.cancel()
    return names_by_row | {futures[future]: future.result() for future in done}


def sampled_images(
    value: Any, names: Sequence[str], reader: ImageReader, images: ImageSettings, base: ImageBase
) -> Sequence[SampledImage]:
    """The images of an image column's value, one per name; the first of them have thumbnails."""
    shown = [SampledImage(_shown_name(name)) for name in names]
    with suppress(RowError):
        refs = image_refs(value, base)
        side, large_side = (SIDE, LARGE_SIDE) if len(refs) == 1 else (SMALL_SIDE, LARGE_SIDE // 2)
        for number, ref in enumerate(refs[: min(len(shown), _MAX_IMAGES)]):
            with suppress(RowError, StoreUnavailableError):
                with reader.reading(ref) as data:
                    small, large = thumbnails(data, images, (side, large_side))
                shown[number] = replace(shown[number], thumbnail=small, large=large or small)
    return shown


def _with_images(row: SampledRow, images: Sequence[SampledImage]) -> SampledRow:
    more = len(images) - _MAX_IMAGES
    return replace(row, images=tuple(images[:_MAX_IMAGES]), more_images=max(0, more))


def _shown_name(name: str) -> str:
    """A name for people: the query of a URL may be a secret; of a long path, the end counts."""
    if name[:8].lower().startswith(("http://", "https://")):
        name = display_url(name)
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


def _spread_over_kinds(lines: Mapping[Kind, Sequence[int]], count: int) -> Iterator[int]:
    """Choose lines of each kind; what rare kinds leave of their share goes to the others."""
    remaining = count
    kinds = sorted(lines.values(), key=len)
    for done, of_kind in enumerate(kinds):
        share = min(len(of_kind), remaining // (len(kinds) - done))
        yield from (of_kind[index] for index in _evenly_spaced(len(of_kind), share))
        remaining -= share


def _evenly_spaced(size: int, count: int) -> list[int]:
    """Up to `count` evenly spaced indexes below `size`."""
    count = min(size, count)
    return [number * size // count for number in range(count)]


def _numbered_lines(
    store: ObjectStore, name: str, numbers: Collection[int]
) -> Iterator[tuple[int, bytes]]:
    """The lines with these numbers, from 0; the object is read up to the last one."""
    if not numbers:
        return
    last = max(numbers)
    for number, line in enumerate(store.lines(name)):
        if number in numbers:
            yield number, line
        if number >= last:
            return


def _deadline_passed(number: int, deadline: float) -> bool:
    return number % _ROWS_PER_CLOCK_CHECK == 0 and time.monotonic() > deadline
