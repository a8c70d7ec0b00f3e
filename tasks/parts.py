"""How finished rows are written: answers as Parquet, quarantined rows as JSON lines.

Merged objects of both kinds remember the batches they are of. Reading raises whatever damaged
bytes cause; `DAMAGE` has all of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .key_index import KEY, PLACE, Array, pack_keys
from .records import Answered, Kind, QAPair, Quarantined

DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
)

_PAIR = pa.struct(
    [pa.field("question", pa.string(), False), pa.field("answer", pa.string(), False)]
)
_ANSWER = pa.struct(
    [
        pa.field("text", pa.string(), False),
        pa.field("pairs", pa.list_(pa.field("element", _PAIR, False)), False),
        pa.field("model", pa.string(), False),
        pa.field("prompt_tokens", pa.int64(), False),
        pa.field("completion_tokens", pa.int64(), False),
        pa.field("latency", pa.float64(), False),
    ]
)
PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("written", pa.timestamp("ms", "UTC"), False),
        pa.field("answer", _ANSWER, False),
    ]
)
_BATCHES = "batches"
_ROWS_AT_ONCE = 256
"""Rows that are Python dicts at the same time; they take several times their bytes in Arrow."""
_KIND_NUMBERS = {kind.value: number for number, kind in enumerate(Kind)}


@dataclass(frozen=True)
class Contents:
    """What the ledger must know of an object.

    Attributes:
        keys: its row keys, an array of `KEY`.
        places: an array of `PLACE` with row, rank and kind set.
        batches: the batches a merged one is of.
    """

    keys: Array
    places: Array
    batches: Sequence[str]


def answers_table(rows: Sequence[Answered], written: int) -> pa.Table:
    """Answers as Arrow; `written` in milliseconds since 1970, UTC."""
    records = [{"key": row.key, "written": written, "answer": _answer(row)} for row in rows]
    return pa.Table.from_pylist(records, schema=PART_SCHEMA)


def part_writer(sink: Any) -> pq.ParquetWriter:
    """Begin a part; each table that is written to it becomes a row group."""
    return pq.ParquetWriter(
        sink,
        PART_SCHEMA,
        compression="zstd",
        use_dictionary=["written", "answer.model"],
        write_statistics=False,
    )


def name_batches(writer: pq.ParquetWriter, batches: Sequence[str]) -> None:
    """Make a merged part remember its batches, before it is closed."""
    writer.add_key_value_metadata({_BATCHES: json.dumps(batches)})


def answers_contents(file: BinaryIO | pa.NativeFile) -> Contents:
    """Read keys and times of a part, and nothing else of it."""
    part = open_part(file)
    table = part.read(columns=["key", "written"], use_threads=False)
    places = np.zeros(len(table), PLACE)
    places["row"] = np.arange(len(table))
    places["rank"] = table.column("written").cast(pa.int64()).to_numpy()
    lengths = pc.binary_length(table.column("key"))
    if len(table) and pc.min_max(lengths).as_py() != {"min": 32, "max": 32}:
        raise ValueError("not row keys")
    keys = [pack_keys(chunk.to_pylist()) for chunk in table.column("key").chunks]
    batches = json.loads((part.metadata.metadata or {}).get(_BATCHES.encode(), b"[]"))
    packed = np.concatenate(keys) if keys else np.empty(0, KEY)
    return Contents(packed, places, list(map(str, batches)))


def open_part(file: BinaryIO | pa.NativeFile) -> pq.ParquetFile:
    """Open a part that has the columns it must have."""
    part = pq.ParquetFile(file, pre_buffer=True)
    if not part.schema_arrow.equals(PART_SCHEMA):
        raise ValueError("columns of another kind")
    return part


def answers_of(table: pa.Table) -> Iterable[Answered]:
    """The rows of a part's table, in order."""
    for piece in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in piece.to_pylist():
            answer = row["answer"]
            pairs = tuple(QAPair(pair["question"], pair["answer"]) for pair in answer["pairs"])
            yield Answered(key=row["key"], **{**answer, "pairs": pairs})


def quarantine_lines(rows: Sequence[Quarantined]) -> list[bytes]:
    """Quarantined rows as lines of JSON."""
    return [json.dumps(asdict(row)).encode() for row in rows]


def batches_line(batches: Sequence[str]) -> bytes:
    """The last line of a merged quarantine object, which remembers its batches."""
    return json.dumps({_BATCHES: batches}).encode()


def quarantine_contents(data: bytes) -> Contents:
    """Read keys, attempts and reasons of a quarantine object; a row's number is its line's."""
    batches: Sequence[str] = ()
    keys: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    for number, line in enumerate(data.splitlines()):
        row = json.loads(line)  # orjson refuses half a surrogate pair
        if _BATCHES in row:
            batches = list(map(str, row[_BATCHES]))
        else:
            keys.append(row["key"])
            places.append((0, number, int(row["attempt"]), _KIND_NUMBERS[row["kind"]]))
    return Contents(pack_keys(keys), np.array(places, PLACE), batches)


def failure_of(line: bytes) -> Quarantined:
    """A quarantined row from its line."""
    row: Mapping[str, Any] = json.loads(line)
    return Quarantined(**{**row, "kind": Kind(row["kind"])})


def kind_number(kind: Kind) -> int:
    """How a reason is noted in a place."""
    return _KIND_NUMBERS[kind.value]


def _answer(row: Answered) -> dict[str, Any]:
    return {
        "text": _utf8(row.text),
        "pairs": [
            {"question": _utf8(pair.question), "answer": _utf8(pair.answer)} for pair in row.pairs
        ],
        "model": row.model,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "latency": row.latency,
    }


def _utf8(text: str) -> str:
    """Arrow refuses half a surrogate pair, which JSON replies can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
