"""Reads the pairs of an output that were checked, and which of them a filter took out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..exporting.bounded_parquet import MAX_ROW_BYTES, bounded_batches
from ..exporting.export import REWRITE_REMEDY
from ..exporting.pairs_parquet import FILTERED_BY, PAIRS
from ..exporting.split_plan import judged_schema
from ..object_store.store import ObjectStore
from ..storing.key_index import Array
from ..storing.layout import FILTERED, JUDGED
from ..storing.parts import reported_corruption

MAX_TEXTS = 1000
"""Distinct types, kinds and reasons that are counted."""

_PLACE = ["row", "pair"]


@dataclass
class Filtered:
    """The pairs that a filter took out.

    Attributes:
        places: of the pairs, see `places_of`; sorted.
        reasons: how many were taken out for which reason.
    """

    places: Array = field(default_factory=lambda: np.empty(0, np.int64))
    reasons: Counter[str] = field(default_factory=Counter)

    def has(self, batch: pa.RecordBatch) -> Array:
        """Whether each pair was taken out."""
        places = places_of(batch)
        found: Array = np.searchsorted(self.places, places, "right") > np.searchsorted(
            self.places, places
        )
        return found


def places_of(batch: pa.RecordBatch) -> Array:
    """Where pairs are, as one number each: row and number in the row."""
    rows, numbers = (batch.column(name).to_numpy() for name in _PLACE)
    places: Array = (rows.astype(np.int64) << 32) | numbers.astype(np.int64)
    return places


def has_checks(store: ObjectStore) -> bool:
    """Whether the pairs of an output were checked or filtered."""
    return store.exists(JUDGED)


def judged_name(store: ObjectStore) -> str:
    """The file of an output that has all pairs: those filtered out, too."""
    return JUDGED if has_checks(store) else PAIRS


def read_schema(store: ObjectStore, name: str) -> pa.Schema:
    """The columns of a file with pairs.

    Raises:
        ObjectCorruptedError: it is no such file.
        StoreError: it cannot be read.
    """
    with reported_corruption(store, name, REWRITE_REMEDY):
        return judged_schema(store, name)


def read_batches(store: ObjectStore, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The pairs of a file in batches of bounded size; all pairs of a row are in one.

    Raises:
        ObjectCorruptedError: the file is corrupted.
        StoreError: it cannot be read.
    """
    schema = read_schema(store, name)
    names = [*_PLACE, *(column for column in columns if column not in _PLACE)]
    with reported_corruption(store, name, REWRITE_REMEDY):
        yield from whole_rows(_placed(bounded_batches(store, name, schema, names)))


def read_filtered(store: ObjectStore) -> Filtered:
    """The pairs that a filter took out; none if there is no such file.

    Raises:
        ObjectCorruptedError: the file is corrupted.
        StoreError: it cannot be read.
    """
    filtered = Filtered()
    if not store.exists(FILTERED):
        return filtered
    schema = read_schema(store, FILTERED)
    places = [filtered.places]
    with reported_corruption(store, FILTERED, REWRITE_REMEDY):
        for batch in _placed(bounded_batches(store, FILTERED, schema, [*_PLACE, FILTERED_BY])):
            places.append(places_of(batch))
            add_counts(filtered.reasons, count_texts(batch.column(FILTERED_BY)))
    filtered.places = np.sort(np.concatenate(places))
    return filtered


def count_texts(values: pa.Array) -> Mapping[str, int]:
    """How often each text occurs; null counts as empty."""
    counts = pc.value_counts(values).to_pylist()
    return {str(entry["values"] or ""): int(entry["counts"]) for entry in counts}


def add_counts(counter: Counter[str], counts: Mapping[str, int]) -> None:
    """Add to a counter; of more than `MAX_TEXTS` texts, those that come later are left out."""
    for text, count in counts.items():
        if text in counter or len(counter) < MAX_TEXTS:
            counter[text] += count


def whole_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same pairs in other batches: none ends within a row.

    Raises:
        ValueError: rows are not in order.
    """
    kept: list[pa.RecordBatch] = []
    last = -1
    for batch in batches:
        rows = batch.column("row").to_numpy()
        if len(rows) and (rows[0] < last or (np.diff(rows) < 0).any()):
            raise ValueError("rows that are not in order")
        if not len(rows):
            continue
        start = int(np.searchsorted(rows, rows[-1]))
        if start or rows[0] > last:
            yield from _joined([*kept, batch.slice(0, start)] if start else kept)
            kept = []
        kept.append(batch.slice(start))
        last = int(rows[-1])
        if sum(part.nbytes for part in kept) > MAX_ROW_BYTES:
            raise ValueError("a row longer than any reply")
    yield from _joined(kept)


def _joined(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if batches:
        yield pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _placed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, each with a place of every pair."""
    for batch in batches:
        if any(batch.column(name).null_count for name in _PLACE):
            raise ValueError("missing values")
        if len(batch) and (pc.min(batch.column("row")).as_py() < 0):
            raise ValueError("a negative row")
        yield batch
