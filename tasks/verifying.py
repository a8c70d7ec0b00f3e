"""Whether everything that the last completed run left is there, once, and can be read."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .batch_cache import check_completions
from .errors import (
    ObjectDamagedError,
    ObjectMissingError,
    RecordDamagedError,
    RecordRefusedError,
)
from .export_checks import RUN_AGAIN, Faults, check_answers, check_failures, check_pairs
from .exporting import ALWAYS_EXPORTED, PAIRS, QUARANTINE_JSONL
from .key_index import KEY, Array
from .object_store import ObjectStore
from .outputs import EXPORTS, in_folder
from .parts import ANSWERED_NUMBER, Contents, open_part, part_contents, rows_of
from .records import Answered
from .run_records import RunCounts, RunRecord, last_completed, read_run, require_manifest
from .steps import READERS, ahead
from .storing import MANIFEST, RUNS, PassFolder, batch_of, damage_named, read_keys

_FOLDER = PassFolder()

_WHOLE_BYTES = 1 << 20
"""Parts up to this size are read in one piece."""

_MERGED_READERS = 4
"""Threads that read merged objects: each holds the keys of tens of thousands of rows, as text."""


@dataclass(frozen=True)
class Verified:
    """What came of looking at everything.

    Attributes:
        rows: rows of the last completed run.
        objects: objects that were looked at.
        faults: what is wrong, a line each; empty where all is well.
        is_live: whether a run is at work: then an object can be newer than the others.
    """

    rows: int
    objects: int
    faults: Sequence[str]
    is_live: bool


def verify(store: ObjectStore) -> Verified:
    """Check every object of an output, and every row of its last completed run.

    Reads everything once; keeps row keys only, some 150 bytes a row at most.

    Raises:
        StoreError: there is no output, it has another layout, or it cannot be read now.
    """
    manifest = require_manifest(store)
    faults = Faults(store)
    last = None
    try:
        last = last_completed(store, manifest)
        if last is None:
            faults.add(MANIFEST, "no run has been completed yet", RUN_AGAIN)
    except ObjectDamagedError as error:
        faults.damaged(error)
    sizes = store.sizes()
    keys = _run_keys(store, last, faults) if last else None
    parts = _FOLDER.parts(last.parser) if last else ""
    rows = _StoredRows(parts, np.empty(0, KEY) if keys is None else keys)
    checked = _check_objects(store, sizes, rows, faults)
    if last is not None:
        if keys is not None and len(keys) != last.counts.rows:
            counted = f"{len(keys):,} rows, and the manifest counts {last.counts.rows:,}"
            faults.add(last.keys, counted)
        _check_exports(store, sizes, last.counts, keys, rows, faults)
    exports = sum(name in sizes for name in EXPORTS)
    count = last.counts.rows if last else 0
    return Verified(count, checked + exports + 1, faults.lines(), rows.is_live)


class _StoredRows:
    """Which rows of a run were found while all objects were read.

    Args:
        parts: folder of the parts of the run's parser.
        keys: the run's row keys.

    Attributes:
        parts: that folder.
        is_live: whether a run is at work.
    """

    def __init__(self, parts: str, keys: Array) -> None:
        self.parts = parts
        self.is_live = False
        self._keys, self._places = np.unique(keys, return_inverse=True)
        self._answered = np.zeros(len(self._keys), bool)
        self._stored = np.zeros(len(self._keys), bool)

    def add(self, name: str, read: Contents | RunRecord | None) -> None:
        """Take in what an object holds."""
        if isinstance(read, RunRecord):
            self.is_live = self.is_live or read.is_live
        elif read is not None and name.rpartition("/")[0] == self.parts:
            positions = np.searchsorted(self._keys, read.keys)
            within = positions < len(self._keys)
            within[within] = self._keys[positions[within]] == read.keys[within]
            self._stored[positions[within]] = True
            answered = within & (read.places["kind"] == ANSWERED_NUMBER)
            self._answered[positions[answered]] = True

    @property
    def answered(self) -> Array:
        """Whether the rows have an answer, in dataset order."""
        return self._answered[self._places]

    @property
    def stored(self) -> Array:
        """Whether the rows have an answer or a reason why not, in dataset order."""
        return self._stored[self._places]


def _check_objects(
    store: ObjectStore, sizes: Mapping[str, int], rows: _StoredRows, faults: Faults
) -> int:
    """Read all objects but the exports; returns how many there are."""
    names = [
        *in_folder(sizes, _FOLDER.completions),
        *in_folder(sizes, RUNS),
        *(name for name in in_folder(sizes, _FOLDER.all_parts) if batch_of(name) is not None),
    ]
    merged = {name for name in names if batch_of(name) == ""}
    single = [name for name in names if name not in merged]
    for some, readers in ((single, READERS), (sorted(merged), _MERGED_READERS)):
        with ThreadPoolExecutor(readers) as pool:
            for name, read in ahead(
                pool, lambda name: _read(store, name, sizes[name]), some, 2 * readers
            ):
                with _noted(name, faults):
                    rows.add(name, read.result())
    keys = in_folder(sizes, _FOLDER.keys)
    for name in keys:
        if sizes[name] % KEY.itemsize:
            faults.add(name, "damaged", "delete it and run again")
    return len(names) + len(keys)


@contextmanager
def _noted(name: str, faults: Faults) -> Iterator[None]:
    """Note what is wrong with an object, and go on."""
    try:
        yield
    except ObjectMissingError:
        faults.add(name, "gone while it was looked for", "verify again, a run is at work")
    except ObjectDamagedError as error:
        faults.damaged(error)
    except (RecordDamagedError, RecordRefusedError) as error:
        faults.add(name, str(error), "delete it")


def _read(store: ObjectStore, name: str, size: int) -> Contents | RunRecord | None:
    """Read an object to its end."""
    if name.startswith(f"{RUNS}/"):
        return read_run(store, name)
    if name.startswith(f"{_FOLDER.completions}/"):
        check_completions(name.rpartition("/")[2], store.read(name))
        return None
    with damage_named(store, name):
        return _read_part(store, name, size)


def _read_part(store: ObjectStore, name: str, size: int) -> Contents:
    if size <= _WHOLE_BYTES:
        source = pa.BufferReader(store.read(name))
    else:
        source = pa.PythonFile(store.open(name), mode="r")
    with source:
        contents = part_contents(source)
        part = open_part(source)
        for group in range(part.metadata.num_row_groups):
            table = part.read_row_group(group, use_threads=False)
            table.validate(full=True)
            for row in rows_of(table):
                if isinstance(row, Answered):
                    _ = row.pairs  # or it raises
        return contents


def _run_keys(store: ObjectStore, run: RunRecord, faults: Faults) -> Array | None:
    """The row keys of a run, in dataset order; None where they cannot be read."""
    try:
        return read_keys(store, run.keys)
    except ObjectMissingError:
        faults.add(run.keys, "missing")
    except ObjectDamagedError:
        pass  # told when all keys are looked at
    return None


def _check_exports(
    store: ObjectStore,
    sizes: Mapping[str, int],
    counts: RunCounts,
    keys: Array | None,
    rows: _StoredRows,
    faults: Faults,
) -> None:
    """Check that every row of a completed run is stored, and in the exports once."""
    for name in ALWAYS_EXPORTED:
        if name not in sizes:
            faults.add(name, "missing")
    check_answers(store, sizes, counts.ok, faults)
    if keys is None:
        return
    quarantined = np.zeros(len(keys), bool)
    if QUARANTINE_JSONL in sizes:
        quarantined = check_failures(store, keys, counts.quarantined, faults)
    if PAIRS in sizes:
        check_pairs(store, keys, quarantined, counts.pairs, faults)
    # A later run may have answered what was quarantined when the exports were written.
    failed = rows.stored & ~rows.answered
    for name, what, wrong in (
        (rows.parts, "neither an answer nor a reason why not", ~rows.stored),
        (QUARANTINE_JSONL, "a quarantined row is missing", failed & ~quarantined),
    ):
        if len(found := np.flatnonzero(wrong)):
            faults.add(name, what, place=f"row {found[0]}", count=len(found))
