"""Merges small objects of an output into few large ones, in dataset order.

What counts stays readable at every moment: a merged object is stored before those it was made of
are removed, and a reader that finds one gone looks for the merged one. So two runs may compact at
once, and one that is killed leaves rows stored twice at most.
"""

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from .filesystems import ObjectMissingError
from .key_index import Array, pack_keys
from .ledger import Ledger
from .object_store import ObjectStore
from .parts import batches_line, name_batches, part_writer
from .steps import READERS, ahead
from .stored_rows import StoredRows
from .storing import ObjectDamagedError, merged_name

T = TypeVar("T", pa.Table, list[bytes])

MOST_SMALL = 64
"""Small objects of one kind that are left alone."""

MERGED_ROWS = 32_768
SMALL_ROWS = MERGED_ROWS // 4
"""An object with fewer rows is small. Large ones are never rewritten."""

_GROUP_ROWS = MERGED_ROWS // 8
_GROUP_BYTES = 8 << 20
"""A row group is what a reader holds in memory at once."""

_MERGED_LINES_BYTES = 4 << 20
"""Quarantined rows are read whole, by several threads."""

_SMALL_LINES_BYTES = _MERGED_LINES_BYTES // 4

_READ_AHEAD = 4
_KEYS_AT_ONCE = 65_536
_DIGEST_LENGTH = 32


def compact(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    """Merge the small objects of a ledger, if there are many.

    Only rows that the ledger points to are kept; the batches of all are remembered. Objects that
    are damaged, or that another run has merged meanwhile, are left alone.

    Args:
        store: the output.
        ledger: what is stored there.
        keys: the row keys in dataset order, which merged objects follow.

    Returns:
        How many objects were merged.

    Raises:
        StoreError: the output cannot be read or written.
    """
    return _compact_answers(store, ledger, keys) + _compact_failures(store, ledger, keys)


def _compact_answers(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    stored = ledger.answers
    files = stored.small(SMALL_ROWS)
    if len(files) <= MOST_SMALL:
        return 0
    _, places = stored.index.entries()
    sources = _in_dataset_order(stored, files, places, keys)
    return _merge(store, stored, sources, stored.table, _MergedPart)


def _compact_failures(store: ObjectStore, ledger: Ledger, keys: Sequence[str]) -> int:
    stored = ledger.failures
    files = [file for file in stored.small(SMALL_ROWS) if stored.size(file) < _SMALL_LINES_BYTES]
    if len(files) <= MOST_SMALL:
        return 0
    _, places = ledger.unanswered()
    sources = _in_dataset_order(stored, files, places, keys)
    return _merge(store, stored, sources, stored.lines, _MergedLines)


def _in_dataset_order(
    stored: StoredRows[Any], files: Sequence[int], places: Array, keys: Sequence[str]
) -> list[tuple[int, Array]]:
    """Objects by where their rows stand in the dataset, each with the rows to keep of it."""
    first = np.full(len(stored.names), len(keys))
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        found = stored.index.find(pack_keys(keys[start : start + _KEYS_AT_ONCE]))
        known = np.flatnonzero(found.known)
        np.minimum.at(first, found.places["file"][known], start + known)
    kept = places[np.isin(places["file"], files)]
    kept = kept[np.lexsort((kept["row"], kept["file"]))]
    ordered = sorted(files, key=lambda file: (first[file], stored.names[file]))
    starts = np.searchsorted(kept["file"], ordered, "left").tolist()
    ends = np.searchsorted(kept["file"], ordered, "right").tolist()
    return [
        (file, kept["row"][start:end])
        for file, start, end in zip(ordered, starts, ends, strict=True)
    ]


def _merge(
    store: ObjectStore,
    stored: StoredRows[Any],
    sources: Sequence[tuple[int, Array]],
    read: Callable[[int, Array], T],
    new: Callable[[Path], "_Merged[T]"],
) -> int:
    """Write merged objects, each as soon as it is full, and remove what went into it."""
    count = 0
    with (
        tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder,
        ThreadPoolExecutor(READERS) as pool,
    ):
        path = Path(folder) / "merged"
        merged = new(path)
        for (file, _), future in ahead(pool, lambda source: read(*source), sources, _READ_AHEAD):
            try:
                rows = future.result()
            except (ObjectMissingError, ObjectDamagedError):
                continue
            if not merged.has_room_for(rows):
                count += _replace(store, stored, merged, pool)
                merged = new(path)
            merged.add(file, rows)
        return count + _replace(store, stored, merged, pool)


def _replace(
    store: ObjectStore, stored: StoredRows[Any], merged: "_Merged[Any]", pool: ThreadPoolExecutor
) -> int:
    """Store a merged object, then remove what it was made of."""
    merged.close(sorted({key for file in merged.files for key in stored.batches_of(file)}))
    if len(merged.files) < 2:
        return 0
    with merged.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]
    name = merged_name(stored.folder, digest, stored.suffix)
    store.put(name, merged.path)
    # One that was merged before, with sources that add nothing, gives the same object again.
    removed = {stored.names[number] for number in merged.files} - {name}
    list(pool.map(store.remove, removed))
    return len(merged.files)


class _Merged(ABC, Generic[T]):
    """A merged object while it grows on local disk.

    Attributes:
        files: numbers of the objects that it is made of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[int] = []
        self._rows = 0

    def has_room_for(self, rows: T) -> bool:
        """Whether rows may be added and the object stays as small as it should be."""
        return self._rows + len(rows) <= MERGED_ROWS

    def add(self, file: int, rows: T) -> None:
        """Add the rows that are kept of an object."""
        self.files.append(file)
        self._rows += len(rows)
        self._write(rows)

    @abstractmethod
    def _write(self, rows: T) -> None: ...

    @abstractmethod
    def close(self, batches: Sequence[str]) -> None:
        """Finish the file."""


class _MergedPart(_Merged[pa.Table]):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer = part_writer(path)
        self._group: list[pa.Table] = []

    def _write(self, rows: pa.Table) -> None:
        self._group.append(rows)
        if (
            sum(map(len, self._group)) >= _GROUP_ROWS
            or sum(table.nbytes for table in self._group) >= _GROUP_BYTES
        ):
            self._write_group()

    def close(self, batches: Sequence[str]) -> None:
        self._write_group()
        name_batches(self._writer, batches)
        self._writer.close()

    def _write_group(self) -> None:
        if self._group:
            self._writer.write_table(pa.concat_tables(self._group), _GROUP_ROWS)
            self._group.clear()


class _MergedLines(_Merged[list[bytes]]):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.open("wb")

    def has_room_for(self, rows: list[bytes]) -> bool:
        return super().has_room_for(rows) and self._file.tell() < _MERGED_LINES_BYTES

    def _write(self, rows: list[bytes]) -> None:
        self._file.writelines(line + b"\n" for line in rows)

    def close(self, batches: Sequence[str]) -> None:
        self._file.write(batches_line(batches) + b"\n")
        self._file.close()
