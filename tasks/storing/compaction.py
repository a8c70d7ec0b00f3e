"""Merges small parts of a pass into few large ones, in dataset order.

What counts stays readable at every moment: a merged part is stored before those it was made of
are removed, and a reader that finds one gone looks for the merged one. One that is killed leaves
rows stored twice at most.
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
from .parts import name_batches, part_writer
from .stored_rows import StoredRows

MOST_SMALL = 64
"""Small parts that are left alone."""

MERGED_ROWS = 32_768
SMALL_ROWS = MERGED_ROWS // 4
"""A part with fewer rows is small. Large ones are never rewritten."""

_GROUP_ROWS = MERGED_ROWS // 8
_GROUP_BYTES = 8 << 20
"""A row group is what a reader holds in memory at once."""

_READ_AHEAD = 4
_KEYS_AT_ONCE = 65_536
_DIGEST_LENGTH = 32


def compact(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    """Merge the small parts of a ledger, if there are many; returns how many were merged.

    The rows of merged parts follow the row keys, which are in dataset order. Only rows that the
    ledger points to are kept; the batches of all are remembered. Corrupted or missing parts
    are left alone.
    """
    stored = ledger.rows
    files = stored.small(SMALL_ROWS)
    if len(files) <= MOST_SMALL:
        return 0
    sources = _in_dataset_order(stored, files, keys)
    count = 0
    with (
        tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder,
        ThreadPoolExecutor(STORE_THREADS) as pool,
    ):
        merged = _MergedPart(Path(folder) / "merged")
        for (file, _), read in prefetch(
            pool, lambda part: stored.table(*part), sources, _READ_AHEAD
        ):
            try:
                rows = read.result()
            except (ObjectMissingError, ObjectCorruptedError):
                continue
            if not merged.has_room_for(rows):
                count += _replace(store, stored, merged, pool)
                merged = _MergedPart(merged.path)
            merged.add(file, rows)
        return count + _replace(store, stored, merged, pool)


def _in_dataset_order(
    stored: StoredRows, files: Sequence[int], keys: Sequence[str]
) -> list[tuple[int, Array]]:
    """Parts by where their rows stand in the dataset, each with the rows to keep of it."""
    first = np.full(len(stored.names), len(keys))
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        found = stored.index.find(pack_keys(keys[start : start + _KEYS_AT_ONCE]))
        known = np.flatnonzero(found.known)
        np.minimum.at(first, found.places["file"][known], start + known)
    _, places = stored.index.entries()
    kept = places[np.isin(places["file"], files)]
    kept = kept[np.lexsort((kept["row"], kept["file"]))]
    ordered = sorted(files, key=lambda file: (first[file], stored.names[file]))
    starts = np.searchsorted(kept["file"], ordered, "left").tolist()
    ends = np.searchsorted(kept["file"], ordered, "right").tolist()
    return [
        (file, kept["row"][start:end])
        for file, start, end in zip(ordered, starts, ends, strict=True)
    ]


def _replace(
    store: ObjectStore, stored: StoredRows, merged: "_MergedPart", pool: ThreadPoolExecutor
) -> int:
    """Store a merged part, then remove what it was made of."""
    merged.close(sorted({key for file in merged.files for key in stored.batches_of(file)}))
    if len(merged.files) < 2:
        return 0
    with merged.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]
    name = merged_name(stored.folder, digest)
    store.put(name, merged.path)
    # One that was merged before, with sources that add nothing, gives the same object again.
    removed = {stored.names[number] for number in merged.files} - {name}
    list(pool.map(store.remove, removed))
    return len(merged.files)


class _MergedPart:
    """A merged part while it grows on local disk.

    Attributes:
        path: the file.
        files: numbers of the parts that it is made of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[int] = []
        self._rows = 0
        self._writer = part_writer(path)
        self._group: list[pa.Table] = []

    def has_room_for(self, rows: pa.Table) -> bool:
        """Whether rows may be added and the part stays as small as it should be."""
        return self._rows + len(rows) <= MERGED_ROWS

    def add(self, file: int, rows: pa.Table) -> None:
        """Add the rows that are kept of a part."""
        self.files.append(file)
        self._rows += len(rows)
        self._group.append(rows)
        if (
            sum(map(len, self._group)) >= _GROUP_ROWS
            or sum(table.nbytes for table in self._group) >= _GROUP_BYTES
        ):
            self._write_group()

    def close(self, batches: Sequence[str]) -> None:
        """Finish the file, which remembers the batches its rows are of."""
        self._write_group()
        name_batches(self._writer, batches)
        self._writer.close()

    def _write_group(self) -> None:
        if self._group:
            self._writer.write_table(pa.concat_tables(self._group), _GROUP_ROWS)
            self._group.clear()
