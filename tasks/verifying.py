"""Whether everything that the last completed run left is there, once, and can be read."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .batch_cache import check_completions
from .completions import CompletionsDamagedError
from .export_checks import RUN_AGAIN, Faults, check_answers, check_failures, check_pairs
from .exporting import PAIRS, QUARANTINE_JSONL
from .filesystems import ObjectMissingError
from .key_index import KEY, Array
from .object_store import ObjectStore
from .outputs import EXPORTS, Run, RunCounts, in_folder, last_completed, read_run, require_output
from .parts import Contents, answers_contents, failure_of, open_part, quarantine_contents
from .result_records import RecordDamagedError, RecordRefusedError
from .steps import READERS, ahead
from .storing import (
    COMPLETIONS,
    KEYS,
    MANIFEST,
    PARTS,
    QUARANTINE,
    RUNS,
    ObjectDamagedError,
    batch_of,
    damage_named,
    read_keys,
)

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
        is_going: whether a run is at work: then an object can be newer than the others.
    """

    rows: int
    objects: int
    faults: Sequence[str]
    is_going: bool


def verify(store: ObjectStore) -> Verified:
    """Check every object of an output, and every row of its last completed run.

    Reads everything once; keeps row keys only, some 150 bytes a row at most.

    Raises:
        StoreError: there is no output, it has another layout, or it cannot be read now.
    """
    manifest = require_output(store)
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
    rows = _StoredRows(last.parser if last else "", np.empty(0, KEY) if keys is None else keys)
    checked = _check_objects(store, sizes, rows, faults)
    if last is not None and last.summary is not None:
        _check_counts(last.summary, keys, last.keys, faults)
        _check_exports(store, sizes, last.summary, keys, rows, faults)
    exports = sum(name in sizes for name in EXPORTS)
    count = last.summary.rows if last and last.summary else 0
    return Verified(count, checked + exports + 1, faults.lines(), rows.is_going)


class _StoredRows:
    """Which rows of a run were found while all objects were read.

    Args:
        parse: the label of the run's configuration of the parser.
        keys: the run's row keys.

    Attributes:
        is_going: whether a run is at work.
    """

    def __init__(self, parse: str, keys: Array) -> None:
        self.is_going = False
        self._keys, self._places = np.unique(keys, return_inverse=True)
        self._found = {
            f"{folder}/{parse}": np.zeros(len(self._keys), bool) for folder in (PARTS, QUARANTINE)
        }

    def add(self, name: str, read: Contents | Run | None) -> None:
        """Take in what an object holds."""
        if isinstance(read, Run):
            self.is_going = self.is_going or read.is_going
        elif read is not None and (folder := name.rpartition("/")[0]) in self._found:
            positions = np.searchsorted(self._keys, read.keys)
            within = positions < len(self._keys)
            positions = positions[within]
            hits = self._keys[positions] == read.keys[within]
            self._found[folder][positions[hits]] = True

    def found(self) -> dict[str, Array]:
        """For each folder that was looked at, whether the rows are there, in dataset order."""
        return {folder: found[self._places] for folder, found in self._found.items()}


def _check_objects(
    store: ObjectStore, sizes: Mapping[str, int], rows: _StoredRows, faults: Faults
) -> int:
    """Read all objects but the exports; returns how many there are."""
    names = [
        *in_folder(sizes, COMPLETIONS),
        *in_folder(sizes, RUNS),
        *(name for folder in (PARTS, QUARANTINE) for name in in_folder(sizes, folder)
          if batch_of(name) is not None),
    ]  # fmt: skip
    merged = {name for name in names if batch_of(name) == ""}
    single = [name for name in names if name not in merged]
    for some, readers in ((single, READERS), (sorted(merged), _MERGED_READERS)):
        with ThreadPoolExecutor(readers) as pool:
            for name, read in ahead(
                pool, lambda name: _read(store, name, sizes[name]), some, 2 * readers
            ):
                with _noted(name, faults):
                    rows.add(name, read.result())
    keys = in_folder(sizes, KEYS)
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
    except (CompletionsDamagedError, RecordDamagedError, RecordRefusedError) as error:
        faults.add(name, str(error), "delete it")


def _read(store: ObjectStore, name: str, size: int) -> Contents | Run | None:
    """Read an object to its end."""
    folder, rest = name.split("/", 1)
    if folder == RUNS:
        return read_run(store, name)
    if folder == COMPLETIONS:
        check_completions(rest, store.read(name))
        return None
    with damage_named(store, name):
        return (
            _read_failures(store, name) if folder == QUARANTINE else _read_part(store, name, size)
        )


def _read_failures(store: ObjectStore, name: str) -> Contents:
    data = store.read(name)
    contents = quarantine_contents(data)
    lines = data.splitlines()
    for line in contents.places["row"].tolist():
        failure_of(lines[line])
    return contents


def _read_part(store: ObjectStore, name: str, size: int) -> Contents:
    if size <= _WHOLE_BYTES:
        source = pa.BufferReader(store.read(name))
    else:
        source = pa.PythonFile(store.open(name), mode="r")
    with source:
        contents = answers_contents(source)
        part = open_part(source)
        for group in range(part.metadata.num_row_groups):
            part.read_row_group(group, use_threads=False).validate(full=True)
        return contents


def _run_keys(store: ObjectStore, run: Run, faults: Faults) -> Array | None:
    """The row keys of a run, in dataset order; None where they cannot be read."""
    try:
        return read_keys(store, run.keys)
    except ObjectMissingError:
        faults.add(f"{KEYS}/{run.keys}", "missing")
    except ObjectDamagedError:
        pass  # told when all keys are looked at
    return None


def _check_counts(counts: RunCounts, keys: Array | None, name: str, faults: Faults) -> None:
    """Check that no row of a completed run is missing in its counts."""
    rows = counts.rows
    if rows != counts.ok + counts.filtered + counts.quarantined:
        faults.add(MANIFEST, f"{rows:,} rows are not the sum of what became of them")
    if keys is not None and len(keys) != rows:
        faults.add(f"{KEYS}/{name}", f"{len(keys):,} rows, and the manifest counts {rows:,}")


def _check_exports(
    store: ObjectStore,
    sizes: Mapping[str, int],
    counts: RunCounts,
    keys: Array | None,
    rows: _StoredRows,
    faults: Faults,
) -> None:
    """Check that every row of a completed run is stored, and in the exports once."""
    for name in EXPORTS:
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
    (parts, answered), (_, failed) = rows.found().items()
    for name, what, wrong in (
        (parts, "neither an answer nor a reason why not", ~answered & ~failed),
        (QUARANTINE_JSONL, "a quarantined row is missing", ~answered & failed & ~quarantined),
    ):
        if len(found := np.flatnonzero(wrong)):
            faults.add(name, what, place=f"row {found[0]}", count=len(found))
