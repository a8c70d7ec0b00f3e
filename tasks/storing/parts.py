"""How finished rows are written: answered and failed ones of a batch in one Parquet file.

A merged part remembers the batches it is of. Reading raises whatever corrupted bytes cause;
`CORRUPTION_ERRORS` has all of it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ObjectCorruptedError
from ..object_store.store import ObjectStore
from ..records import Answered, FinishedRow, Kind, Quarantined
from .key_index import KEY, LOCATION, Array, pack_keys

CORRUPTION_ERRORS = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
)

MOST_ROWS = 65_536
"""Of a part: a planted one of some kilobytes could claim millions, and fill the memory."""

ANSWERED = "ok"
"""`status` of an answered row; that of a quarantined one is its kind."""

PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("status", pa.string(), False),
        pa.field("written", pa.timestamp("ms", "UTC"), False),
        pa.field("text", pa.string()),  # the raw reply, where there was one
        # of an answered row
        pa.field("parsed", pa.string()),  # as JSON: each parser has a form of its own
        pa.field("model", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("latency", pa.float64()),
        # of a quarantined row
        pa.field("message", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("requests", pa.int32()),
        pa.field("attempt", pa.int32(), False),
        pa.field("row", pa.int64()),
        pa.field("where", pa.string()),
    ]
)
_BATCHES = "batches"
_ROWS_AT_ONCE = 256
"""Rows that are Python dicts at the same time; they take several times their bytes in Arrow."""

_STATUSES = pa.array([ANSWERED, *(kind.value for kind in Kind)])
ANSWERED_NUMBER = 0
"""The `kind` of an answered row's place."""

_MOST_ATTEMPTS = 1 << 29
"""Further attempts must have room in the column."""

_ANSWER_RANK = 1 << 48
"""Any answer beats any failure, whose rank is its attempt number; times stay below this."""


@dataclass(frozen=True)
class Contents:
    """What the ledger must know of a part.

    Attributes:
        keys: its row keys, an array of `KEY`.
        places: an array of `LOCATION` with row, rank and kind set.
        batches: the batches a merged one is of.
    """

    keys: Array
    places: Array
    batches: Sequence[str]


def rank_of(row: FinishedRow, written: int) -> int:
    """What decides between two stored copies of a row; `written` in milliseconds since 1970."""
    return _ANSWER_RANK + written if isinstance(row, Answered) else row.attempt


def answered_at(ranks: Array) -> Array:
    """When rows with these ranks were answered, in milliseconds since 1970, UTC."""
    return ranks - _ANSWER_RANK


def kind_number(row: FinishedRow) -> int:
    """How it is noted in a place what became of a row."""
    return ANSWERED_NUMBER if isinstance(row, Answered) else KIND_NUMBERS[row.kind]


KIND_NUMBERS: Mapping[Kind, int] = {kind: number for number, kind in enumerate(Kind, 1)}
KINDS: Sequence[Kind | None] = [None, *Kind]
"""Why a row has no answer, by number; None for an answered one."""


def rows_table(rows: Sequence[FinishedRow], written: int) -> pa.Table:
    """Finished rows as Arrow; `written` in milliseconds since 1970, UTC."""
    records = []
    for row in rows:
        told = _answer(row) if isinstance(row, Answered) else _failure(row)
        plain = {name: _utf8(value) for name, value in told.items()}
        records.append({"key": row.key, "written": written, **plain})
    return pa.Table.from_pylist(records, schema=PART_SCHEMA)


def part_writer(sink: Any) -> pq.ParquetWriter:
    """Begin a part; each table that is written to it becomes a row group."""
    return pq.ParquetWriter(
        sink,
        PART_SCHEMA,
        compression="zstd",
        use_dictionary=["status", "written", "model", "message"],
        write_statistics=False,
    )


def name_batches(writer: pq.ParquetWriter, batches: Sequence[str]) -> None:
    """Make a merged part remember its batches, before it is closed."""
    writer.add_key_value_metadata({_BATCHES: json.dumps(batches)})


def part_contents(file: BinaryIO | pa.NativeFile) -> Contents:
    """Read keys, times and what became of the rows of a part, and nothing else of it."""
    part = open_part(file)
    table = part.read(columns=["key", "status", "written", "attempt"], use_threads=False)
    kinds = pc.index_in(table.column("status"), _STATUSES)
    if kinds.null_count:
        raise ValueError("rows of unknown status")
    lengths = pc.binary_length(table.column("key"))
    if len(table) and pc.min_max(lengths).as_py() != {"min": 32, "max": 32}:
        raise ValueError("not row keys")
    keys = [pack_keys(chunk.to_pylist()) for chunk in table.column("key").chunks]
    places = np.zeros(len(table), LOCATION)
    places["row"] = np.arange(len(table))
    places["kind"] = kinds.to_numpy()
    written = table.column("written").cast(pa.int64()).to_numpy()
    attempts = table.column("attempt").to_numpy()
    if len(table) and not 0 <= attempts.min() <= attempts.max() <= _MOST_ATTEMPTS:
        raise ValueError("attempts out of range")
    answered = places["kind"] == ANSWERED_NUMBER
    places["rank"] = np.where(answered, _ANSWER_RANK + written, attempts)
    batches = json.loads((part.metadata.metadata or {}).get(_BATCHES.encode(), b"[]"))
    packed = np.concatenate(keys) if keys else np.empty(0, KEY)
    return Contents(packed, places, list(map(str, batches)))


def open_part(file: BinaryIO | pa.NativeFile) -> pq.ParquetFile:
    """Open a part that has the columns it must have, and no more rows than it can have."""
    part = pq.ParquetFile(file, pre_buffer=True)
    if part.metadata.num_rows > MOST_ROWS:
        raise ValueError("more rows than a part has")
    if not part.schema_arrow.equals(PART_SCHEMA):
        raise ValueError("columns of another kind")
    return part


def rows_of(table: pa.Table) -> Iterator[FinishedRow]:
    """The rows of a part's table, in order."""
    for piece in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for stored in piece.to_pylist():
            yield _row_of(stored)


def _row_of(stored: Mapping[str, Any]) -> FinishedRow:
    if stored["status"] == ANSWERED:
        answer = {name: _given(stored, name) for name in _ANSWER_COLUMNS}
        return Answered(key=stored["key"], parsed=json.loads(_given(stored, "parsed")), **answer)
    return Quarantined(
        key=stored["key"],
        row=_given(stored, "row"),
        where=_given(stored, "where"),
        kind=Kind(stored["status"]),
        message=_given(stored, "message"),
        status=stored["http_status"],
        attempts=_given(stored, "requests"),
        text=stored["text"],
        attempt=stored["attempt"],
    )


_ANSWER_COLUMNS = ("text", "model", "prompt_tokens", "completion_tokens", "latency")


def _given(stored: Mapping[str, Any], name: str) -> Any:
    if stored[name] is None:
        raise ValueError(f"a row without {name}")
    return stored[name]


def _answer(row: Answered) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in _ANSWER_COLUMNS}
    parsed = json.dumps(row.parsed, ensure_ascii=False)
    return {"status": ANSWERED, "attempt": 0, "parsed": parsed, **told}


def _failure(row: Quarantined) -> dict[str, Any]:
    return {
        "status": row.kind.value,
        "attempt": row.attempt,
        "text": row.text,
        "message": row.message,
        "http_status": row.status,
        "requests": row.attempts,
        "row": row.row,
        "where": row.where,
    }


def _utf8(value: Any) -> Any:
    """Arrow refuses half a surrogate pair, which JSON replies can hold."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def milliseconds(written: float | None) -> int:
    """A time as it is stored; by default now."""
    return round((time.time() if written is None else written) * 1000)


@contextmanager
def reported_corruption(
    store: ObjectStore, name: str, remedy: str = "delete it, and run again"
) -> Iterator[None]:
    """Say which object is corrupted, and what to do, where it does not hold what was written."""
    try:
        yield
    except CORRUPTION_ERRORS as error:
        raise ObjectCorruptedError(
            f"{store.uri_of(name)} is corrupted ({type(error).__name__}): {remedy}"
        ) from None
