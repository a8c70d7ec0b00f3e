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
from ..runs.run_record import RunCounts, RunRecord, last_completed, read_run
from ..storing.key_index import KEY, Array, KeyIndex
from ..storing.layout import (
    ANSWERED_PAIRS,
    ANSWERS,
    COMPLETIONS,
    FILTERED,
    JUDGED,
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
from .export import ALWAYS_EXPORTED
from .output_status import EXPORTS, in_folder
from .pairs_parquet import PAIRS, ROWS
from .quarantine_jsonl import QUARANTINE_JSONL
from .trainers.export_record import EXPORT, read_exports
from .verify_exports import (
    RUN_AGAIN,
    Findings,
    check_answers,
    check_failures,
    check_pairs,
    check_rows,
)

_MAIN = PassFolder(PAIRS_PASS)
_ANSWERS = PassFolder(ANSWERS)
_PAIRS_FOLDERS = (_MAIN, _ANSWERS)
"""Passes whose answers are QA pairs; those of a check are what its verdict takes."""

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
    last = None
    try:
        last = last_completed(store)
        if last is None:
            findings.add(MANIFEST, "no run has completed yet", RUN_AGAIN)
    except ObjectCorruptedError as error:
        findings.add_corrupted(error)
    sizes = store.sizes()
    keys = _read_keys(store, last.keys, findings) if last else None
    answers = _ANSWERS.parts(ANSWER.label)
    rows: dict[str, list[tuple[Array, Array]]] = {answers: []}
    parts = _MAIN.parts(last.parser) if last else ""
    rows[parts] = []
    checks = check_folders(sizes)
    folders = (*_PAIRS_FOLDERS, *checks)
    rows |= {folder.all_parts: [] for folder in checks}  # whatever their parsers
    checked, is_live = 0, False
    for name, read in _objects(store, sizes, folders, findings):
        checked += 1
        if isinstance(read, RunRecord):
            is_live = is_live or read.is_live
        elif read is not None:
            folder = name.rpartition("/")[0]
            of_check = folder.rpartition("/")[0]
            if (found := rows.get(folder, rows.get(of_check))) is not None:
                found.append((read.keys, read.locations))
    key_names = [name for folder in folders for name in in_folder(sizes, folder.keys)]
    for name in key_names:
        if sizes[name] % KEY.itemsize:
            findings.add(name, "corrupted", "delete it and run again")
    if last is not None:
        if keys is not None and len(keys) != last.counts.rows:
            counted = f"{len(keys):,} rows, but the manifest counts {last.counts.rows:,}"
            findings.add(last.keys, counted)
        _check_exports(store, sizes, last, keys, _index(rows[parts]), findings)
        if last.parameters.asking.answer == "separately":
            questions = _read_keys(store, _ANSWERS.keys_of(last.keys), findings)
            if questions is not None:
                _check_stored(answers, "question", questions, _index(rows[answers]), findings)
        made = set(map(check_name, last.parameters.checks.passes))
        for check in (each for each in checks if each.name in made):
            asked = _read_keys(store, check.keys_of(last.keys), findings)
            if asked is not None:
                index = _index(rows[check.all_parts])
                _check_stored(check.all_parts, "request", asked, index, findings)
    exports = sum(name in sizes for name in EXPORTS)
    counts = last.counts if last else RunCounts()
    return Verification(
        rows=counts.rows,
        ok=counts.ok,
        filtered=counts.filtered,
        quarantined=counts.quarantined,
        objects=checked + len(key_names) + exports + 1,  # the manifest
        problems=findings.lines(),
        is_live=is_live,
    )


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


def _check_exports(
    store: ObjectStore,
    sizes: Mapping[str, int],
    run: RunRecord,
    keys: Array | None,
    index: KeyIndex,
    findings: Findings,
) -> None:
    """Check that every row of a completed run is stored, and exported once."""
    checks, counts = run.parameters.checks, run.counts
    answered, every_pair = counts.ok + counts.filtered, counts.pairs + counts.filtered_pairs
    for name in (*ALWAYS_EXPORTED, *((JUDGED, FILTERED) if checks.are_wanted else ())):
        if name not in sizes:
            findings.add(name, "missing")
    check_answers(store, sizes, answered, findings)
    for export in read_exports(store):
        names = (f"{EXPORT}/{export.format}/{name}" for name in export.files)
        for name in (name for name in names if name not in sizes):
            findings.add(name, "missing", "export again")
    if keys is None:
        return
    quarantined = np.zeros(len(keys), bool)
    if QUARANTINE_JSONL in sizes:
        quarantined = check_failures(store, keys, run.counts.quarantined, findings)
    expected = {PAIRS: counts.pairs}
    if checks.are_wanted:
        expected |= {FILTERED: counts.filtered_pairs, JUDGED: every_pair}
    if checks.negatives:
        expected[ANSWERED_PAIRS] = every_pair - counts.negatives
    complete = (JUDGED, ANSWERED_PAIRS) if checks.are_wanted else (PAIRS,)
    sums = {
        name: check_pairs(store, name, keys, quarantined, count, findings, has_all=name in complete)
        for name, count in expected.items()
        if name in sizes
    }
    split = [sums[name] for name in (PAIRS, FILTERED) if name in sums]
    if JUDGED in sums and len(split) == 2 and sums[JUDGED] != sum(split) % (1 << 64):
        findings.add(PAIRS, f"its pairs and those of {FILTERED} are not those of {JUDGED}")
    if ROWS in sizes:
        check_rows(store, keys, quarantined, answered, findings)
    # A later run may have answered rows that were quarantined when the exports were written.
    _check_stored(_MAIN.parts(run.parser), "row", keys, index, findings)
    found = index.find(keys)
    failed = found.known & (found.locations["kind"] != ANSWERED_NUMBER)
    _add_all(QUARANTINE_JSONL, "quarantined row missing", "row", failed & ~quarantined, findings)


def _check_stored(folder: str, unit: str, keys: Array, index: KeyIndex, findings: Findings) -> None:
    """Check that every row of a pass is stored."""
    missing = ~index.find(keys).known
    _add_all(folder, f"{unit} neither answered nor quarantined", unit, missing, findings)


def _add_all(name: str, what: str, unit: str, invalid: Array, findings: Findings) -> None:
    if len(rows := np.flatnonzero(invalid)):
        findings.add(name, what, where=f"{unit} {rows[0]}", count=len(rows))
