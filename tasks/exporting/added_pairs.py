"""Adds pairs to a file of exported pairs, after those of their rows."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import StoreError
from ..object_store.store import ObjectStore
from ..records import QAPair
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .export import REWRITE_REMEDY
from .pairs_parquet import PAIRS_SCHEMA, pair_columns
from .split_plan import judged_schema


def add_pairs(
    store: ObjectStore, source: str, target: str, added: Iterable[tuple[int, QAPair]], style: str
) -> int:
    """Write a file of pairs anew, with more of them; streamed.

    Args:
        store: the output.
        source: a file of exported pairs.
        target: the new file.
        added: each with the position of its row, in the order of the rows.
        style: name and version of the style that asked for them.

    Returns:
        How many were added.

    Raises:
        ObjectCorruptedError: the source is corrupted.
        StoreError: a row has no pair yet, or files cannot be read or written.
    """
    inserter = _Inserter(added, style)
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        path = Path(folder) / "pairs"
        with reported_corruption(store, source, REWRITE_REMEDY):
            schema = judged_schema(store, source)
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                held: list[pa.RecordBatch] = []
                """The last line: its row may go on."""
                for batch in filter(len, bounded_batches(store, source, PAIRS_SCHEMA)):
                    batch = pa.RecordBatch.from_arrays(batch.columns, schema=schema)
                    lines = pa.concat_batches([*held, batch])
                    rows = lines.column("row").to_pylist()
                    end = len(lines) - 1
                    writer.write_batch(inserter.after(lines.slice(0, end), rows[1:]))
                    held = [lines.slice(end)]
                for last in held:
                    writer.write_batch(inserter.after(last, [None]))
        if inserter.row is not None:
            raise StoreError(f"{store.uri_of(source)} has no pair of row {inserter.row}: run again")
        store.put(target, path)
    return inserter.count


class _Inserter:
    """Inserts pairs after the last line of their row.

    Attributes:
        row: position of the row of the next one; None if there is none left.
        count: how many were inserted.
    """

    def __init__(self, added: Iterable[tuple[int, QAPair]], style: str) -> None:
        self.count = 0
        self.row: int | None
        self._pairs: Iterator[tuple[int, QAPair]]
        self._groups = groupby(added, itemgetter(0))
        self._style = style
        self._next()

    def _next(self) -> None:
        following = next(self._groups, None)
        self.row, self._pairs = following or (None, iter(()))

    def after(self, lines: pa.RecordBatch, following: Sequence[int | None]) -> pa.RecordBatch:
        """Some lines and what is inserted between and after them.

        Args:
            lines: whole rows, or the start of one.
            following: the row of the line after each.
        """
        order: list[int] = []
        """For each line of the result, its place among the lines and then the new ones."""
        like: list[int] = []
        """For each new line, the place of the last one of its row."""
        distances: list[int] = []
        """And how far it comes after that."""
        pairs: list[QAPair] = []
        rows = lines.column("row").to_pylist()
        for place, (row, next_row) in enumerate(zip(rows, following, strict=True)):
            order.append(place)
            if row == self.row and next_row != row:
                for distance, (_, pair) in enumerate(self._pairs, 1):
                    order.append(len(lines) + len(pairs))
                    like.append(place)
                    distances.append(distance)
                    pairs.append(pair)
                self._next()
        self.count += len(pairs)
        if not pairs:
            return lines
        new = lines.take(pa.array(like))
        numbers = pc.add(new.column("pair"), pa.array(distances, pa.int32()))
        styles = pa.array([self._style] * len(pairs), pa.string())
        changed = {**pair_columns(pairs), "pair": numbers, "style": styles}
        columns = [changed.get(name, new.column(name)) for name in new.schema.names]
        new = pa.RecordBatch.from_arrays(columns, schema=lines.schema)
        return pa.concat_batches([lines, new]).take(pa.array(order))
