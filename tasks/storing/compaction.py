"""Merges the small parts of a pass into a few large ones, in dataset order.

Every row stays readable throughout: a merged part is stored before its sources are removed, and a
reader that finds a source missing looks for the merged part. If a compaction is killed, the worst
outcome is that some rows are stored twice.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..concurrency import STORE_THREADS, prefetch
from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from .key_index import Array, packed_pieces
from .layout import merged_name
from .ledger import Ledger
from .parts import add_batch_keys, part_writer
from .stored_rows import StoredRows

MAX_SMALL_PARTS = 64
"""Up to this many small parts are not worth merging."""

MERGED_ROWS = 32_768
SMALL_ROWS = MERGED_ROWS // 4
"""A part with fewer rows is small. Larger parts are never rewritten."""

_GROUP_ROWS = MERGED_ROWS // 8
_GROUP_BYTES = 8 << 20
"""Limits of a row group, which a reader holds in memory at once."""

_READERS = 4
"""Threads that read parts: Arrow keeps about 5 MB for each."""

_DIGEST_LENGTH = 32


def compact(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    """Merge the small parts of a ledger if there are many; returns how many were merged.

    Merged rows are in dataset order, which is the order of `keys`. Only the rows that the ledger
    points to are copied, but the keys of all batches are. Corrupted or missing parts are skipped.
    The ledger then points to the merged parts.
    """
    stored = ledger.rows
    files = stored.small(SMALL_ROWS)
    if len(files) <= MAX_SMALL_PARTS:
        return 0
    sources = _in_dataset_order(stored, files, keys)
    count = 0
    with (
        tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder,
        ThreadPoolExecutor(_READERS) as readers,
        ThreadPoolExecutor(STORE_THREADS) as removers,
    ):
        merged = _MergedPart(Path(folder) / "merged")
        for file, read in prefetch(readers, stored.table, sources, _READERS):
            try:
                rows, row_keys = _valid_rows(stored, file, *read.result())
            except (ObjectMissingError, ObjectCorruptedError):
                continue
            if not merged.has_room_for(rows):
                count += _replace(store, stored, merged, removers)
                merged = _MergedPart(merged.path)
            merged.add(file, rows, row_keys)
        return count + _replace(store, stored, merged, removers)


def _in_dataset_order(
    stored: StoredRows, files: Sequence[int], keys: Sequence[str]
) -> Sequence[int]:
    """Sort parts by the dataset position of their first row."""
    first = np.full(len(stored.names), len(keys))
    start = 0
    for piece in packed_pieces(keys):
        found = stored.index.find(piece)
        known = np.flatnonzero(found.known)
        np.minimum.at(first, found.locations["file"][known], start + known)
        start += len(piece)
    return sorted(files, key=lambda file: (first[file], stored.names[file]))


def _valid_rows(
    stored: StoredRows, file: int, rows: pa.Table, keys: Array
) -> tuple[pa.Table, Array]:
    """Of the rows of a part, given with their keys, those that count."""
    found = stored.index.find(keys)
    is_here = (found.locations["file"] == file) & (found.locations["row"] == np.arange(len(keys)))
    counts = found.known & is_here
    return rows.filter(pa.array(counts)), keys[counts]


def _replace(
    store: ObjectStore, stored: StoredRows, merged: "_MergedPart", pool: ThreadPoolExecutor
) -> int:
    """Store a merged part, then remove its sources; returns how many sources it has."""
    batches = sorted({key for file in merged.files for key in stored.batches_of(file)})
    merged.close(batches)
    if len(merged.files) < 2:
        return 0
    with merged.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]
    name, size = merged_name(stored.folder, digest), merged.path.stat().st_size
    store.put(name, merged.path)
    stored.replace(merged.files, name, size, merged.keys, batches)
    # A source that was merged before, when the others add no rows, yields the same object again.
    removed = {stored.names[number] for number in merged.files} - {name}
    list(pool.map(store.remove, removed))
    return len(merged.files)


class _MergedPart:
    """A merged part that is being written to local disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[int] = []
        self._keys: list[Array] = []
        self._rows = 0
        self._writer = part_writer(path)
        self._group: list[pa.Table] = []

    def has_room_for(self, rows: pa.Table) -> bool:
        """Whether adding these rows keeps the part within its size limit."""
        return self._rows + len(rows) <= MERGED_ROWS

    @property
    def keys(self) -> Array:
        """The keys of its rows, in order."""
        return np.concatenate(self._keys)

    def add(self, file: int, rows: pa.Table, keys: Array) -> None:
        """Add the rows copied from a source, which have these keys."""
        self.files.append(file)
        self._keys.append(keys)
        self._rows += len(rows)
        self._group.append(rows)
        if (
            sum(map(len, self._group)) >= _GROUP_ROWS
            or sum(table.nbytes for table in self._group) >= _GROUP_BYTES
        ):
            self._write_group()

    def close(self, batches: Sequence[str]) -> None:
        """Finish the file, with the keys of the batches its rows are from."""
        self._write_group()
        add_batch_keys(self._writer, batches)
        self._writer.close()

    def _write_group(self) -> None:
        if self._group:
            self._writer.write_table(pa.concat_tables(self._group), _GROUP_ROWS)
            self._group.clear()
