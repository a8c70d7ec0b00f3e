"""The finished rows in a folder of parts: an index of where each one is, and how to read it."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..concurrency import STORE_THREADS, prefetch
from ..errors import ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..records import FinishedRow
from .key_index import Array, KeyIndex, Location, pack_keys
from .layout import batch_of
from .parts import Contents, open_part, part_contents, reported_corruption, rows_of

_MAX_TRIES = 5
"""Another run may merge parts while they are read; each try lists them again."""

_SMALL_BYTES = 1 << 20
"""Parts up to this size are read in one request: a round trip costs more than the extra bytes."""

_LARGE_READERS = 4
"""Threads that read large parts: each needs about 5 MB, and more threads are no faster."""


class StoredRows:
    """The finished rows of a pass: the keys are in memory, the rows are read on demand.

    Attributes:
        folder: folder of the parts.
        index: where each row is; of several copies of a row, the one that counts.
        batches: keys of all batches that have a part.
        names: names of the parts by number, including parts that no longer exist.
    """

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store = store
        self.folder = folder
        self.index = KeyIndex()
        self.batches: set[str] = set()
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._sizes: list[int] = []
        self._row_counts: list[int] = []
        self._batches: list[Sequence[str]] = []
        self._part = lru_cache(maxsize=8)(self._open)
        self._group = lru_cache(maxsize=4)(self._read_group)

    def sync(self, *, alone: bool = False) -> None:
        """Add parts that are new in the folder, and drop parts that no longer exist.

        Args:
            alone: whether nobody else merges parts now, so that one listing tells everything.

        Raises:
            ObjectCorruptedError: a part is corrupted.
            StoreError: the folder cannot be read, or changes faster than it can be read.
        """
        incomplete = False
        for _ in range(_MAX_TRIES):
            sizes = {
                name: size
                for name, size in self._store.sizes(self.folder).items()
                if batch_of(name) is not None
            }
            if files := [self._numbers.pop(name) for name in self._numbers.keys() - sizes.keys()]:
                self.index.forget(files)
            new = {name: sizes[name] for name in sizes.keys() - self._numbers.keys()}
            # A listing can miss parts merged while it is made; if nothing is new, it missed none.
            if not new:
                return
            self.index.extend(self._entries(new))
            incomplete = not new.keys() <= self._numbers.keys()
            if alone and not incomplete:
                return
        if incomplete:
            raise self._unstable()

    def add(self, name: str, rows: Mapping[bytes, tuple[int, int, int]]) -> None:
        """Add a part that was just written.

        Args:
            name: its name.
            rows: row keys -> the row's number within the part, rank and kind, as in `Location`.
        """
        if name not in self._numbers:
            file = self._register(name, 0, len(rows), ())
            self.index.update({key: Location(file, *where) for key, where in rows.items()})

    def replace(
        self, files: Sequence[int], name: str, size: int, keys: Array, batches: Sequence[str]
    ) -> None:
        """Take note of a part that was just stored in place of others.

        Args:
            files: numbers of the others, all of whose rows that count are in it.
            name: its name; it may be one of the others.
            size: in bytes.
            keys: of its rows, in order.
            batches: keys of their batches.
        """
        for file in files:
            self._numbers.pop(self.names[file], None)
        self.index.move(keys, self._register(name, size, len(keys), batches))

    def fetch(self, keys: Array) -> list[FinishedRow | None]:
        """Read the rows of these keys, in the same order; None for a key without a row.

        Raises:
            ObjectCorruptedError: a part is corrupted.
            StoreError: a part cannot be read.
        """
        for _ in range(_MAX_TRIES):
            try:
                return self._fetch(keys)
            except ObjectMissingError:
                self.sync()
        raise self._unstable()

    @property
    def pieces_read(self) -> int:
        """How many row groups of parts `fetch` has read so far."""
        return self._group.cache_info().misses

    def small(self, rows: int) -> list[int]:
        """Numbers of the parts with fewer rows than this, as of the last `sync`."""
        return [file for file in self._numbers.values() if self._row_counts[file] < rows]

    def batches_of(self, file: int) -> Sequence[str]:
        """Keys of the batches in a part."""
        return self._batches[file]

    def table(self, file: int) -> tuple[pa.Table, Array]:
        """Read a small part as Arrow, and the keys of its rows."""
        name = self.names[file]
        with reported_corruption(self._store, name):
            part = open_part(pa.BufferReader(self._store.read(name)))
            rows = part.read(use_threads=False)
            return rows, pack_keys(rows.column("key").to_pylist())

    def _fetch(self, keys: Array) -> list[FinishedRow | None]:
        result: list[FinishedRow | None] = [None] * len(keys)
        expected = keys.tobytes().hex()
        found = self.index.find(keys)
        wanted = np.flatnonzero(found.known)
        locations = found.locations[wanted]
        order = np.lexsort((locations["row"], locations["file"]))
        ends = np.flatnonzero(np.diff(locations["file"][order])) + 1
        for chosen in np.split(order, ends) if len(order) else ():
            file = int(locations["file"][chosen[0]])
            with reported_corruption(self._store, self.names[file]):
                rows = self._load(file, locations["row"][chosen])
                for position, row in zip(wanted[chosen].tolist(), rows, strict=True):
                    if row.key != expected[32 * position : 32 * position + 32]:
                        raise ValueError("unexpected row key")
                    result[position] = row
        return result

    def _entries(self, sizes: dict[str, int]) -> Iterator[tuple[Array, Array]]:
        """Read and register new parts; parts that were removed meanwhile are skipped."""

        def contents(name: str) -> Contents | None:
            try:
                with reported_corruption(self._store, name):
                    return part_contents(part_source(self._store, name, sizes[name]))
            except ObjectMissingError:
                return None

        large = [name for name, size in sizes.items() if size > _SMALL_BYTES]
        for names, readers in ((sizes.keys() - large, STORE_THREADS), (large, _LARGE_READERS)):
            with ThreadPoolExecutor(readers) as pool:
                for name, future in prefetch(pool, contents, sorted(names), 2 * readers):
                    if (read := future.result()) is not None:
                        number = self._register(name, sizes[name], len(read.keys), read.batches)
                        read.locations["file"] = number
                        yield read.keys, read.locations

    def _register(self, name: str, size: int, rows: int, batches: Sequence[str]) -> int:
        batch = batch_of(name)
        number = self._numbers[name] = len(self.names)
        self.names.append(name)
        self._sizes.append(size)
        self._row_counts.append(rows)
        self._batches.append([batch] if batch else batches)
        self.batches.update(self._batches[-1])
        return number

    def _unstable(self) -> StoreError:
        return StoreError(
            f"{self._store.uri_of(self.folder)}: other runs keep replacing objects there: run again"
        )

    def _load(self, file: int, rows: Array) -> Iterator[FinishedRow]:
        """Read rows of a part, given by their numbers in ascending order."""
        _, starts = self._part(file)
        groups = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            table = self._group(file, group)
            yield from rows_of(table.take(rows[groups == group] - starts[group]))

    def _open(self, file: int) -> tuple[pq.ParquetFile, Array]:
        part = open_part(part_source(self._store, self.names[file], self._sizes[file]))
        sizes = [
            part.metadata.row_group(group).num_rows for group in range(part.metadata.num_row_groups)
        ]
        return part, np.cumsum([0, *sizes[:-1]])

    def _read_group(self, file: int, group: int) -> pa.Table:
        return self._part(file)[0].read_row_group(group, use_threads=False)


def part_source(store: ObjectStore, name: str, size: int) -> pa.NativeFile:
    """Open a part: a small one is read in one request, a large one in ranges."""
    if size <= _SMALL_BYTES:
        return pa.BufferReader(store.read(name))
    return pa.PythonFile(store.open(name), mode="r")
