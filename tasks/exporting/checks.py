"""Whether the exports of an output hold each row once: what `exporting` wrote, read again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ObjectCorruptedError
from ..object_store.store import ObjectStore
from ..storing.key_index import Array, pack_keys
from ..storing.parts import reported_corruption
from .export import PAIRS, PAIRS_SCHEMA, QA_JSON, QA_JSONL, QUARANTINE_JSONL

RUN_AGAIN = "run the same command again"

_BYTES_AT_ONCE = 1 << 20


class Faults:
    """What is wrong with an output; faults of one kind in one object are told in one line."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(
        self, name: str, what: str, remedy: str = RUN_AGAIN, *, place: str = "", count: int = 1
    ) -> None:
        """Note that something is wrong, `count` times, at this place first."""
        fault = (f"{self._store.uri_of(name)}: {what}", remedy)
        before, first = self._found.get(fault, (0, place))
        self._found[fault] = (before + count, first)

    def corrupted(self, error: ObjectCorruptedError) -> None:
        """Note an error that says itself what to do."""
        self._found[(str(error), "")] = (1, "")

    def lines(self) -> list[str]:
        """Each fault: the object, what is wrong, what to do."""
        return [
            what
            + (f" ({place}{f' and {count - 1:,} more' if count > 1 else ''})" if place else "")
            + (f"; {remedy}" if remedy else "")
            for (what, remedy), (count, place) in self._found.items()
        ]


def check_answers(store: ObjectStore, sizes: Mapping[str, int], ok: int, faults: Faults) -> None:
    """Check that `qa.jsonl` has so many records, and `qa.json`, if there is one, the same."""
    if QA_JSONL not in sizes:
        return
    digest = hashlib.sha256()
    column, count = None, 0
    for count, line in enumerate(store.lines(QA_JSONL), 1):
        digest.update((b",\n" if count > 1 else b"[\n") + line.removesuffix(b"\n"))
        try:
            record = _load(line)
            name = list(record)[-1]  # an export appends the output column
            if not isinstance(record[name], str) or column not in (None, name):
                faults.add(QA_JSONL, "a record without the output column", place=f"line {count}")
            column = name
        except (ValueError, TypeError, LookupError, RecursionError):
            faults.add(QA_JSONL, "not a record", place=f"line {count}")
    digest.update(b"\n]\n" if count else b"[]\n")
    _check_count(QA_JSONL, "records", count, ok, faults)
    if QA_JSON in sizes:
        with store.open(QA_JSON) as file:
            same = hashlib.file_digest(file, "sha256").digest() == digest.digest()
        if not same:
            faults.add(QA_JSON, f"other records than in {QA_JSONL}")


def check_failures(store: ObjectStore, keys: Array, count: int, faults: Faults) -> Array:
    """Check that `quarantine.jsonl` has so many rows, each where and what it should be.

    Returns for each row of the dataset whether it is there.
    """
    there = np.zeros(len(keys), bool)
    last, number = -1, 0
    for number, line in enumerate(store.lines(QUARANTINE_JSONL), 1):
        place = f"line {number}"
        try:
            told = _load(line)
            row, key = int(told["row"]), bytes.fromhex(told["key"])
        except (ValueError, TypeError, LookupError, RecursionError):
            faults.add(QUARANTINE_JSONL, "not the record of a row", place=place)
            continue
        if not last < row < len(keys):
            faults.add(QUARANTINE_JSONL, "a row out of order, or twice", place=place)
            continue
        there[row], last = True, row
        if keys[row : row + 1].tobytes() != key:
            faults.add(QUARANTINE_JSONL, "not the row that the dataset has there", place=place)
    _check_count(QUARANTINE_JSONL, "rows", number, count, faults)
    return there


def check_pairs(
    store: ObjectStore, keys: Array, quarantined: Array, count: int, faults: Faults
) -> None:
    """Check that `pairs.parquet` has so many pairs, those of each row together and in order."""
    total = 0
    last = (-1, 0)
    try:
        with reported_corruption(store, PAIRS):
            for table in _pairs(store):
                rows, numbers = (table.column(name).to_numpy() for name in ("row", "pair"))
                own = pack_keys(table.column("key").to_pylist())
                before = np.concatenate([[last[0]], rows[:-1]])
                number_before = np.concatenate([[last[1]], numbers[:-1]])
                follows = np.where(
                    rows == before,
                    numbers == number_before + 1,
                    (rows > before) & (numbers == 0),
                )
                known = (rows >= 0) & (rows < len(keys))
                at = np.where(known, rows, 0)
                for what, right in {
                    "a pair out of order, missing or twice": follows,
                    "a pair of a row that the dataset does not have": known,
                    "a pair of another row than the dataset has there": ~known | (own == keys[at]),
                    f"a pair of a row that is in {QUARANTINE_JSONL}": ~known | ~quarantined[at],
                }.items():
                    if len(wrong := np.flatnonzero(~right)):
                        first = f"row {rows[wrong[0]]}"
                        faults.add(PAIRS, what, place=first, count=len(wrong))
                total += len(table)
                last = (rows[-1], numbers[-1])
    except ObjectCorruptedError:
        faults.add(PAIRS, "corrupted")
    else:
        _check_count(PAIRS, "pairs", total, count, faults)


def _pairs(store: ObjectStore) -> Iterator[pa.Table]:
    """The row groups that hold pairs, read whole."""
    with store.open(PAIRS) as source:
        file = pq.ParquetFile(pa.PythonFile(source, mode="r"), pre_buffer=True)
        if not file.schema_arrow.equals(PAIRS_SCHEMA):
            raise ValueError("columns of another kind")
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            table.validate(full=True)
            if any(table.column(name).null_count for name in ("row", "key", "pair")):
                raise ValueError("values are missing")
            if len(table):
                yield table


def _check_count(name: str, what: str, found: int, expected: int, faults: Faults) -> None:
    if found != expected:
        faults.add(name, f"{found:,} {what}, and the manifest counts {expected:,}")


def _load(line: bytes) -> dict[str, Any]:
    """A record as `exporting` writes it."""
    if not line.endswith(b"\n"):
        raise ValueError("cut off")
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = json.loads(line)  # half a surrogate pair is valid JSON to others
    if not isinstance(record, dict):
        raise TypeError("no record")
    return record
