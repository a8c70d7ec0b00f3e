import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.caching import batch_key
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.parsing import ParseSettings
from prefect_imageqa.tasks.parsing_text import PARSER_VERSION, parse_qa_pairs
from prefect_imageqa.tasks.records import TRANSIENT, Answered, Batch, Kind, QAPair, Quarantined
from prefect_imageqa.tasks.storing import (
    LAYOUT_VERSION,
    MANIFEST,
    PART_SCHEMA,
    Ledger,
    RowStatus,
    store_batch,
    write_batch,
    write_manifest,
)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(str(tmp_path / "out"))
    bucket: str = request.getfixturevalue("s3")
    return ObjectStore(f"{bucket}/{tmp_path.name}")


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "out"))


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, **changed: Any) -> Answered:
    pairs = (QAPair("What?", f"A <b> {number}"), QAPair("Wo? ü", "Hier\n!"))
    return replace(Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25), **changed)


def quarantined(number: int, **changed: Any) -> Quarantined:
    told = Quarantined(key(number), number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)
    return replace(told, **changed)


def write(store: ObjectStore, name: int, *rows: Answered | Quarantined) -> None:
    write_batch(store, key(1000 + name), rows, "qa_pairs")


def test_what_is_written_is_read(store: ObjectStore) -> None:
    rows: list[Answered | Quarantined] = [
        answered(1),
        quarantined(2),
        answered(3, pairs=(), text=""),
        quarantined(4, kind=Kind.TRUNCATED, status=None, attempts=3, text="raw\n \ud83d ü"),
    ]
    write(store, 1, *rows)
    write(store, 2, answered(5))
    ledger = Ledger.read(store)
    assert [ledger.answer(key(number)) for number in (1, 3, 5)] == [rows[0], rows[2], answered(5)]
    assert [ledger.failure(key(number)) for number in (2, 4)] == [rows[1], rows[3]]
    assert ledger.answer(key(2)) is ledger.answer(key(9)) is None
    assert ledger.failure(key(1)) is ledger.failure(key(9)) is None
    names = [f"parts/{key(1001)}.parquet", f"parts/{key(1002)}.parquet"]
    assert store.list() == [*names, f"quarantine/{key(1001)}.jsonl"]


def test_an_output_that_is_not_there_is_an_empty_ledger(store: ObjectStore) -> None:
    ledger = Ledger.read(store)
    assert ledger.status(key(1)) is RowStatus.PENDING
    assert ledger.attempts(key(1)) == 0
    assert store.list() == []


def test_a_row_is_pending_once_and_never_when_it_is_answered(local: ObjectStore) -> None:
    write(local, 1, answered(1), quarantined(2, kind=Kind.TIMEOUT))
    ledger = Ledger.read(local)
    assert ledger.status(key(1)) is RowStatus.ANSWERED
    assert ledger.status(key(2)) is RowStatus.PENDING
    assert ledger.status(key(2)) is RowStatus.ASKED
    assert ledger.status(key(3)) is RowStatus.PENDING
    assert ledger.status(key(3)) is RowStatus.ASKED
    assert Ledger.read(local).status(key(3)) is RowStatus.PENDING


@pytest.mark.parametrize("kind", list(Kind))
def test_only_what_may_pass_is_asked_again(kind: Kind, local: ObjectStore) -> None:
    write(local, 1, quarantined(1, kind=kind))
    expected = RowStatus.PENDING if kind in TRANSIENT else RowStatus.FAILED
    assert Ledger.read(local).status(key(1)) is expected


def test_a_part_that_another_run_replaced_gives_no_other_rows_answer(local: ObjectStore) -> None:
    write(local, 1, answered(1), answered(3))
    early, late = Ledger.read(local), Ledger.read(local)
    write(local, 1, answered(1), answered(2), answered(3))
    assert early.answer(key(3)) == answered(3)
    write(local, 1, answered(1))
    with pytest.raises(StoreError, match="was replaced meanwhile"):
        late.answer(key(3))


def test_attempts_count_the_times_a_row_was_quarantined(local: ObjectStore) -> None:
    for attempt in range(3):
        ledger = Ledger.read(local)
        assert ledger.attempts(key(1)) == attempt
        name = batch_key([key(1)], [ledger.attempts(key(1))])
        row = quarantined(1, message=f"attempt {attempt}")
        write_batch(local, name, [row], "qa_pairs")
        ledger.add(name, [row])
        assert ledger.attempts(key(1)) == attempt + 1
        assert ledger.failure(key(1)) == row
    assert len(local.list("quarantine")) == 3


def test_a_row_that_was_answered_later_is_answered(local: ObjectStore) -> None:
    write(local, 1, quarantined(1))
    write(local, 2, answered(1))
    ledger = Ledger.read(local)
    assert ledger.status(key(1)) is RowStatus.ANSWERED
    assert ledger.answer(key(1)) == answered(1)


def test_a_row_stored_twice_has_one_answer(local: ObjectStore) -> None:
    write(local, 1, answered(1), answered(2))
    write(local, 2, answered(1, text="another"), answered(3))
    ledger = Ledger.read(local)
    first = ledger.answer(key(1))
    assert first is not None
    assert first.text in {"raw 1", "another"}
    assert ledger.answer(key(2)) == answered(2)
    assert ledger.answer(key(3)) == answered(3)


def test_a_batch_that_was_just_stored_is_known_at_once(store: ObjectStore) -> None:
    ledger = Ledger.read(store)
    rows: list[Answered | Quarantined] = [quarantined(1), answered(2), answered(3)]
    batch = Batch(1, key(77), ())
    parsed_by = ParseSettings("qa_pairs", parse_qa_pairs, True)
    assert store_batch.fn(batch, rows, store, parsed_by) == rows
    assert ledger.answer(key(2)) is None
    ledger.add(batch.key, rows)
    assert [ledger.answer(key(2)), ledger.answer(key(3))] == rows[1:]
    assert ledger.failure(key(1)) == rows[0]
    assert ledger.status(key(2)) is RowStatus.ANSWERED


def test_writing_a_batch_again_replaces_it(local: ObjectStore) -> None:
    write(local, 1, answered(1))
    write(local, 1, answered(1, text="again"))
    assert len(local.list()) == 1
    again = Ledger.read(local).answer(key(1))
    assert again == answered(1, text="again")


def test_a_part_has_the_reply_and_what_parsed_it_and_no_input(local: ObjectStore) -> None:
    write(local, 1, answered(1))
    table = pq.read_table(pa.BufferReader(local.read(local.list()[0])))
    assert table.schema.equals(PART_SCHEMA)
    answer = table.to_pylist()[0]["answer"]
    assert (answer["parser"], answer["parser_version"]) == ("qa_pairs", PARSER_VERSION)
    assert (answer["text"], answer["latency"]) == ("raw 1", 0.25)


def test_half_a_surrogate_pair_costs_one_character(local: ObjectStore) -> None:
    row = answered(1, text="a \ud83d", pairs=(QAPair("\udcff?", "b \ud83d"),))
    write(local, 1, row)
    expected = replace(row, text="a ?", pairs=(QAPair("??", "b ?"),))
    assert Ledger.read(local).answer(key(1)) == expected


def test_many_files_are_read_in_any_order(local: ObjectStore) -> None:
    for name in range(40):
        write(local, name, *(answered(3 * name + row) for row in range(3)))
    ledger = Ledger.read(local)
    for number in (*range(119, -1, -1), 0, 60):
        assert ledger.answer(key(number)) == answered(number)


PART = f"parts/{key(1001)}.parquet"
QUARANTINE = f"quarantine/{key(1001)}.jsonl"


def table_of(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (PART, b""),
        (PART, b"not Parquet at all"),
        (PART, b"PAR1" + b"\0" * 100 + b"PAR1"),
        (PART, table_of(other=["a"])),
        (PART, table_of(key=["not hexadecimal"])),
        (PART, table_of(key=[None])),
        (QUARANTINE, b'{"key": "00"'),
        (QUARANTINE, b"[]\n"),
        (QUARANTINE, b"{}\n"),
        (QUARANTINE, b"null\n"),
        (QUARANTINE, b'{"key": "xyz"}\n'),
        (QUARANTINE, b"\xff\xfe\n"),
    ],
)
def test_a_damaged_object_is_named_with_what_to_do(
    name: str, content: bytes, local: ObjectStore
) -> None:
    write(local, 1, answered(1), quarantined(2))
    local.write(name, content)
    with pytest.raises(StoreError) as raised:
        Ledger.read(local)
    assert str(raised.value).startswith(f"{local.uri_of(name)} is damaged (")
    assert str(raised.value).endswith("delete it, its rows are asked again")
    assert "\n" not in str(raised.value)
    local.delete(name)
    Ledger.read(local)


def test_a_part_that_is_cut_anywhere_is_damaged(local: ObjectStore) -> None:
    write(local, 1, *map(answered, range(20)))
    whole = local.read(PART)
    for length in range(0, len(whole), 97):
        local.write(PART, whole[:length])
        with pytest.raises(StoreError, match="is damaged"):
            Ledger.read(local)


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        (PART, table_of(key=[key(1)]), 1),
        (PART, table_of(key=[key(1)], answer=["text"]), 1),
    ],
    ids=["no answers", "answers of another type"],
)
def test_damage_that_is_found_late_is_named_as_well(
    name: str, content: bytes, number: int, local: ObjectStore
) -> None:
    write(local, 1, answered(1), quarantined(2))
    local.write(name, content)
    ledger = Ledger.read(local)
    with pytest.raises(StoreError, match="is damaged"):
        ledger.answer(key(number))


@pytest.mark.parametrize("kind", [{}, {"kind": "unknown"}], ids=["no reason", "unknown kind"])
def test_a_reason_that_is_none_is_damage(kind: dict[str, str], local: ObjectStore) -> None:
    write(local, 1, quarantined(2))
    local.write(QUARANTINE, json.dumps({"key": key(2), **kind}).encode())
    with pytest.raises(StoreError, match="is damaged"):
        Ledger.read(local)


def test_objects_of_others_beside_ours_do_not_matter(local: ObjectStore) -> None:
    write(local, 1, answered(1))
    local.write("parts/README.txt", b"hello")
    local.write("quarantine/note", b"hello")
    assert Ledger.read(local).answer(key(1)) == answered(1)


def test_a_manifest_is_kept_by_run_and_as_the_present_state(store: ObjectStore) -> None:
    write_manifest(store, "run-1", {"dataset": "d", "rows": 1})
    write_manifest(store, "run-2", {"dataset": "d", "rows": 2})
    assert store.list() == [MANIFEST, "runs/run-1.json", "runs/run-2.json"]
    assert json.loads(store.read(MANIFEST)) == {
        "dataset": "d",
        "layout_version": LAYOUT_VERSION,
        "rows": 2,
    }
    assert json.loads(store.read("runs/run-1.json"))["rows"] == 1
    Ledger.read(store)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"layout_version": 2}', "has layout 2, this version writes 1: use another output"),
        ("{}", "has layout None"),
        ("[]", "is not a manifest of this program"),
        ("<html>", "is not a manifest of this program"),
    ],
)
def test_an_output_of_another_layout_is_refused(
    content: str, said: str, local: ObjectStore
) -> None:
    local.write(MANIFEST, content.encode())
    with pytest.raises(StoreError, match=said) as raised:
        Ledger.read(local)
    assert str(raised.value).startswith(local.uri_of(MANIFEST))
