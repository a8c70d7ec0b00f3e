"""Pairs of an output that some checks pass and others do not: they show what checks can see."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ..exporting.row_pairs import pair_of_line
from ..object_store.store import ObjectStore
from ..records import QAPair
from ..storing.key_index import Array
from .check_columns import ResultColumn, is_evidence
from .drawn_pairs import DrawnPairs
from .facts import truncated_pair
from .judged_pairs import Filtered, judged_name, read_batches, read_schema
from .row_images import RowImages, SampledImage

MAX_SHOWN = 12
"""Pairs that a page shows."""

_MAX_VALUE = 300
"""Characters kept of a result, or of what a check was answered."""

_COLUMNS = ("question", "answer", "type", "options", "correct", "turn", "language", "reasoning")


@dataclass(frozen=True)
class CheckedValue:
    """What a check says of a pair.

    Attributes:
        name: of the column.
        value: its value, as text.
        passed: whether the pair passes; None for evidence.
    """

    name: str
    value: str
    passed: bool | None = None


@dataclass(frozen=True)
class DisputedPair:
    """A pair about which checks disagree.

    Attributes:
        row: position of its row in the dataset, from 0.
        number: its number in the row, from 0.
        pair: the pair.
        kept: whether it is kept.
        values: what the checks say.
        images: of its row.
    """

    row: int
    number: int
    pair: QAPair
    kept: bool
    values: tuple[CheckedValue, ...]
    images: tuple[SampledImage, ...] = ()


def read_disputed(
    store: ObjectStore,
    columns: Sequence[ResultColumn],
    filtered: Filtered,
    images: RowImages | None = None,
) -> list[DisputedPair]:
    """Sample the disputed pairs of an output.

    Args:
        store: the output.
        columns: results of checks, with their bounds.
        filtered: the pairs that are filtered out.
        images: of the rows; None for pairs without images.

    Raises:
        ObjectCorruptedError: a file is corrupted.
        StoreError: a file cannot be read.
    """
    if len(columns) < 2:
        return []
    name = judged_name(store)
    evidence = [column for column in read_schema(store, name).names if is_evidence(column)]
    names = [*_COLUMNS, *evidence, *(column.name for column in columns)]
    pairs = disputed_pairs(read_batches(store, name, names), columns, filtered, evidence)
    shown = images.of(dict.fromkeys(pair.row for pair in pairs)) if images else {}
    return [replace(pair, images=tuple(shown.get(pair.row, ())[:1])) for pair in pairs]


def disputed_pairs(
    batches: Iterable[pa.RecordBatch],
    columns: Sequence[ResultColumn],
    filtered: Filtered,
    evidence: Sequence[str] = (),
    count: int = MAX_SHOWN,
) -> list[DisputedPair]:
    """Sample pairs that pass some checks and not others, in the order of the dataset.

    Each check that fails such pairs gets the same share of the sample, as far as it has so many.

    Args:
        batches: the pairs.
        columns: results of checks, with their bounds.
        filtered: the pairs that are filtered out.
        evidence: further columns to show.
        count: how many pairs to sample.
    """

    def make(batch: pa.RecordBatch, number: int) -> DisputedPair:
        return _disputed(batch, number, columns, filtered, evidence)

    drawn = DrawnPairs(count, make)
    for batch in batches:
        judged, passed = _outcomes(batch, columns)
        failed = judged & ~passed
        disputed = passed.any(axis=0) & failed.any(axis=0)
        names = [column.name for column in columns]
        drawn.add(batch, dict(zip(names, disputed & failed, strict=True)))
    return drawn.result()


def _outcomes(batch: pa.RecordBatch, columns: Sequence[ResultColumn]) -> tuple[Array, Array]:
    results = [column.outcomes(batch.column(column.name)) for column in columns]
    return np.array([judged for judged, _ in results]), np.array([passed for _, passed in results])


def _disputed(
    batch: pa.RecordBatch,
    number: int,
    columns: Sequence[ResultColumn],
    filtered: Filtered,
    evidence: Sequence[str],
) -> DisputedPair:
    one = batch.slice(number, 1)
    [line] = one.to_pylist()
    return DisputedPair(
        row=line["row"],
        number=line["pair"],
        pair=truncated_pair(pair_of_line(line)),
        kept=not filtered.has(one)[0],
        values=(*_results(one, line, columns), *_evidence(line, evidence)),
    )


def _results(
    one: pa.RecordBatch, line: Mapping[str, Any], columns: Sequence[ResultColumn]
) -> Iterator[CheckedValue]:
    for column in columns:
        judged, passed = column.outcomes(one.column(column.name))
        if judged[0]:
            yield CheckedValue(column.name, _text(line[column.name]), bool(passed[0]))


def _evidence(line: Mapping[str, Any], evidence: Sequence[str]) -> Iterator[CheckedValue]:
    for name in evidence:
        if line[name]:
            yield CheckedValue(name, _text(line[name]))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = "; ".join(str(part or "")[:_MAX_VALUE] for part in value[:_MAX_VALUE])
    return str(value)[:_MAX_VALUE]
