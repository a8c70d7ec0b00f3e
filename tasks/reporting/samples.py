"""A sample of rows of an output, evenly spread, with thumbnails."""

import io
import json
import math
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import DatasetError, StoreUnavailableError
from ..exporting.export import REWRITE_REMEDY
from ..exporting.pairs_parquet import pairs_of
from ..exporting.qa_json import QA_JSONL
from ..exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..images.thumbnails import SIDE, SMALL_SIDE, thumbnail
from ..loading.dataset import open_dataset
from ..object_store.credentials import S3Credentials
from ..object_store.store import ObjectStore
from ..records import Answered, Kind, QAPair, RowError
from ..runs.parameters import RunParameters
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

_MAX_QA_BYTES = 1 << 30
"""How much of `qa.jsonl` is read: with embedded images it may be as large as all of them."""

_ROWS_PER_CLOCK_CHECK = 1024


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of an output with thumbnails of its images.

    Attributes:
        row: position in the dataset, from 0.
        where: its location in the dataset, for people.
        key: the row key.
        thumbnails: `data:` URIs of small JPEG files; empty if no image could be read.
        pairs: QA pairs parsed from the reply; empty for a quarantined row.
        text: the raw reply; empty if there was none.
        kind: why it is quarantined; empty for an answered row.
        reason: the same as a sentence.
        prompt_tokens: including image tokens.
        completion_tokens: tokens of the reply.
        latency: seconds.
    """

    row: int
    where: str
    key: str
    thumbnails: tuple[str, ...]
    pairs: tuple[QAPair, ...]
    text: str
    kind: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: float = 0.0


def sample_rows(
    store: ObjectStore,
    run: RunRecord,
    stored: StoredRows,
    *,
    answered: int,
    quarantined: int,
    reader: ImageReader,
    images: ImageSettings,
    base: ImageBase,
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
        base: what relative image paths are resolved against.
    """
    keys = read_keys(store, run.keys)
    with reported_corruption(store, QUARANTINE_JSONL, REWRITE_REMEDY):
        lines_by_kind, quarantined_rows = _read_quarantine(store)
        answered_rows = np.delete(np.arange(len(keys)), np.asarray(quarantined_rows, np.int64))
        chosen = set(_spread_over_kinds(lines_by_kind, quarantined))
        failures = [_failure(line) for _, line in _numbered_lines(store, QUARANTINE_JSONL, chosen)]
    lines = _evenly_spaced(_lines_in_reach(store, len(answered_rows)), answered)
    row_of_line = dict(zip(lines, answered_rows[lines].tolist(), strict=True))
    rows = [*_answers(run.dataset, stored, keys, list(row_of_line.values())), *failures]
    deadline = time.monotonic() + IMAGES_SECONDS
    values = _image_values(store, run.parameters, row_of_line, failures, deadline)
    make = partial(_thumbnails, reader=reader, images=images, base=base)
    thumbnails = _make_all(reader.executor, make, values)
    with_thumbnails = (replace(row, thumbnails=thumbnails.get(row.row, ())) for row in rows)
    return sorted(with_thumbnails, key=lambda row: row.row)


def _read_quarantine(store: ObjectStore) -> tuple[Mapping[Kind, Sequence[int]], Sequence[int]]:
    """Line numbers of the quarantined rows by kind, and their positions in the dataset."""
    lines: dict[Kind, array[int]] = {}
    rows = array("q")
    for number, line in enumerate(store.lines(QUARANTINE_JSONL)):
        record = json.loads(line)
        lines.setdefault(Kind(record["kind"]), array("q")).append(number)
        rows.append(record["row"])
    return lines, rows


def _failure(line: bytes) -> SampledRow:
    record = json.loads(line)
    return SampledRow(
        row=int(record["row"]),
        where=str(record["where"]),
        key=str(record["key"]),
        thumbnails=(),
        pairs=(),
        text=str(record["text"] or ""),
        kind=Kind(record["kind"]).value,
        reason=str(record["message"]),
    )


def _answers(
    dataset: str, stored: StoredRows, keys: Array, numbers: Sequence[int]
) -> Iterator[SampledRow]:
    answers = stored.fetch(keys[np.asarray(numbers, np.int64)])
    for number, answer in zip(numbers, answers, strict=True):
        if isinstance(answer, Answered):
            where = f"{dataset}, row {number}"
            yield SampledRow(
                row=number,
                where=where,
                key=answer.key,
                thumbnails=(),
                pairs=pairs_of(answer, where),
                text=answer.text,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                latency=answer.latency,
            )


def _image_values(
    store: ObjectStore,
    parameters: RunParameters,
    row_of_line: Mapping[int, int],
    failures: Sequence[SampledRow],
    deadline: float,
) -> Iterator[tuple[int, Any]]:
    """Positions of rows with the value of their image column, until the deadline."""
    column = parameters.columns.image
    if not column:
        return
    with reported_corruption(store, QA_JSONL, REWRITE_REMEDY):
        for number, line in _numbered_lines(store, QA_JSONL, row_of_line, deadline):
            if not isinstance(record := json.loads(line), dict):
                raise TypeError("not a JSON object")
            yield row_of_line[number], record.get(column)
    where_by_row = {failure.row: failure.where for failure in failures}
    yield from _dataset_values(parameters, where_by_row, store.s3_credentials, deadline)


def _dataset_values(
    parameters: RunParameters,
    where_by_row: Mapping[int, str],
    credentials: S3Credentials | None,
    deadline: float,
) -> Iterator[tuple[int, Any]]:
    """The image column of quarantined rows, which no export contains: read from the dataset."""
    if not parameters.dataset or not where_by_row:
        return
    try:
        dataset = open_dataset(
            parameters.dataset,
            parameters.columns,
            image_root=parameters.images.root,
            credentials=credentials,
        )
        last = max(where_by_row)
        with closing(dataset.rows()) as rows:
            for row in rows:
                if where_by_row.get(row.index) == row.where:
                    yield row.index, row.record.get(parameters.columns.image or "")
                if row.index >= last or _deadline_passed(row.index, deadline):
                    return
    except DatasetError:
        return  # moved or changed since the run: these rows are shown without images


def _make_all(
    executor: ThreadPoolExecutor,
    make: Callable[[Any], tuple[str, ...]],
    values: Iterable[tuple[int, Any]],
) -> Mapping[int, tuple[str, ...]]:
    """Make thumbnails of each value, by the position of its row; leave out what times out."""
    futures = {executor.submit(make, value): row for row, value in values}
    done, pending = wait(futures, IMAGES_SECONDS)
    for future in pending:
        future.cancel()
    return {futures[future]: future.result() for future in done}


def _thumbnails(
    value: Any, reader: ImageReader, images: ImageSettings, base: ImageBase
) -> tuple[str, ...]:
    try:
        refs = image_refs(value, base)[:_MAX_IMAGES]
    except RowError:
        return ()
    side = SIDE if len(refs) == 1 else SMALL_SIDE
    thumbnails = []
    for ref in refs:
        try:
            thumbnails.append(thumbnail(reader.read(ref), images, side))
        except (RowError, StoreUnavailableError):
            continue
    return tuple(filter(None, thumbnails))


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


def _lines_in_reach(store: ObjectStore, count: int) -> int:
    """How many of the `count` lines of `qa.jsonl` may be read; an estimate if the file is huge."""
    with store.open(QA_JSONL) as file:
        size = file.seek(0, io.SEEK_END)
    return count if size <= _MAX_QA_BYTES else int(count * _MAX_QA_BYTES / size)


def _numbered_lines(
    store: ObjectStore, name: str, numbers: Collection[int], deadline: float = math.inf
) -> Iterator[tuple[int, bytes]]:
    """The lines with these numbers, from 0; the object is read up to the last one.

    Stops at the deadline.
    """
    if not numbers:
        return
    last = max(numbers)
    for number, line in enumerate(store.lines(name)):
        if number in numbers:
            yield number, line
        if number >= last or _deadline_passed(number, deadline):
            return


def _deadline_passed(number: int, deadline: float) -> bool:
    return number % _ROWS_PER_CLOCK_CHECK == 0 and time.monotonic() > deadline
