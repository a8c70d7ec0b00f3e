"""A few rows of an output, evenly spread, as people are shown them."""

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

from ..errors import DatasetError
from ..exporting.export import QA_JSONL, QUARANTINE_JSONL, WRITES_AGAIN, pairs_of
from ..images.preparing import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..images.thumbnails import SIDE, SIDE_OF_SEVERAL, thumbnail
from ..loading.dataset import open_dataset
from ..object_store.credentials import S3Credentials
from ..object_store.store import ObjectStore
from ..records import Answered, Kind, QAPair, RowError
from ..runs.parameters import RunParameters
from ..runs.records import RunRecord
from ..storing.key_index import Array
from ..storing.parts import reported_corruption
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows

IMAGES_SECONDS = 20.0
"""Time to find out where the images of all rows are, and once more to read what is found by then.

Those that take longer, from a slow server say, are left out.
"""

_MOST_IMAGES = 4
"""Images shown of one row."""

_MOST_BYTES = 1 << 30
"""Read of `qa.jsonl`: with embedded images it may be as large as all of them."""

_ROWS_PER_LOOK = 1024
"""Rows read between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of an output with small pictures of its images.

    Attributes:
        row: position in the dataset, from 0.
        where: the place a person can find it.
        key: the row key.
        thumbnails: `data:` URIs of small JPEG files; empty where no image could be read.
        pairs: what was parsed from the reply; none of a quarantined row.
        text: the raw reply, empty where there was none.
        kind: why it is quarantined; empty for an answered row.
        reason: the same in one line.
        prompt_tokens: tokens read, images included.
        completion_tokens: tokens written.
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
    """Take some rows of a completed run, evenly spread over the dataset, in its order.

    Of the quarantined rows, every kind gets its share. Memory does not grow with the rows' size.

    Args:
        store: the output.
        run: its last completed run.
        stored: the rows as the run's parser read them.
        answered: answered rows to take.
        quarantined: quarantined rows to take.
        reader: reads the images.
        images: limits on what is decoded.
        base: what relative image paths are tried against.
    """
    keys = read_keys(store, run.keys)
    with reported_corruption(store, QUARANTINE_JSONL, WRITES_AGAIN):
        lines_by_kind, failed = _failed_rows(store)
        ok = np.delete(np.arange(len(keys)), np.asarray(failed, np.int64))
        chosen = set(_spread_over(lines_by_kind, quarantined))
        failures = [_failure(line) for _, line in _numbered(store, QUARANTINE_JSONL, chosen)]
    places = _evenly(_lines_in_reach(store, len(ok)), answered)
    lines = dict(zip(places, ok[places].tolist(), strict=True))
    rows = [*_answers(run.dataset, stored, keys, list(lines.values())), *failures]
    late = time.monotonic() + IMAGES_SECONDS
    values = _image_values(store, run.parameters, lines, failures, late)
    found = _made(
        reader.threads, partial(_thumbnails, reader=reader, images=images, base=base), values
    )
    shown = (replace(row, thumbnails=found.get(row.row, ())) for row in rows)
    return sorted(shown, key=lambda row: row.row)


def _failed_rows(store: ObjectStore) -> tuple[Mapping[Kind, Sequence[int]], Sequence[int]]:
    """Lines of the quarantined rows by their kind, and their positions in the dataset."""
    lines: dict[Kind, array[int]] = {}
    rows = array("q")
    for number, line in enumerate(store.lines(QUARANTINE_JSONL)):
        told = json.loads(line)
        lines.setdefault(Kind(told["kind"]), array("q")).append(number)
        rows.append(told["row"])
    return lines, rows


def _failure(line: bytes) -> SampledRow:
    told = json.loads(line)
    return SampledRow(
        row=int(told["row"]),
        where=str(told["where"]),
        key=str(told["key"]),
        thumbnails=(),
        pairs=(),
        text=str(told["text"] or ""),
        kind=Kind(told["kind"]).value,
        reason=str(told["message"]),
    )


def _answers(
    dataset: str, stored: StoredRows, keys: Array, numbers: Sequence[int]
) -> Iterator[SampledRow]:
    found = stored.fetch(keys[np.asarray(numbers, np.int64)])
    for number, answer in zip(numbers, found, strict=True):
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
    lines: Mapping[int, int],
    failures: Sequence[SampledRow],
    late: float,
) -> Iterator[tuple[int, Any]]:
    """Positions of rows with what their image column holds, until the time is up."""
    column = parameters.columns.image
    if not column:
        return
    with reported_corruption(store, QA_JSONL, WRITES_AGAIN):
        for number, line in _numbered(store, QA_JSONL, lines, late):
            if not isinstance(record := json.loads(line), dict):
                raise TypeError("no record")
            yield lines[number], record.get(column)
    places = {failure.row: failure.where for failure in failures}
    yield from _dataset_values(parameters, places, store.s3_credentials, late)


def _dataset_values(
    parameters: RunParameters,
    places: Mapping[int, str],
    credentials: S3Credentials | None,
    late: float,
) -> Iterator[tuple[int, Any]]:
    """What the image column of quarantined rows holds: only the dataset itself has it."""
    if not parameters.dataset or not places:
        return
    try:
        dataset = open_dataset(
            parameters.dataset,
            parameters.columns,
            image_root=parameters.images.root,
            credentials=credentials,
        )
        last = max(places)
        with closing(dataset.rows()) as rows:
            for row in rows:
                if places.get(row.index) == row.where:
                    yield row.index, row.record.get(parameters.columns.image or "")
                if row.index >= last or _is_late(row.index, late):
                    return
    except DatasetError:
        return  # it was moved or changed since the run; the rows are shown without their images


def _made(
    threads: ThreadPoolExecutor,
    make: Callable[[Any], tuple[str, ...]],
    values: Iterable[tuple[int, Any]],
) -> Mapping[int, tuple[str, ...]]:
    """What is made of each value, by the position of its row; what takes too long is left out."""
    futures = {threads.submit(make, value): row for row, value in values}
    done, late = wait(futures, IMAGES_SECONDS)
    for future in late:
        future.cancel()
    return {futures[future]: future.result() for future in done}


def _thumbnails(
    value: Any, reader: ImageReader, images: ImageSettings, base: ImageBase
) -> tuple[str, ...]:
    try:
        refs = image_refs(value, base)[:_MOST_IMAGES]
    except RowError:
        return ()
    side = SIDE if len(refs) == 1 else SIDE_OF_SEVERAL
    made = []
    for ref in refs:
        try:
            made.append(thumbnail(reader.read(ref), images, side))
        except RowError:
            continue
    return tuple(filter(None, made))


def _spread_over(lines: Mapping[Kind, Sequence[int]], count: int) -> Iterator[int]:
    """Some lines of each kind; kinds with few rows leave their share to the others."""
    rest = count
    kinds = sorted(lines.values(), key=len)
    for done, of_kind in enumerate(kinds):
        share = min(len(of_kind), rest // (len(kinds) - done))
        yield from (of_kind[place] for place in _evenly(len(of_kind), share))
        rest -= share


def _evenly(size: int, count: int) -> list[int]:
    """Evenly spread places among `size` ones; all of them where they are fewer."""
    count = min(size, count)
    return [place * size // count for place in range(count)]


def _lines_in_reach(store: ObjectStore, count: int) -> int:
    """How many of the lines of `qa.jsonl` are looked at; about, where the file is huge."""
    with store.open(QA_JSONL) as file:
        size = file.seek(0, io.SEEK_END)
    return count if size <= _MOST_BYTES else int(count * _MOST_BYTES / size)


def _numbered(
    store: ObjectStore, name: str, numbers: Collection[int], late: float = math.inf
) -> Iterator[tuple[int, bytes]]:
    """Some lines of an object with their numbers, from 0; read from its start to the last one.

    Nothing more is read when it is late.
    """
    if not numbers:
        return
    last = max(numbers)
    for number, line in enumerate(store.lines(name)):
        if number in numbers:
            yield number, line
        if number >= last or _is_late(number, late):
            return


def _is_late(number: int, late: float) -> bool:
    return number % _ROWS_PER_LOOK == 0 and time.monotonic() > late
