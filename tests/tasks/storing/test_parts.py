"""Corrupted and malicious parts raise an error that names the object, and never anything else."""

import base64
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger, RowStatus
from prefect_imageqa.tasks.storing.parts import (
    MAX_PART_ROWS,
    PART_SCHEMA,
    add_batch_keys,
    part_writer,
    rows_table,
)
from prefect_imageqa.tasks.storing.store import write_part

PARTS = PassFolder().parts("qa_pairs-v1")


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int) -> Answered:
    pairs = [{"question": "What?", "answer": "That."}]
    return Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25, "Hm.", 1)


ROWS: list[FinishedRow] = [
    answered(0),
    Quarantined(key(1), 1, "d:1", Kind.TIMEOUT, "HTTP 504", 504, 2),
]
NOT_UTF8 = pa.array([b"\xff", b"x"], pa.binary()).cast(pa.string(), safe=False)


def part_of(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def with_value(row: int, column: str, value: Any) -> bytes:
    """A part of an answered and a quarantined row in which one value is replaced."""
    table = rows_table(ROWS, 1)
    values = table.column(column).to_pylist()
    values[row] = value
    return with_column(column, pa.array(values, PART_SCHEMA.field(column).type))


def with_column(name: str, values: pa.Array) -> bytes:
    position = PART_SCHEMA.get_field_index(name)
    return part_of(rows_table(ROWS, 1).set_column(position, PART_SCHEMA.field(name), values))


def with_null(column: str) -> bytes:
    """A part with nulls in a column without nulls, which still claims to have the right schema."""
    position, field = PART_SCHEMA.get_field_index(column), PART_SCHEMA.field(column)
    field = field.with_nullable(True)
    table = rows_table(ROWS, 1).set_column(position, field, pa.nulls(2, field.type))
    metadata = {"ARROW:schema": base64.b64encode(PART_SCHEMA.serialize().to_pybytes())}
    return part_of(table.replace_schema_metadata(metadata), store_schema=False)


def with_batches(batches: str) -> bytes:
    sink = pa.BufferOutputStream()
    with part_writer(sink) as writer:
        writer.write_table(rows_table(ROWS, 1))
        add_batch_keys(writer, ["a"])
        writer.add_key_value_metadata({"batches": batches})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def check_message(store: ObjectStore, name: str, error: ObjectCorruptedError) -> None:
    assert str(error).startswith(f"{store.uri_of(name)} is corrupted (")
    assert str(error).endswith("delete it and run again")
    assert "\n" not in str(error)


FOUND_WHEN_OPENED: dict[str, bytes] = {
    "empty": b"",
    "not Parquet": b"not Parquet at all",
    "only Parquet magic bytes": b"PAR1" + b"\0" * 100 + b"PAR1",
    "other columns": part_of(pa.table({"other": ["a"]})),
    "missing column": part_of(rows_table(ROWS, 1).drop_columns(["parsed"])),
    "additional column": part_of(rows_table(ROWS, 1).append_column("more", pa.array([1, 2]))),
    "wrong column type": part_of(
        rows_table(ROWS, 1).set_column(0, pa.field("key", pa.binary(), False), pa.array([b"", b""]))
    ),
    "null keys": with_null("key"),
    "null status": with_null("status"),
    "null times": with_null("written"),
    "null attempts": with_null("attempt"),
    "unknown status": with_value(0, "status", "answered"),
    "empty status": with_value(1, "status", ""),
    "key not hexadecimal": with_value(0, "key", "z" * 32),
    "empty key": with_value(0, "key", ""),
    "key with a space": with_value(0, "key", f"{key(0)[:-1]} "),
    "long key": with_value(0, "key", 2 * key(0)),
    "key not UTF-8": with_column("key", NOT_UTF8),
    "time out of range": with_column(
        "written", pa.array([2**62, 1]).cast(PART_SCHEMA.field("written").type)
    ),
    "negative time": with_value(0, "written", -1),
    "negative attempt": with_value(1, "attempt", -1),
    "too many attempts": with_value(1, "attempt", 2**31 - 1),
    "too many rows": part_of(pa.concat_tables([rows_table(ROWS, 1)] * (MAX_PART_ROWS // 2 + 1))),
    "batches not a list": with_batches("5"),
    "batches not JSON": with_batches("["),
    "deeply nested batches": with_batches("[" * 100_000),
}


@pytest.mark.parametrize("content", FOUND_WHEN_OPENED.values(), ids=FOUND_WHEN_OPENED.keys())
def test_a_corrupted_part_is_reported_with_a_remedy(content: bytes, local: ObjectStore) -> None:
    name = write_part(local, PARTS, key(1000), ROWS)
    local.write(name, content)
    with pytest.raises(ObjectCorruptedError) as raised:
        Ledger.read(local, PARTS)
    check_message(local, name, raised.value)
    local.remove(name)
    assert Ledger.read(local, PARTS).statuses([key(0)]) == [RowStatus.PENDING]


FOUND_WHEN_READ: dict[str, bytes] = {
    "answer without text": with_value(0, "text", None),
    "answer without parsed": with_value(0, "parsed", None),
    "answer without model": with_value(0, "model", None),
    "answer without tokens": with_value(0, "prompt_tokens", None),
    "answer without latency": with_value(0, "latency", None),
    "answer without reasoning": with_value(0, "reasoning", None),
    "answer without lost pairs": with_value(0, "lost", None),
    "parsed not JSON": with_value(0, "parsed", "{'question': 1}"),
    "parsed empty": with_value(0, "parsed", ""),
    "deeply nested parsed": with_value(0, "parsed", "[" * 100_000),
    "failure without message": with_value(1, "message", None),
    "failure without where": with_value(1, "where", None),
    "failure without row": with_value(1, "row", None),
    "failure without requests": with_value(1, "requests", None),
    "text not UTF-8": with_column("text", NOT_UTF8),
    "null status": with_null("status"),
    "other rows": part_of(rows_table([answered(5), answered(6)], 1)),
    "fewer rows": part_of(rows_table([], 1)),
}


@pytest.mark.parametrize("content", FOUND_WHEN_READ.values(), ids=FOUND_WHEN_READ.keys())
def test_corruption_found_when_rows_are_read_is_reported_too(
    content: bytes, local: ObjectStore
) -> None:
    name = write_part(local, PARTS, key(1000), ROWS)
    ledger = Ledger.read(local, PARTS)
    local.write(name, content)
    with pytest.raises(ObjectCorruptedError) as raised:
        list(ledger.outcomes([key(0), key(1)]))
    check_message(local, name, raised.value)


def test_a_part_truncated_at_any_length_is_corrupted(local: ObjectStore) -> None:
    name = write_part(local, PARTS, key(1000), list(map(answered, range(20))))
    complete = local.read(name)
    for length in range(0, len(complete), 97):
        local.write(name, complete[:length])
        with pytest.raises(ObjectCorruptedError):
            Ledger.read(local, PARTS)


def test_other_objects_in_the_folder_of_parts_are_ignored(local: ObjectStore) -> None:
    write_part(local, PARTS, key(1000), ROWS)
    local.write(f"{PARTS}/README.parquet", b"hello")
    local.write(f"{PARTS}/{key(1)}-01234567.jsonl", b"hello")
    local.write("pairs/parts/note", b"hello")
    assert [Ledger.read(local, PARTS).outcome(key(number)) for number in (0, 1)] == ROWS
