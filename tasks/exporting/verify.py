"""Whether everything that the last completed run left is there, once, and can be read."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..concurrency import STORE_THREADS, prefetch
from ..errors import (
    ObjectCorruptedError,
    ObjectMissingError,
    RecordCorruptedError,
    RecordRefusedError,
)
from ..generating.cache import check_completions
from ..object_store.store import ObjectStore
from ..records import Answered
from ..runs.records import RunRecord, last_completed, read_run
from ..storing.key_index import KEY, Array, KeyIndex
from ..storing.layout import MANIFEST, RUNS, PassFolder, batch_of
from ..storing.parts import (
    ANSWERED_NUMBER,
    Contents,
    open_part,
    part_contents,
    reported_corruption,
    rows_of,
)
from ..storing.row_keys import read_keys
from ..storing.stored_rows import part_source
from .checks import RUN_AGAIN, Faults, check_answers, check_failures, check_pairs
from .export import ALWAYS_EXPORTED, PAIRS, QUARANTINE_JSONL
from .status import EXPORTS, in_folder

_FOLDER = PassFolder()

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
    faults = Faults(store)
    last = None
    try:
        last = last_completed(store)
        if last is None:
            faults.add(MANIFEST, "no run has been completed yet", RUN_AGAIN)
    except ObjectCorruptedError as error:
        faults.corrupted(error)
    sizes = store.sizes()
    keys = _run_keys(store, last, faults) if last else None
    parts = _FOLDER.parts(last.parser) if last else ""
    rows: list[tuple[Array, Array]] = []
    checked, is_live = 0, False
    for name, read in _objects(store, sizes, faults):
        checked += 1
        if isinstance(read, RunRecord):
            is_live = is_live or read.is_live
        elif read is not None and name.rpartition("/")[0] == parts:
            rows.append((read.keys, read.places))
    key_names = in_folder(sizes, _FOLDER.keys)
    for name in key_names:
        if sizes[name] % KEY.itemsize:
            faults.add(name, "corrupted", "delete it and run again")
    if last is not None:
        if keys is not None and len(keys) != last.counts.rows:
            counted = f"{len(keys):,} rows, and the manifest counts {last.counts.rows:,}"
            faults.add(last.keys, counted)
        index = KeyIndex()
        index.extend(rows)
        _check_exports(store, sizes, last, keys, index, faults)
    exports = sum(name in sizes for name in EXPORTS)
    count = last.counts.rows if last else 0
    return Verified(count, checked + len(key_names) + exports + 1, faults.lines(), is_live)


def _objects(
    store: ObjectStore, sizes: Mapping[str, int], faults: Faults
) -> Iterator[tuple[str, Contents | RunRecord | None]]:
    """Read all objects but exports and row keys; gives what the ledger must know of each."""
    names = [
        *in_folder(sizes, _FOLDER.completions),
        *in_folder(sizes, RUNS),
        *(name for name in in_folder(sizes, _FOLDER.all_parts) if batch_of(name) is not None),
    ]
    merged = {name for name in names if batch_of(name) == ""}
    single = [name for name in names if name not in merged]
    for some, readers in ((single, STORE_THREADS), (sorted(merged), _MERGED_READERS)):
        with ThreadPoolExecutor(readers) as pool:
            for name, read in prefetch(
                pool, lambda name: _read(store, name, sizes[name]), some, 2 * readers
            ):
                found = None
                with _noted(name, faults):
                    found = read.result()
                yield name, found


@contextmanager
def _noted(name: str, faults: Faults) -> Iterator[None]:
    """Note what is wrong with an object, and go on."""
    try:
        yield
    except ObjectMissingError:
        faults.add(name, "gone while it was looked for", "verify again, a run is at work")
    except ObjectCorruptedError as error:
        faults.corrupted(error)
    except (RecordCorruptedError, RecordRefusedError) as error:
        faults.add(name, str(error), "delete it")


def _read(store: ObjectStore, name: str, size: int) -> Contents | RunRecord | None:
    """Read an object to its end."""
    if name.startswith(f"{RUNS}/"):
        return read_run(store, name)
    if name.startswith(f"{_FOLDER.completions}/"):
        check_completions(name, store.read(name))
        return None
    with reported_corruption(store, name):
        return _read_part(store, name, size)


def _read_part(store: ObjectStore, name: str, size: int) -> Contents:
    with part_source(store, name, size) as source:
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
    except ObjectCorruptedError:
        pass  # told when all keys are looked at
    return None


def _check_exports(
    store: ObjectStore,
    sizes: Mapping[str, int],
    run: RunRecord,
    keys: Array | None,
    index: KeyIndex,
    faults: Faults,
) -> None:
    """Check that every row of a completed run is stored, and in the exports once."""
    for name in ALWAYS_EXPORTED:
        if name not in sizes:
            faults.add(name, "missing")
    check_answers(store, sizes, run.counts.ok, faults)
    if keys is None:
        return
    quarantined = np.zeros(len(keys), bool)
    if QUARANTINE_JSONL in sizes:
        quarantined = check_failures(store, keys, run.counts.quarantined, faults)
    if PAIRS in sizes:
        check_pairs(store, keys, quarantined, run.counts.pairs, faults)
    # A later run may have answered what was quarantined when the exports were written.
    found = index.find(keys)
    failed = found.known & (found.places["kind"] != ANSWERED_NUMBER)
    for name, what, wrong in (
        (_FOLDER.parts(run.parser), "neither an answer nor a reason why not", ~found.known),
        (QUARANTINE_JSONL, "a quarantined row is missing", failed & ~quarantined),
    ):
        if len(rows := np.flatnonzero(wrong)):
            faults.add(name, what, place=f"row {rows[0]}", count=len(rows))
