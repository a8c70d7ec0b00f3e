"""Reads `pairs.parquet` row by row, and joins it with the dataset's rows."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import DatasetError
from ..loading.columns import Columns
from ..object_store.store import ObjectStore
from ..records import QAPair, Row
from ..storing.parts import reported_corruption
from .bounded_parquet import MAX_ROW_BYTES, bounded_batches, text_bytes
from .embedded import images_digest
from .export import REWRITE_REMEDY
from .pairs_parquet import PAIRS, PAIRS_SCHEMA


@dataclass(frozen=True, slots=True)
class RowPairs:
    """The exported pairs of a row.

    Attributes:
        row: position in the dataset, from 0.
        key: the row key.
        images: digest of its images; empty if it has none.
        style: name and version of the style that asked.
        pairs: its pairs, at least one.
    """

    row: int
    key: str
    images: str
    style: str
    pairs: tuple[QAPair, ...]


def read_pairs(store: ObjectStore, name: str = PAIRS) -> Iterator[RowPairs]:
    """The pairs of an output, row by row, in the order of the dataset.

    Args:
        store: the output.
        name: the file with them.

    Raises:
        ObjectCorruptedError: the export is corrupted.
        StoreError: it cannot be read.
    """
    for _, group in groupby(_lines(store, name), itemgetter("row")):
        lines = list(group)
        first = lines[0]
        yield RowPairs(
            first["row"],
            first["key"],
            first["image_digest"] or "",
            first["style"] or "",
            tuple(map(pair_of_line, lines)),
        )


def pairs_of_rows(store: ObjectStore, rows: Collection[int]) -> Mapping[int, Sequence[QAPair]]:
    """The exported pairs of a few rows, given by their positions."""
    lines = lines_of_rows(store, rows, PAIRS, PAIRS_SCHEMA.names)
    return {row: list(map(pair_of_line, of_row)) for row, of_row in lines.items()}


def lines_of_rows(
    store: ObjectStore, rows: Collection[int], name: str, columns: Sequence[str]
) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    """The lines of a file with pairs that are about a few rows, given by their positions."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    wanted = pa.array(sorted(rows), pa.int64())
    size = 0
    with reported_corruption(store, name, REWRITE_REMEDY):
        for batch in _batches(store, columns, name):
            lines = batch.filter(pc.is_in(batch.column("row"), wanted))
            size += int(sum(text_bytes(column).sum() for column in lines.columns))
            if size > MAX_ROW_BYTES:
                raise ValueError("rows longer than any reply")
            for line in lines.to_pylist():
                found.setdefault(line["row"], []).append(line)
    return found


def most_images(store: ObjectStore) -> int:
    """How many images the row with the most of them has, of those that have pairs."""
    most = 0
    with reported_corruption(store, PAIRS, REWRITE_REMEDY):
        for batch in _batches(store, ["image"]):
            most = max(most, pc.max(pc.list_value_length(batch.column("image"))).as_py() or 0)
    return most


def join_rows(
    pairs: Iterable[RowPairs], rows: Iterable[Row], columns: Columns
) -> Iterator[tuple[Row, RowPairs]]:
    """Join pairs with the rows of the dataset that they are about.

    Raises:
        DatasetError: a row is missing or has other images: it is not the dataset of the pairs.
    """
    remaining = iter(rows)
    for found in pairs:
        row = next((row for row in remaining if row.index >= found.row), None)
        if row is None or row.index != found.row:
            raise DatasetError(
                f"the dataset has no row {found.row}, which has pairs: give the dataset of the "
                "run, as it was then"
            )
        if images_digest(row, columns) != found.images:
            raise DatasetError(
                f"{row.where} has other images than row {found.row} of the run had: give the "
                "dataset of the run, as it was then"
            )
        yield row, found


def _lines(store: ObjectStore, name: str) -> Iterator[Mapping[str, Any]]:
    with reported_corruption(store, name, REWRITE_REMEDY):
        row, size = -1, 0
        for batch in _batches(store, PAIRS_SCHEMA.names, name):
            sizes = sum(map(text_bytes, batch.columns), np.zeros(len(batch), np.int64))
            for line, line_size in zip(batch.to_pylist(), sizes.tolist(), strict=True):
                row, size = line["row"], line_size + (size if line["row"] == row else 0)
                if size > MAX_ROW_BYTES:
                    raise ValueError("a row longer than any reply")
                yield line


def _batches(
    store: ObjectStore, columns: Sequence[str], name: str = PAIRS
) -> Iterator[pa.RecordBatch]:
    for batch in bounded_batches(store, name, PAIRS_SCHEMA, columns):
        if any(batch.column(name).null_count for name in {"row", "key", "image"} & {*columns}):
            raise ValueError("missing values")
        yield batch


def pair_of_line(line: Mapping[str, Any]) -> QAPair:
    """The pair of a line of `pairs.parquet`."""
    return QAPair(
        line["question"] or "",
        line["answer"] or "",
        line["type"] or "",
        tuple(option or "" for option in line["options"] or ()),
        line["correct"] or "",
        line["turn"] or 0,
        line["language"] or "",
        line["reasoning"] or "",
    )
