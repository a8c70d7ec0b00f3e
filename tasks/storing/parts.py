"""The format of a part: the answered and quarantined rows of a batch in one Parquet file.

A merged part also holds the keys of its batches. Reading a corrupted part can raise any of
`CORRUPTION_ERRORS`.
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

MAX_PART_ROWS = 65_536
"""Limit against malicious parts: a few kilobytes could claim millions of rows, and fill memory."""

ANSWERED = "ok"
"""`status` of an answered row; the status of a quarantined row is its kind."""

PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("status", pa.string(), False),
        pa.field("written", pa.timestamp("ms", "UTC"), False),
        pa.field("text", pa.string()),  # the raw reply, if there was one
        # answered rows only
        pa.field("parsed", pa.string()),  # as JSON: each parser has its own format
        pa.field("model", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("latency", pa.float64()),
        pa.field("reasoning", pa.string()),
        pa.field("lost", pa.int32()),
        pa.field("style", pa.string()),
        # quarantined rows only
        pa.field("message", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("requests", pa.int32()),
        pa.field("attempt", pa.int32(), False),
        pa.field("row", pa.int64()),
        pa.field("where", pa.string()),
    ]
)
_BATCHES = "batches"
_ROWS_PER_CHUNK = 256
"""Rows held as Python dicts at the same time; a dict takes several times its size in Arrow."""

_STATUSES = pa.array([ANSWERED, *(kind.value for kind in Kind)])
ANSWERED_NUMBER = 0
"""The `kind` of an answered row's location."""

_MAX_ATTEMPTS = 1 << 29
"""Leaves room for further attempts in the column."""

_ANSWER_RANK = 1 << 48
"""Ranks any answer above any failure, whose rank is its attempt number; times are below this."""


@dataclass(frozen=True)
class Contents:
    """What the ledger needs to know about a part.

    Attributes:
        keys: its row keys, an array of `KEY`.
        locations: an array of `LOCATION` with row, rank and kind set.
        batches: of a merged part, the keys of its batches.
    """

    keys: Array
    locations: Array
    batches: Sequence[str]


def rank_of(row: FinishedRow, written: int) -> int:
    """The rank of a stored copy of a row: of several copies, the one with the highest counts.

    Args:
        row: the copy.
        written: when it was written, in milliseconds since 1970, UTC.
    """
    return _ANSWER_RANK + written if isinstance(row, Answered) else row.attempt


def answered_at(ranks: Array) -> Array:
    """When answers with these ranks were written, in milliseconds since 1970, UTC."""
    return ranks - _ANSWER_RANK


def kind_number(row: FinishedRow) -> int:
    """The `kind` of a row's location; see `KINDS`."""
    return ANSWERED_NUMBER if isinstance(row, Answered) else KIND_NUMBERS[row.kind]


KIND_NUMBERS: Mapping[Kind, int] = {kind: number for number, kind in enumerate(Kind, 1)}
KINDS: Sequence[Kind | None] = [None, *Kind]
"""Kinds of quarantined rows by number; None for an answered row."""


def rows_table(rows: Sequence[FinishedRow], written: int) -> pa.Table:
    """Finished rows as Arrow; `written` in milliseconds since 1970, UTC."""
    records = []
    for row in rows:
        values = _answer(row) if isinstance(row, Answered) else _failure(row)
        encodable = {name: _utf8(value) for name, value in values.items()}
        records.append({"key": row.key, "written": written, **encodable})
    return pa.Table.from_pylist(records, schema=PART_SCHEMA)


def part_writer(sink: Any) -> pq.ParquetWriter:
    """Create a part; each table written to it becomes a row group."""
    return pq.ParquetWriter(
        sink,
        PART_SCHEMA,
        compression="zstd",
        use_dictionary=["status", "written", "model", "style", "message"],
        write_statistics=False,
    )


def add_batch_keys(writer: pq.ParquetWriter, batches: Sequence[str]) -> None:
    """Add the keys of its batches to a merged part, before it is closed."""
    writer.add_key_value_metadata({_BATCHES: json.dumps(batches)})


def part_contents(file: BinaryIO | pa.NativeFile) -> Contents:
    """Read only the columns of a part that the ledger needs."""
    part = open_part(file)
    table = part.read(columns=["key", "status", "written", "attempt"], use_threads=False)
    kinds = pc.index_in(table.column("status"), _STATUSES)
    if kinds.null_count:
        raise ValueError("unknown status")
    lengths = pc.binary_length(table.column("key"))
    if len(table) and pc.min_max(lengths).as_py() != {"min": 32, "max": 32}:
        raise ValueError("not row keys")
    keys = [pack_keys(chunk.to_pylist()) for chunk in table.column("key").chunks]
    locations = np.zeros(len(table), LOCATION)
    locations["row"] = np.arange(len(table))
    locations["kind"] = kinds.to_numpy()
    written = table.column("written").cast(pa.int64()).to_numpy()
    if len(table) and not 0 <= written.min() <= written.max() < _ANSWER_RANK:
        raise ValueError("times out of range")
    attempts = table.column("attempt").to_numpy()
    if len(table) and not 0 <= attempts.min() <= attempts.max() <= _MAX_ATTEMPTS:
        raise ValueError("attempts out of range")
    answered = locations["kind"] == ANSWERED_NUMBER
    locations["rank"] = np.where(answered, _ANSWER_RANK + written, attempts)
    batches = json.loads((part.metadata.metadata or {}).get(_BATCHES.encode(), b"[]"))
    packed = np.concatenate(keys) if keys else np.empty(0, KEY)
    return Contents(packed, locations, list(map(str, batches)))


def open_part(file: BinaryIO | pa.NativeFile) -> pq.ParquetFile:
    """Open a part after checking its columns and the number of rows it claims."""
    part = pq.ParquetFile(file, pre_buffer=True)
    if part.metadata.num_rows > MAX_PART_ROWS:
        raise ValueError("too many rows")
    if not part.schema_arrow.equals(PART_SCHEMA):
        raise ValueError("unexpected columns")
    return part


def rows_of(table: pa.Table) -> Iterator[FinishedRow]:
    """The rows of a table read from a part, in order."""
    for chunk in table.to_batches(max_chunksize=_ROWS_PER_CHUNK):
        is_answered = pc.equal(chunk.column("status"), ANSWERED).fill_null(False)
        answers = _answers(chunk.filter(is_answered))
        failures = map(_quarantined, chunk.filter(pc.invert(is_answered)).to_pylist())
        for is_answer in _values(is_answered):
            yield next(answers) if is_answer else next(failures)


def _answers(rows: pa.RecordBatch) -> Iterator[Answered]:
    """Read answered rows by column, which takes a third of the time that dicts take."""
    columns = [_required_column(rows, name) for name in ("key", "parsed", *_ANSWER_COLUMNS)]
    for key, parsed, text, *others in zip(*columns, strict=True):
        yield Answered(key, text, json.loads(parsed), *others)


_ANSWER_COLUMNS = (
    "text",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "latency",
    "reasoning",
    "lost",
    "style",
)
"""In the order of the fields of `Answered`."""


def _required_column(rows: pa.RecordBatch, name: str) -> list[Any]:
    column = rows.column(name)
    if column.null_count:
        raise ValueError(f"row without {name}")
    return _values(column)


def _values(column: pa.Array) -> list[Any]:
    """The values of a column without nulls; by NumPy, which is faster than Arrow's `to_pylist`."""
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return values


def _quarantined(stored: Mapping[str, Any]) -> Quarantined:
    return Quarantined(
        key=stored["key"],
        row=_required(stored, "row"),
        where=_required(stored, "where"),
        kind=Kind(stored["status"]),
        message=_required(stored, "message"),
        status=stored["http_status"],
        attempts=_required(stored, "requests"),
        text=stored["text"],
        attempt=stored["attempt"],
    )


def _required(stored: Mapping[str, Any], name: str) -> Any:
    if stored[name] is None:
        raise ValueError(f"row without {name}")
    return stored[name]


def _answer(row: Answered) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _ANSWER_COLUMNS}
    parsed = json.dumps(row.parsed, ensure_ascii=False)
    return {"status": ANSWERED, "attempt": 0, "parsed": parsed, **values}


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
    """Replace lone surrogates, which JSON replies can contain but Arrow rejects."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def milliseconds(written: float | None) -> int:
    """A time in seconds as it is stored, in milliseconds; by default the current time."""
    return round((time.time() if written is None else written) * 1000)


@contextmanager
def reported_corruption(
    store: ObjectStore, name: str, remedy: str = "delete it and run again"
) -> Iterator[None]:
    """Turn the errors of reading a corrupted object into one that names it and says what to do.

    Raises:
        ObjectCorruptedError: one of `CORRUPTION_ERRORS` was raised in the block.
    """
    try:
        yield
    except CORRUPTION_ERRORS as error:
        raise ObjectCorruptedError(
            f"{store.uri_of(name)} is corrupted ({type(error).__name__}): {remedy}"
        ) from None
