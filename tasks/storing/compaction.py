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
from .key_index import Array, pack_keys
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

_KEYS_PER_LOOKUP = 65_536
_DIGEST_LENGTH = 32


def compact(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    """Merge the small parts of a ledger if there are many; returns how many were merged.

    Merged rows are in dataset order, which is the order of `keys`. Only the rows that the ledger
    points to are copied, but the keys of all batches are. Corrupted or missing parts are skipped.
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
        for (file, _), read in prefetch(
            readers, lambda part: stored.table(*part), sources, _READERS
        ):
            try:
                rows = read.result()
            except (ObjectMissingError, ObjectCorruptedError):
                continue
            if not merged.has_room_for(rows):
                count += _replace(store, stored, merged, removers)
                merged = _MergedPart(merged.path)
            merged.add(file, rows)
        return count + _replace(store, stored, merged, removers)


def _in_dataset_order(
    stored: StoredRows, files: Sequence[int], keys: Sequence[str]
) -> list[tuple[int, Array]]:
    """Sort parts by the dataset position of their first row; with each, the rows to copy."""
    first = np.full(len(stored.names), len(keys))
    for start in range(0, len(keys), _KEYS_PER_LOOKUP):
        found = stored.index.find(pack_keys(keys[start : start + _KEYS_PER_LOOKUP]))
        known = np.flatnonzero(found.known)
        np.minimum.at(first, found.locations["file"][known], start + known)
    _, locations = stored.index.entries()
    copied = locations[np.isin(locations["file"], files)]
    copied = copied[np.lexsort((copied["row"], copied["file"]))]
    ordered = sorted(files, key=lambda file: (first[file], stored.names[file]))
    starts = np.searchsorted(copied["file"], ordered, "left").tolist()
    ends = np.searchsorted(copied["file"], ordered, "right").tolist()
    return [
        (file, copied["row"][start:end])
        for file, start, end in zip(ordered, starts, ends, strict=True)
    ]


def _replace(
    store: ObjectStore, stored: StoredRows, merged: "_MergedPart", pool: ThreadPoolExecutor
) -> int:
    """Store a merged part, then remove its sources; returns how many sources it has."""
    merged.close(sorted({key for file in merged.files for key in stored.batches_of(file)}))
    if len(merged.files) < 2:
        return 0
    with merged.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]
    name = merged_name(stored.folder, digest)
    store.put(name, merged.path)
    # A source that was merged before, when the others add no rows, yields the same object again.
    removed = {stored.names[number] for number in merged.files} - {name}
    list(pool.map(store.remove, removed))
    return len(merged.files)


class _MergedPart:
    """A merged part that is being written to local disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[int] = []
        self._rows = 0
        self._writer = part_writer(path)
        self._group: list[pa.Table] = []

    def has_room_for(self, rows: pa.Table) -> bool:
        """Whether adding these rows keeps the part within its size limit."""
        return self._rows + len(rows) <= MERGED_ROWS

    def add(self, file: int, rows: pa.Table) -> None:
        """Add the rows copied from a source."""
        self.files.append(file)
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
