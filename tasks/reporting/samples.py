"""A sample of rows of an output, evenly spread, with thumbnails."""

import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..exporting.export import REWRITE_REMEDY
from ..exporting.pairs_parquet import FILTERED_BY, PAIRS_SCHEMA
from ..exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..exporting.row_pairs import lines_of_rows, pair_of_line, pairs_of_rows
from ..object_store.store import ObjectStore
from ..records import Answered, Kind, QAPair
from ..runs.run_record import RunRecord
from ..storing.key_index import Array
from ..storing.layout import FILTERED
from ..storing.parts import ANSWERED_NUMBER, reported_corruption
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows
from .row_images import MAX_IMAGES, RowImages, SampledImage

FILTERED_KIND = "filtered"
"""Of rows that had pairs and keep none."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of an output with thumbnails of its images.

    Attributes:
        row: position in the dataset, from 0.
        where: its location in the dataset, for people.
        key: the row key.
        images: its first images; empty if the dataset was not read.
        more_images: how many images are left out.
        pairs: its QA pairs that are kept, or if there are none, those that are filtered; empty
            for a quarantined row.
        text: the raw reply; empty if there was none.
        kind: why it is quarantined, or `FILTERED_KIND`; empty for a row with pairs that are kept.
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


def sample_rows(
    store: ObjectStore,
    run: RunRecord,
    stored: StoredRows,
    *,
    answered: int,
    quarantined: int,
    images: RowImages | None,
) -> list[SampledRow]:
    """Sample rows of a completed run, evenly spread over the dataset and in its order.

    Every kind of quarantined row gets its share. Memory does not grow with the size of the rows.

    Args:
        store: the output.
        run: its last completed run.
        stored: the rows as the run's parser stored them.
        answered: how many answered rows to sample.
        quarantined: how many quarantined rows to sample.
        images: of the rows; None for rows without images.
    """
    keys = read_keys(store, run.keys)
    with reported_corruption(store, QUARANTINE_JSONL, REWRITE_REMEDY):
        lines_by_kind, quarantined_rows = _read_quarantine(store)
        answered_rows = np.delete(np.arange(len(keys)), np.asarray(quarantined_rows, np.int64))
        chosen = set(_spread_over_kinds(lines_by_kind, quarantined))
        failures = [_failure(line) for _, line in _numbered_lines(store, QUARANTINE_JSONL, chosen)]
    numbers = _spread(answered_rows, len(keys), answered)
    pairs = pairs_of_rows(store, numbers)
    answers = _answers(run.dataset, stored, keys, numbers, pairs)
    rows = [*_with_filtered(store, answers), *failures]
    where_by_row = dict.fromkeys(numbers) | {failure.row: failure.where for failure in failures}
    shown = images.of(where_by_row) if images else {}
    rows = [with_images(row, shown.get(row.row, ())) for row in rows]
    return sorted(rows, key=lambda row: row.row)


def likely_sample(kinds: Array, *, answered: int, quarantined: int) -> set[int]:
    """The positions of the rows that will be sampled, as far as that is known before the export.

    Args:
        kinds: of each row, as in the locations of the ledger.
        answered: as for `sample_rows`.
        quarantined: as for `sample_rows`.
    """
    rows = np.flatnonzero(kinds == ANSWERED_NUMBER)
    failed = {kind: np.flatnonzero(kinds == kind).tolist() for kind in np.unique(kinds[kinds > 0])}
    return {
        *_spread(rows, len(kinds), answered),
        *_spread_over_kinds(failed, quarantined),
    }


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


def _with_filtered(store: ObjectStore, answers: Iterable[SampledRow]) -> Iterator[SampledRow]:
    """Give rows without pairs those that were filtered, and the reasons."""
    rows = list(answers)
    bare = [row.row for row in rows if not row.pairs]
    columns = [*PAIRS_SCHEMA.names, FILTERED_BY]
    is_read = bare and store.exists(FILTERED)
    filtered = lines_of_rows(store, bare, FILTERED, columns) if is_read else {}
    for row in rows:
        if lines := filtered.get(row.row):
            reasons = dict.fromkeys(line[FILTERED_BY] or "" for line in lines)
            pairs, reason = tuple(map(pair_of_line, lines)), "; ".join(filter(None, reasons))
            yield replace(row, pairs=pairs, kind=FILTERED_KIND, reason=reason)
        else:
            yield row


def with_images(row: SampledRow, images: Sequence[SampledImage]) -> SampledRow:
    """The row with the first of its images."""
    more = len(images) - MAX_IMAGES
    return replace(row, images=tuple(images[:MAX_IMAGES]), more_images=max(0, more))


def _spread_over_kinds(lines: Mapping[Any, Sequence[int]], count: int) -> Iterator[int]:
    """Choose lines of each kind; what rare kinds leave of their share goes to the others."""
    remaining = count
    kinds = sorted(lines.values(), key=len)
    for done, of_kind in enumerate(kinds):
        share = min(len(of_kind), remaining // (len(kinds) - done))
        yield from (of_kind[index] for index in evenly_spaced(len(of_kind), share))
        remaining -= share


def _spread(rows: Array, of: int, count: int) -> list[int]:
    """Evenly spaced rows of a dataset: where one of them has no answer, the next one that has.

    Args:
        rows: the answered ones.
        of: rows of the dataset.
        count: how many to choose.
    """
    following = np.searchsorted(rows, evenly_spaced(of, count))
    chosen = np.unique(rows[following[following < len(rows)]])
    if len(chosen) < min(count, len(rows)):  # long stretches have no answer
        chosen = rows[evenly_spaced(len(rows), count)]
    numbers: list[int] = chosen.tolist()
    return numbers


def evenly_spaced(size: int, count: int) -> list[int]:
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
