"""Parts that are corrupted, or planted by someone else, are named; they never crash a run."""

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
from prefect_imageqa.tasks.storing.parts import PART_SCHEMA, name_batches, part_writer, rows_table
from prefect_imageqa.tasks.storing.store import write_part

PARTS = PassFolder().parts("qa_pairs-v1")


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int) -> Answered:
    pairs = [{"question": "What?", "answer": "That."}]
    return Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25)


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
    """A part of an answered and a failed row, in which one value is another."""
    table = rows_table(ROWS, 1)
    values = table.column(column).to_pylist()
    values[row] = value
    return with_column(column, pa.array(values, PART_SCHEMA.field(column).type))


def with_column(name: str, values: pa.Array) -> bytes:
    place = PART_SCHEMA.get_field_index(name)
    return part_of(rows_table(ROWS, 1).set_column(place, PART_SCHEMA.field(name), values))


def with_null(column: str) -> bytes:
    """A part with a null where there is none, which says of itself that it has the right schema."""
    place, field = PART_SCHEMA.get_field_index(column), PART_SCHEMA.field(column)
    field = field.with_nullable(True)
    table = rows_table(ROWS, 1).set_column(place, field, pa.nulls(2, field.type))
    claimed = {"ARROW:schema": base64.b64encode(PART_SCHEMA.serialize().to_pybytes())}
    return part_of(table.replace_schema_metadata(claimed), store_schema=False)


def with_batches(batches: str) -> bytes:
    sink = pa.BufferOutputStream()
    with part_writer(sink) as writer:
        writer.write_table(rows_table(ROWS, 1))
        name_batches(writer, ["a"])
        writer.add_key_value_metadata({"batches": batches})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def check_named(store: ObjectStore, name: str, raised: ObjectCorruptedError) -> None:
    assert str(raised).startswith(f"{store.uri_of(name)} is corrupted (")
    assert str(raised).endswith("delete it, and run again")
    assert "\n" not in str(raised)


FOUND_AT_ONCE: dict[str, bytes] = {
    "empty": b"",
    "no Parquet": b"not Parquet at all",
    "marks of Parquet": b"PAR1" + b"\0" * 100 + b"PAR1",
    "other columns": part_of(pa.table({"other": ["a"]})),
    "a column missing": part_of(rows_table(ROWS, 1).drop_columns(["parsed"])),
    "a column more": part_of(rows_table(ROWS, 1).append_column("more", pa.array([1, 2]))),
    "column of another kind": part_of(
        rows_table(ROWS, 1).set_column(0, pa.field("key", pa.binary(), False), pa.array([b"", b""]))
    ),
    "null keys": with_null("key"),
    "null status": with_null("status"),
    "null times": with_null("written"),
    "null attempts": with_null("attempt"),
    "unknown status": with_value(0, "status", "answered"),
    "no status": with_value(1, "status", ""),
    "no hexadecimal key": with_value(0, "key", "z" * 32),
    "empty key": with_value(0, "key", ""),
    "key with a space": with_value(0, "key", f"{key(0)[:-1]} "),
    "long key": with_value(0, "key", 2 * key(0)),
    "key that is no text": with_column("key", NOT_UTF8),
    "attempts below none": with_value(1, "attempt", -1),
    "too many attempts": with_value(1, "attempt", 2**31 - 1),
    "batches that are none": with_batches("5"),
    "batches that are no JSON": with_batches("["),
    "deep batches": with_batches("[" * 100_000),
}


@pytest.mark.parametrize("content", FOUND_AT_ONCE.values(), ids=FOUND_AT_ONCE.keys())
def test_a_damaged_part_is_named_with_what_to_do(content: bytes, local: ObjectStore) -> None:
    name = write_part(local, PARTS, key(1000), ROWS)
    local.write(name, content)
    with pytest.raises(ObjectCorruptedError) as raised:
        Ledger.read(local, PARTS)
    check_named(local, name, raised.value)
    local.remove(name)
    assert Ledger.read(local, PARTS).status(key(0)) is RowStatus.PENDING


FOUND_LATE: dict[str, bytes] = {
    "answer without text": with_value(0, "text", None),
    "answer without parsed": with_value(0, "parsed", None),
    "answer without model": with_value(0, "model", None),
    "answer without tokens": with_value(0, "prompt_tokens", None),
    "answer without latency": with_value(0, "latency", None),
    "parsed that is no JSON": with_value(0, "parsed", "{'question': 1}"),
    "parsed that is empty": with_value(0, "parsed", ""),
    "deep parsed": with_value(0, "parsed", "[" * 100_000),
    "failure without message": with_value(1, "message", None),
    "failure without place": with_value(1, "where", None),
    "failure without row": with_value(1, "row", None),
    "failure without requests": with_value(1, "requests", None),
    "text that is none": with_column("text", NOT_UTF8),
    "a time beyond all": with_column(
        "written", pa.array([2**62, 1]).cast(PART_SCHEMA.field("written").type)
    ),
    "other rows": part_of(rows_table([answered(5), answered(6)], 1)),
    "fewer rows": part_of(rows_table([], 1)),
}


@pytest.mark.parametrize("content", FOUND_LATE.values(), ids=FOUND_LATE.keys())
def test_damage_that_is_found_when_rows_are_read_is_named_as_well(
    content: bytes, local: ObjectStore
) -> None:
    name = write_part(local, PARTS, key(1000), ROWS)
    ledger = Ledger.read(local, PARTS)
    local.write(name, content)
    with pytest.raises(ObjectCorruptedError) as raised:
        list(ledger.outcomes([key(0), key(1)]))
    check_named(local, name, raised.value)


def test_a_part_that_is_cut_anywhere_is_damaged(local: ObjectStore) -> None:
    name = write_part(local, PARTS, key(1000), list(map(answered, range(20))))
    whole = local.read(name)
    for length in range(0, len(whole), 97):
        local.write(name, whole[:length])
        with pytest.raises(ObjectCorruptedError):
            Ledger.read(local, PARTS)


def test_objects_of_others_beside_parts_do_not_matter(local: ObjectStore) -> None:
    write_part(local, PARTS, key(1000), ROWS)
    local.write(f"{PARTS}/README.parquet", b"hello")
    local.write(f"{PARTS}/{key(1)}-01234567.jsonl", b"hello")
    local.write("pairs/parts/note", b"hello")
    assert Ledger.read(local, PARTS).outcome(key(0)) == ROWS[0]
