"""Checks that the exports of an output contain each row exactly once."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from ..errors import ObjectCorruptedError
from ..object_store.store import ObjectStore
from ..runs.run_record import RunRecord
from ..storing.key_index import Array, pack_keys
from ..storing.layout import ANSWERED_PAIRS, FILTERED, JUDGED
from ..storing.parts import reported_corruption
from .bounded_parquet import bounded_batches
from .export import ALWAYS_EXPORTED
from .pairs_parquet import PAIRS, PAIRS_SCHEMA, ROWS, ROWS_SCHEMA
from .qa_json import QA_JSON, QA_JSONL
from .quarantine_jsonl import QUARANTINE_JSONL
from .trainers.export_record import EXPORT, read_exports

RUN_AGAIN = "run the same command again"


class Findings:
    """The problems of an output; those of one kind in one object are reported in one line."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(
        self, name: str, what: str, remedy: str = RUN_AGAIN, *, where: str = "", count: int = 1
    ) -> None:
        """Add a problem.

        Args:
            name: name of the object.
            what: what is wrong with it.
            remedy: what to do about it.
            where: where in the object the problem occurs first.
            count: how many times it occurs.
        """
        problem = (f"{self._store.uri_of(name)}: {what}", remedy)
        before, first = self._found.get(problem, (0, where))
        self._found[problem] = (before + count, first)

    def add_corrupted(self, error: ObjectCorruptedError) -> None:
        """Add an error whose message already says what to do."""
        self._found[(str(error), "")] = (1, "")

    def lines(self) -> list[str]:
        """One line per problem: the object, what is wrong, what to do."""
        return [
            what
            + (f" ({where}{f' and {count - 1:,} more' if count > 1 else ''})" if where else "")
            + (f"; {remedy}" if remedy else "")
            for (what, remedy), (count, where) in self._found.items()
        ]


def check_exports(
    store: ObjectStore,
    sizes: Mapping[str, int],
    run: RunRecord,
    keys: Array | None,
    findings: Findings,
) -> Array | None:
    """Check that every row of a completed run is exported once.

    Returns:
        For each row of the dataset, whether it is in `quarantine.jsonl`; None without row keys.
    """
    checks, counts = run.parameters.checks, run.counts
    answered, every_pair = counts.ok + counts.filtered, counts.pairs + counts.filtered_pairs
    for name in (*ALWAYS_EXPORTED, *((JUDGED, FILTERED) if checks.are_wanted else ())):
        if name not in sizes:
            findings.add(name, "missing")
    _check_answers(store, sizes, answered, findings)
    for export in read_exports(store):
        names = (f"{EXPORT}/{export.format}/{name}" for name in export.files)
        for name in (name for name in names if name not in sizes):
            findings.add(name, "missing", "export again")
    if keys is None:
        return None
    quarantined = np.zeros(len(keys), bool)
    if QUARANTINE_JSONL in sizes:
        quarantined = _check_failures(store, keys, counts.quarantined, findings)
    expected = {PAIRS: counts.pairs}
    if checks.are_wanted:
        expected |= {FILTERED: counts.filtered_pairs, JUDGED: every_pair}
    if checks.negatives:
        expected[ANSWERED_PAIRS] = every_pair - counts.negatives
    complete = (JUDGED, ANSWERED_PAIRS) if checks.are_wanted else (PAIRS,)
    sums = {
        name: _check_pairs(
            store, name, keys, quarantined, count, findings, has_all=name in complete
        )
        for name, count in expected.items()
        if name in sizes
    }
    split = [sums[name] for name in (PAIRS, FILTERED) if name in sums]
    if JUDGED in sums and len(split) == 2 and sums[JUDGED] != sum(split) % (1 << 64):
        findings.add(PAIRS, f"its pairs and those of {FILTERED} are not those of {JUDGED}")
    if ROWS in sizes:
        _check_rows(store, keys, quarantined, answered, findings)
    return quarantined


def _check_answers(
    store: ObjectStore, sizes: Mapping[str, int], ok: int, findings: Findings
) -> None:
    """Check that `qa.jsonl` has `ok` records, and that `qa.json`, if it exists, has the same."""
    if QA_JSONL not in sizes:
        return
    digest = hashlib.sha256()
    column, count = None, 0
    for count, line in enumerate(store.lines(QA_JSONL), 1):
        digest.update((b",\n" if count > 1 else b"[\n") + line.removesuffix(b"\n"))
        try:
            record = _load(line)
            name = list(record)[-1]  # the output column is the last one
            if not isinstance(record[name], str) or column not in (None, name):
                findings.add(QA_JSONL, "record without the output column", where=f"line {count}")
            column = name
        except (ValueError, TypeError, LookupError, RecursionError):
            findings.add(QA_JSONL, "not a record", where=f"line {count}")
    digest.update(b"\n]\n" if count else b"[]\n")
    _check_count(QA_JSONL, "records", count, ok, findings)
    if QA_JSON in sizes:
        with store.open(QA_JSON) as file:
            same = hashlib.file_digest(file, "sha256").digest() == digest.digest()
        if not same:
            findings.add(QA_JSON, f"its records are not those of {QA_JSONL}")


def _check_failures(store: ObjectStore, keys: Array, count: int, findings: Findings) -> Array:
    """Check that `quarantine.jsonl` has `count` rows, in order and with the right keys.

    Returns:
        For each row of the dataset, whether it is in `quarantine.jsonl`.
    """
    present = np.zeros(len(keys), bool)
    last, questions, number = -1, 0, 0
    for number, line in enumerate(store.lines(QUARANTINE_JSONL), 1):
        where = f"line {number}"
        try:
            record = _load(line)
            row, key = int(record["row"]), bytes.fromhex(record["key"])
            if record["question"] is not None:  # the row itself is answered
                questions += 1
                continue
        except (ValueError, TypeError, LookupError, RecursionError):
            findings.add(QUARANTINE_JSONL, "not the record of a row", where=where)
            continue
        if not last < row < len(keys):
            findings.add(QUARANTINE_JSONL, "row out of order or duplicate", where=where)
            continue
        present[row], last = True, row
        if keys[row : row + 1].tobytes() != key:
            findings.add(QUARANTINE_JSONL, "row with another key than in the dataset", where=where)
    _check_count(QUARANTINE_JSONL, "rows", number - questions, count, findings)
    return present


def _check_pairs(
    store: ObjectStore,
    name: str,
    keys: Array,
    quarantined: Array,
    count: int,
    findings: Findings,
    *,
    has_all: bool,
) -> int:
    """Check that a file has `count` pairs, grouped by row and in order.

    Args:
        store: the output.
        name: the file.
        keys: those of all rows.
        quarantined: for each row, whether it has no answer.
        count: how many pairs it should have.
        findings: where problems are added.
        has_all: whether it has all pairs of its rows.

    Returns:
        A number for the set of its pairs: the sum of one for each, modulo 2^64.
    """
    total = pairs = 0
    last = (-1, 0)
    try:
        with reported_corruption(store, name):
            for table in _batches(store, name, PAIRS_SCHEMA):
                rows, numbers = (table.column(name).to_numpy() for name in ("row", "pair"))
                before = np.concatenate([[last[0]], rows[:-1]])
                number_before = np.concatenate([[last[1]], numbers[:-1]])
                if has_all:
                    is_next, is_first = numbers == number_before + 1, numbers == 0
                else:
                    is_next, is_first = numbers > number_before, numbers >= 0
                follows = np.where(rows == before, is_next, (rows > before) & is_first)
                invalid = {"pair out of order, missing or duplicate": ~follows}
                invalid |= _invalid_rows("pair", table, keys, quarantined)
                _add_rows(name, rows, invalid, findings)
                total += len(table)
                pairs += _sum_of_pairs(rows, numbers)
                last = (rows[-1], numbers[-1])
    except ObjectCorruptedError:
        findings.add(name, "corrupted")
    else:
        _check_count(name, "pairs", total, count, findings)
    return pairs % (1 << 64)


def _sum_of_pairs(rows: Array, numbers: Array) -> int:
    """The sum of a number for each pair: other pairs have another sum."""
    mixed = (rows.astype(np.uint64) << np.uint64(32)) ^ numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # of splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def _check_rows(
    store: ObjectStore, keys: Array, quarantined: Array, count: int, findings: Findings
) -> None:
    """Check that `rows.parquet` has `count` rows, in order."""
    total, last = 0, -1
    try:
        with reported_corruption(store, ROWS):
            for table in _batches(store, ROWS, ROWS_SCHEMA):
                rows = table.column("row").to_numpy()
                before = np.concatenate([[last], rows[:-1]])
                invalid = {"row out of order or duplicate": rows <= before}
                invalid |= _invalid_rows("row", table, keys, quarantined)
                _add_rows(ROWS, rows, invalid, findings)
                total += len(table)
                last = rows[-1]
    except ObjectCorruptedError:
        findings.add(ROWS, "corrupted")
    else:
        _check_count(ROWS, "rows", total, count, findings)


def _invalid_rows(
    what: str, table: pa.RecordBatch, keys: Array, quarantined: Array
) -> dict[str, np.ndarray[Any, Any]]:
    """For each line of a table, whether it cannot be one of the dataset's answered rows."""
    rows = table.column("row").to_numpy()
    row_keys = pack_keys(table.column("key").to_pylist())
    known = (rows >= 0) & (rows < len(keys))
    at = np.where(known, rows, 0)
    of = "" if what == "row" else " of a row"
    return {
        f"{what}{of} that is not in the dataset": ~known,
        f"{what} with another row key than in the dataset": known & (row_keys != keys[at]),
        f"{what}{of} that is in {QUARANTINE_JSONL}": known & quarantined[at],
    }


def _add_rows(
    name: str, rows: Array, invalid: Mapping[str, np.ndarray[Any, Any]], findings: Findings
) -> None:
    for what, where in invalid.items():
        if len(found := np.flatnonzero(where)):
            findings.add(name, what, where=f"row {rows[found[0]]}", count=len(found))


def _batches(store: ObjectStore, name: str, own: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet export, without empty batches; all columns are validated."""
    required = [column for column in ("row", "key", "pair") if column in own.names]
    for batch in bounded_batches(store, name, own):
        if any(batch.column(column).null_count for column in required):
            raise ValueError("missing values")
        if len(batch):
            yield batch


def _check_count(name: str, what: str, found: int, expected: int, findings: Findings) -> None:
    if found != expected:
        findings.add(name, f"{found:,} {what}, but the manifest counts {expected:,}")


def _load(line: bytes) -> dict[str, Any]:
    """Parse a record of an export."""
    if not line.endswith(b"\n"):
        raise ValueError("truncated")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = json.loads(line)  # lone surrogates, which orjson rejects
    if not isinstance(record, dict):
        raise TypeError("not a record")
    return record
