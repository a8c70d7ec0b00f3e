"""Verifies that every row of the last completed run is stored and exported, once and readable."""

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
from ..parsing.parse import ANSWER
from ..records import Answered
from ..runs.run_counts import RunCounts
from ..runs.run_record import RunRecord, last_completed, read_run
from ..storing.key_index import KEY, Array, KeyIndex
from ..storing.layout import (
    ANSWERS,
    COMPLETIONS,
    MANIFEST,
    RUNS,
    PassFolder,
    batch_of,
    check_folders,
    check_name,
)
from ..storing.layout import PAIRS as PAIRS_PASS
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
from .output_status import EXPORTS, in_folder
from .quarantine_jsonl import QUARANTINE_JSONL
from .verify_exports import RUN_AGAIN, Findings, check_exports

_MAIN = PassFolder(PAIRS_PASS)
_ANSWERS = PassFolder(ANSWERS)
_PAIRS_FOLDERS = (_MAIN, _ANSWERS)
"""Passes whose answers are QA pairs; those of a check are what its verdict takes."""

_Stored = dict[str, list[tuple[Array, Array]]]
"""Folder of parts -> the row keys and locations in each of its parts."""

_MERGED_READERS = 4
"""Threads that read merged parts: each holds the keys of tens of thousands of rows as strings."""


@dataclass(frozen=True)
class Verification:
    """The result of verifying an output.

    Attributes:
        rows: rows of the last completed run.
        ok: those with an answer.
        filtered: those with an answer of which no pair is kept.
        quarantined: those without.
        objects: number of objects that were checked.
        problems: one line per problem; empty if there are none.
        is_live: whether a run is in progress: then some objects can be newer than others.
    """

    rows: int
    ok: int
    filtered: int
    quarantined: int
    objects: int
    problems: Sequence[str]
    is_live: bool


def verify(store: ObjectStore) -> Verification:
    """Check every object of an output, and every row of its last completed run.

    Reads everything once. Only row keys are held in memory, at most about 150 bytes per row.

    Raises:
        StoreError: there is no output, it has another layout, or it cannot be read now.
    """
    findings = Findings(store)
    last = _last_run(store, findings)
    sizes = store.sizes()
    keys = _read_keys(store, last.keys, findings) if last else None
    checks = check_folders(sizes)
    folders = (*_PAIRS_FOLDERS, *checks)
    stored: _Stored = {
        _MAIN.parts(last.parser if last else ""): [],
        _ANSWERS.parts(ANSWER.label): [],
        **{folder.all_parts: [] for folder in checks},  # whatever their parsers
    }
    count, is_live = 0, False
    for name, read in _objects(store, sizes, folders, findings):
        count += 1
        if isinstance(read, RunRecord):
            is_live = is_live or read.is_live
        elif read is not None:
            parts = name.rpartition("/")[0]
            all_parts = parts.rpartition("/")[0]
            if (found := stored.get(parts, stored.get(all_parts))) is not None:
                found.append((read.keys, read.locations))
    key_names = [name for folder in folders for name in in_folder(sizes, folder.keys)]
    for name in key_names:
        if sizes[name] % KEY.itemsize:
            findings.add(name, "corrupted", "delete it and run again")
    if last is not None:
        _check_run(store, sizes, last, keys, stored, findings)
    exports = sum(name in sizes for name in EXPORTS)
    counts = last.counts if last else RunCounts()
    return Verification(
        rows=counts.rows,
        ok=counts.ok,
        filtered=counts.filtered,
        quarantined=counts.quarantined,
        objects=count + len(key_names) + exports + 1,  # the manifest
        problems=findings.lines(),
        is_live=is_live,
    )


def _last_run(store: ObjectStore, findings: Findings) -> RunRecord | None:
    """The last completed run; None if there is none, or if its record cannot be read."""
    try:
        last = last_completed(store)
    except ObjectCorruptedError as error:
        findings.add_corrupted(error)
        return None
    if last is None:
        findings.add(MANIFEST, "no run has completed yet", RUN_AGAIN)
    return last


def _objects(
    store: ObjectStore,
    sizes: Mapping[str, int],
    folders: Sequence[PassFolder],
    findings: Findings,
) -> Iterator[tuple[str, Contents | RunRecord | None]]:
    """Read all completions, run records and parts; yields what `verify` needs to know of each."""
    names = [
        *(name for folder in folders for name in in_folder(sizes, folder.completions)),
        *in_folder(sizes, RUNS),
        *(
            name
            for folder in folders
            for name in in_folder(sizes, folder.all_parts)
            if batch_of(name) is not None
        ),
    ]
    merged = {name for name in names if batch_of(name) == ""}
    single = [name for name in names if name not in merged]
    for group, readers in ((single, STORE_THREADS), (sorted(merged), _MERGED_READERS)):
        with ThreadPoolExecutor(readers) as pool:
            for name, read in prefetch(
                pool, lambda name: _read(store, name, sizes[name]), group, 2 * readers
            ):
                contents = None
                with _problems_added(name, findings):
                    contents = read.result()
                yield name, contents


@contextmanager
def _problems_added(name: str, findings: Findings) -> Iterator[None]:
    """Add an error in the block to the findings, and suppress it."""
    try:
        yield
    except ObjectMissingError:
        findings.add(name, "removed during verification", "verify again; a run is in progress")
    except ObjectCorruptedError as error:
        findings.add_corrupted(error)
    except (RecordCorruptedError, RecordRefusedError) as error:
        findings.add(name, str(error), "delete it")


def _read(store: ObjectStore, name: str, size: int) -> Contents | RunRecord | None:
    """Read an object completely."""
    if name.startswith(f"{RUNS}/"):
        return read_run(store, name)
    if name.rpartition("/")[0].endswith(f"/{COMPLETIONS}"):
        check_completions(name, store.read(name))
        return None
    with reported_corruption(store, name):
        return _read_part(store, name, size)


def _read_part(store: ObjectStore, name: str, size: int) -> Contents:
    has_pairs = name.startswith(tuple(f"{folder.name}/" for folder in _PAIRS_FOLDERS))
    with part_source(store, name, size) as source:
        contents = part_contents(source)
        part = open_part(source)
        for group in range(part.metadata.num_row_groups):
            table = part.read_row_group(group, use_threads=False)
            table.validate(full=True)
            for row in rows_of(table):
                if isinstance(row, Answered) and has_pairs:
                    _ = row.pairs  # raises if they are invalid
        return contents


def _check_run(
    store: ObjectStore,
    sizes: Mapping[str, int],
    run: RunRecord,
    keys: Array | None,
    stored: _Stored,
    findings: Findings,
) -> None:
    """Check that every row of each pass of a completed run is stored, and exported once."""
    if keys is not None and len(keys) != run.counts.rows:
        counted = f"{len(keys):,} rows, but the manifest counts {run.counts.rows:,}"
        findings.add(run.keys, counted)
    quarantined = check_exports(store, sizes, run, keys, findings)
    if keys is not None and quarantined is not None:
        parts = _MAIN.parts(run.parser)
        index = _index(stored[parts])
        _check_stored(parts, "row", keys, index, findings)
        found = index.find(keys)
        failed = found.known & (found.locations["kind"] != ANSWERED_NUMBER)
        # Not the reverse: a later run may have answered rows that were quarantined at the export.
        unlisted = failed & ~quarantined
        _add_all(QUARANTINE_JSONL, "quarantined row missing", "row", unlisted, findings)
    made = sorted({check_name(check) for check in run.parameters.checks.passes})
    further = [(folder, folder.all_parts, "request") for folder in map(PassFolder, made)]
    if run.parameters.asking.answer == "separately":
        further.insert(0, (_ANSWERS, _ANSWERS.parts(ANSWER.label), "question"))
    for folder, parts, unit in further:
        asked = _read_keys(store, folder.keys_of(run.keys), findings) if parts in stored else None
        if asked is not None:
            _check_stored(parts, unit, asked, _index(stored[parts]), findings)


def _index(rows: list[tuple[Array, Array]]) -> KeyIndex:
    index = KeyIndex()
    index.extend(rows)
    return index


def _read_keys(store: ObjectStore, name: str, findings: Findings) -> Array | None:
    """The row keys of a pass, in the order of its rows; None if they cannot be read."""
    try:
        return read_keys(store, name)
    except ObjectMissingError:
        findings.add(name, "missing")
    except ObjectCorruptedError:
        pass  # reported when the sizes of all keys are checked
    return None


def _check_stored(folder: str, unit: str, keys: Array, index: KeyIndex, findings: Findings) -> None:
    """Check that every row of a pass is stored."""
    missing = ~index.find(keys).known
    _add_all(folder, f"{unit} neither answered nor quarantined", unit, missing, findings)


def _add_all(name: str, what: str, unit: str, invalid: Array, findings: Findings) -> None:
    if len(rows := np.flatnonzero(invalid)):
        findings.add(name, what, where=f"{unit} {rows[0]}", count=len(rows))
