"""The parts of one folder, which hold finished rows, and where in them each row is."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..concurrency import STORE_THREADS, prefetch
from ..errors import ObjectMissingError, StoreError
from ..object_store.store import ObjectStore
from ..records import FinishedRow
from .key_index import Array, KeyIndex, Location
from .layout import batch_of
from .parts import Contents, open_part, part_contents, reported_corruption, rows_of

_TRIES = 5
"""A run may merge parts while they are read; each try sees what it left."""

_WHOLE_BYTES = 1 << 20
"""Objects up to this size are read whole: another round trip costs more than the bytes."""

_LARGE_READERS = 4
"""Threads that read large objects: each keeps some 5 MB, and more of them are no faster."""


class StoredRows:
    """Finished rows of a pass: keys in memory, the rows themselves read when asked for.

    Attributes:
        folder: where the parts are.
        index: where each row is; of several copies of a row, the one that counts.
        batches: keys of all batches that have a part.
        names: the parts by number; some may be gone.
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

    def sync(self) -> None:
        """Take in the objects that are new, and forget those that are gone.

        Raises:
            ObjectCorruptedError: an object does not hold what was written.
            StoreError: the folder cannot be read, or changes faster than it can be read.
        """
        gone = False
        for _ in range(_TRIES):
            sizes = {
                name: size
                for name, size in self._store.sizes(self.folder).items()
                if batch_of(name) is not None
            }
            if files := [self._numbers.pop(name) for name in self._numbers.keys() - sizes.keys()]:
                self.index.forget(files)
            new = {name: sizes[name] for name in sizes.keys() - self._numbers.keys()}
            # A listing can miss what is merged meanwhile; one that has nothing new missed nothing.
            if not new:
                return
            self.index.extend(self._entries(new))
            gone = not new.keys() <= self._numbers.keys()
        if gone:
            raise self._restless()

    def add(self, name: str, places: Iterable[tuple[str, Location]]) -> None:
        """Take in an object that was just written, whose rows are at these places.

        The number of the object is filled in.
        """
        if name in self._numbers:
            return
        entries = list(places)
        number = self._register(name, 0, len(entries), ())
        for key, place in entries:
            self.index.put(bytes.fromhex(key), place._replace(file=number))

    def fetch(self, keys: Array) -> list[FinishedRow | None]:
        """Read the rows of some keys, in their order; None where there is none.

        Raises:
            ObjectCorruptedError: an object does not hold what was written.
            StoreError: an object cannot be read.
        """
        for _ in range(_TRIES):
            try:
                return self._fetch(keys)
            except ObjectMissingError:
                self.sync()
        raise self._restless()

    def small(self, rows: int) -> list[int]:
        """Numbers of the objects, present when last looked, that hold fewer rows than this."""
        return [file for file in self._numbers.values() if self._row_counts[file] < rows]

    def batches_of(self, file: int) -> Sequence[str]:
        """The batches that are whole with an object."""
        return self._batches[file]

    def table(self, file: int, rows: Array) -> pa.Table:
        """Read some rows of a small part, as they are."""
        name = self.names[file]
        with reported_corruption(self._store, name):
            part = open_part(pa.BufferReader(self._store.read(name)))
            return part.read(use_threads=False).take(rows)

    def _fetch(self, keys: Array) -> list[FinishedRow | None]:
        result: list[FinishedRow | None] = [None] * len(keys)
        expected = keys.tobytes().hex()
        found = self.index.find(keys)
        wanted = np.flatnonzero(found.known)
        places = found.places[wanted]
        order = np.lexsort((places["row"], places["file"]))
        ends = np.flatnonzero(np.diff(places["file"][order])) + 1
        for chosen in np.split(order, ends) if len(order) else ():
            file = int(places["file"][chosen[0]])
            with reported_corruption(self._store, self.names[file]):
                rows = self._load(file, places["row"][chosen])
                for position, row in zip(wanted[chosen].tolist(), rows, strict=True):
                    if row.key != expected[32 * position : 32 * position + 32]:
                        raise ValueError("another row")
                    result[position] = row
        return result

    def _entries(self, sizes: dict[str, int]) -> Iterator[tuple[Array, Array]]:
        """Read new objects and register them, except those that are gone already."""

        def contents(name: str) -> Contents | None:
            try:
                with reported_corruption(self._store, name):
                    return part_contents(part_source(self._store, name, sizes[name]))
            except ObjectMissingError:
                return None

        large = [name for name, size in sizes.items() if size > _WHOLE_BYTES]
        for names, readers in ((sizes.keys() - large, STORE_THREADS), (large, _LARGE_READERS)):
            with ThreadPoolExecutor(readers) as pool:
                for name, future in prefetch(pool, contents, sorted(names), 2 * readers):
                    if (read := future.result()) is not None:
                        number = self._register(name, sizes[name], len(read.keys), read.batches)
                        read.places["file"] = number
                        yield read.keys, read.places

    def _register(self, name: str, size: int, rows: int, batches: Sequence[str]) -> int:
        own = batch_of(name)
        number = self._numbers[name] = len(self.names)
        self.names.append(name)
        self._sizes.append(size)
        self._row_counts.append(rows)
        self._batches.append([own] if own else batches)
        self.batches.update(self._batches[-1])
        return number

    def _restless(self) -> StoreError:
        place = self._store.uri_of(self.folder)
        return StoreError(f"{place}: other runs keep replacing objects there: run it again")

    def _load(self, file: int, rows: Array) -> Iterator[FinishedRow]:
        """Read rows of a part; their numbers ascend."""
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
    """Open a part: a small one is read at once, a large one piece by piece."""
    if size <= _WHOLE_BYTES:
        return pa.BufferReader(store.read(name))
    return pa.PythonFile(store.open(name), mode="r")
