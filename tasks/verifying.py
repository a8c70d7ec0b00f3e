"""Whether everything that the last completed run left is there, once, and can be read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .batch_cache import check_completions
from .caching import KEY_LENGTH
from .completions import CompletionsDamagedError
from .export_checks import RUN_AGAIN, Faults, check_answers, check_failures, check_pairs
from .exporting import PAIRS, QUARANTINE_JSONL
from .filesystems import ObjectMissingError
from .key_index import Array, KeyIndex, pack_keys
from .object_store import ObjectStore
from .outputs import EXPORTS, Run, in_folder, last_completed, read_run, require_output
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

    Takes about 100 bytes of memory a row, and reads everything once.

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
    rows = _StoredKeys(last.parser if last else "")
    checked = _check_objects(store, sizes, rows, faults)
    if last is not None:
        _check_run(store, sizes, last, rows, faults)
    exports = sum(name in sizes for name in EXPORTS)
    count = last.summary.rows if last and last.summary else 0
    return Verified(count, checked + exports + 1, faults.lines(), rows.is_going)


class _StoredKeys:
    """What was found stored while all objects were read.

    Attributes:
        answered: rows that one configuration of the parser has answers for.
        failed: rows that it could not answer.
        is_going: whether a run is at work.
    """

    def __init__(self, parse: str) -> None:
        self._folders = {f"{PARTS}/{parse}": "answered", f"{QUARANTINE}/{parse}": "failed"}
        self._found: dict[str, list[tuple[Array, Array]]] = {"answered": [], "failed": []}
        self.is_going = False

    def add(self, name: str, read: Contents | Run | None) -> None:
        """Take in what an object holds."""
        if isinstance(read, Run):
            self.is_going = self.is_going or read.is_going
        elif read is not None and (kind := self._folders.get(name.rpartition("/")[0])):
            self._found[kind].append((read.keys, read.places))

    def known(self, kind: str, keys: Array) -> Array:
        """For each of some keys whether it is "answered", or "failed"."""
        index = KeyIndex()
        index.extend(self._found[kind])
        return index.find(keys).known


def _check_objects(
    store: ObjectStore, sizes: Mapping[str, int], rows: _StoredKeys, faults: Faults
) -> int:
    """Read all objects but the exports; returns how many there are."""
    names = [
        *in_folder(sizes, COMPLETIONS),
        *in_folder(sizes, RUNS),
        *(name for folder in (PARTS, QUARANTINE) for name in in_folder(sizes, folder)
          if batch_of(name) is not None),
    ]  # fmt: skip
    with ThreadPoolExecutor(READERS) as pool:
        for name, read in ahead(
            pool, lambda name: _read(store, name, sizes[name]), names, 2 * READERS
        ):
            try:
                rows.add(name, read.result())
            except ObjectMissingError:
                faults.add(name, "gone while it was looked for", "verify again, a run is at work")
            except ObjectDamagedError as error:
                faults.damaged(error)
            except (CompletionsDamagedError, RecordDamagedError, RecordRefusedError) as error:
                faults.add(name, str(error), "delete it")
    keys = in_folder(sizes, KEYS)
    for name in keys:
        if sizes[name] % (KEY_LENGTH // 2):
            faults.add(name, "damaged", "delete it and run again")
    return len(names) + len(keys)


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


def _check_run(
    store: ObjectStore, sizes: Mapping[str, int], run: Run, rows: _StoredKeys, faults: Faults
) -> None:
    """Check that every row of a completed run is stored, and in the exports once."""
    counts = run.summary
    assert counts is not None  # noqa: S101 - it is completed
    if counts.rows != counts.ok + counts.filtered + counts.quarantined:
        faults.add(MANIFEST, f"{counts.rows:,} rows are not the sum of what became of them")
    for name in EXPORTS:
        if name not in sizes:
            faults.add(name, "missing")
    check_answers(store, sizes, counts.ok, faults)
    keys = _run_keys(store, run, counts.rows, faults)
    if keys is None:
        return
    quarantined = np.zeros(len(keys), bool)
    if QUARANTINE_JSONL in sizes:
        quarantined = check_failures(store, keys, counts.quarantined, faults)
    if PAIRS in sizes:
        check_pairs(store, keys, quarantined, counts.pairs, faults)
    # A later run may have answered what was quarantined when the exports were written.
    answered, failed = (rows.known(kind, keys) for kind in ("answered", "failed"))
    for name, what, wrong in (
        (f"{PARTS}/{run.parser}", "neither an answer nor a reason why not", ~answered & ~failed),
        (QUARANTINE_JSONL, "a quarantined row is missing", ~answered & failed & ~quarantined),
    ):
        if len(found := np.flatnonzero(wrong)):
            faults.add(name, what, place=f"row {found[0]}", count=len(found))


def _run_keys(store: ObjectStore, run: Run, rows: int, faults: Faults) -> Array | None:
    """The row keys of a run, in dataset order; None where they cannot be read."""
    name = f"{KEYS}/{run.keys}"
    try:
        keys = pack_keys(read_keys(store, run.keys))
    except ObjectMissingError:
        faults.add(name, "missing")
        return None
    except ObjectDamagedError:
        return None  # noted before
    if len(keys) != rows:
        faults.add(name, f"{len(keys):,} rows, and the manifest counts {rows:,}")
    return keys
