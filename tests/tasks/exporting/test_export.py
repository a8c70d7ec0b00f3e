import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import DatasetError, ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA, pairs_of
from prefect_imageqa.tasks.exporting.qa_json import QA_JSON, QA_JSONL, dump_record
from prefect_imageqa.tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase, image_refs
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.loading.dataset import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined, Row
from prefect_imageqa.tasks.runs.run_record import RunCounts
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part

PARTS = PassFolder().parts("qa_pairs-v1")

PIXELS = bytes(range(256))


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, pairs: int = 1) -> Answered:
    qa = [{"question": f"Q{number}.{n}", "answer": f"A{number}.{n}"} for n in range(pairs)]
    return Answered(key(number), f"raw {number}", qa, "m", 100, 20, 0.25)


def quarantined(number: int) -> Quarantined:
    return Quarantined(
        key(number), number, f"d:{number}", Kind.TRUNCATED, "too long", None, 2, "**Question:** Wh"
    )


def ledger_of(store: ObjectStore, *stored: FinishedRow) -> Ledger:
    write_part(store, PARTS, key(1000), stored)
    return Ledger.read(store, PARTS)


def rows_of(records: Iterable[dict[str, Any]]) -> list[Row]:
    return [Row(index, record, f"d:{index}") for index, record in enumerate(records)]


def exported(
    store: ObjectStore,
    ledger: Ledger,
    records: Iterable[dict[str, Any]],
    keys: Sequence[str],
    image_key: str | None = "image",
    **options: Any,
) -> RunCounts:
    columns = Columns(image=image_key)
    return export_rows.fn(store, ledger, rows_of(records), keys, columns, **options)


def lines(store: ObjectStore, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(name).splitlines()]


def pairs(store: ObjectStore, folder: Path) -> list[dict[str, Any]]:
    local = folder / "read.parquet"
    local.write_bytes(store.read(PAIRS))
    table = pq.read_table(local)
    assert table.schema.equals(PAIRS_SCHEMA)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def test_exports_join_the_rows_with_their_answers_in_dataset_order(
    store: ObjectStore, tmp_path: Path
) -> None:
    ledger = ledger_of(store, answered(3, pairs=2), quarantined(1), answered(0), answered(2, 0))
    records = [{"image": f"{number}.png", "id": number} for number in range(4)]
    keys = [key(number) for number in range(4)]
    counts = exported(store, ledger, records, keys)
    assert counts == RunCounts(rows=4, ok=3, quarantined=1, pairs=3, reasons={"truncated": 1})
    assert not store.exists(QA_JSON)
    assert exported(store, ledger, records, keys, json_array=True) == counts
    expected = [{**records[number], "output": f"raw {number}"} for number in (0, 2, 3)]
    assert lines(store, QA_JSONL) == expected
    assert json.loads(store.read(QA_JSON)) == expected
    assert pairs(store, tmp_path) == [
        {"row": row, "key": key(row), "pair": pair, "image": [f"{row}.png"]}
        | {"question": f"Q{row}.{pair}", "answer": f"A{row}.{pair}"}
        for row, pair in ((0, 0), (3, 0), (3, 1))
    ]
    assert lines(store, QUARANTINE_JSONL) == [
        {
            "row": 1,
            "where": "d:1",
            "kind": "truncated",
            "message": "too long",
            "status": None,
            "attempts": 2,
            "text": "**Question:** Wh",
            "key": key(1),
        }
    ]


def test_duplicate_rows_share_one_answer(local: ObjectStore, tmp_path: Path) -> None:
    ledger = ledger_of(local, answered(7), quarantined(8))
    records = [{"image": "a.png", "id": number} for number in range(4)]
    counts = exported(local, ledger, records, [key(7), key(8), key(7), key(8)])
    assert (counts.rows, counts.ok, counts.quarantined, counts.pairs) == (4, 2, 2, 2)
    assert [line["id"] for line in lines(local, QA_JSONL)] == [0, 2]
    assert [pair["row"] for pair in pairs(local, tmp_path)] == [0, 2]
    failures = lines(local, QUARANTINE_JSONL)
    assert [(line["row"], line["where"]) for line in failures] == [(1, "d:1"), (3, "d:3")]


@pytest.mark.parametrize("stored", [[], [quarantined(0)]], ids=["no rows", "no answers"])
def test_exports_without_answers_are_valid_files(
    stored: list[Quarantined], local: ObjectStore, tmp_path: Path
) -> None:
    ledger = ledger_of(local, *stored)
    records, keys = [{"image": "a"}] * len(stored), [row.key for row in stored]
    counts = exported(local, ledger, records, keys, json_array=True)
    assert (counts.ok, counts.quarantined) == (0, len(stored))
    assert local.read(QA_JSONL) == b""
    assert json.loads(local.read(QA_JSON)) == []
    assert pairs(local, tmp_path) == []
    assert len(lines(local, QUARANTINE_JSONL)) == len(stored)


def test_more_pairs_than_fit_into_one_row_group(local: ObjectStore, tmp_path: Path) -> None:
    ledger = ledger_of(local, answered(0, pairs=3000), answered(1, pairs=3000))
    exported(local, ledger, [{"image": "a"}, {"image": "b"}], [key(0), key(1)])
    questions = [pair["question"] for pair in pairs(local, tmp_path)]
    assert questions == [f"Q{row}.{pair}" for row in (0, 1) for pair in range(3000)]


def test_an_export_replaces_the_previous_one(local: ObjectStore) -> None:
    ledger = ledger_of(local, answered(0), answered(1))
    exported(local, ledger, [{"image": "a"}, {"image": "b"}], [key(0), key(1)])
    exported(local, ledger, [{"image": "b"}], [key(1)])
    assert lines(local, QA_JSONL) == [{"image": "b", "output": "raw 1"}]


def test_rows_without_a_key_are_not_exported(local: ObjectStore) -> None:
    ledger = ledger_of(local, answered(0))
    assert exported(local, ledger, [{"image": "a"}, {"image": "b"}], [key(0)]).rows == 1


def test_a_dataset_that_shrank_is_reported_and_nothing_is_replaced(local: ObjectStore) -> None:
    ledger, keys = ledger_of(local, answered(0), answered(1)), [key(0), key(1)]
    with pytest.raises(DatasetError, match="the dataset changed during the run: run again"):
        exported(local, ledger, [{"image": "a"}], keys)
    assert not local.exists(QA_JSONL)


@pytest.mark.parametrize(
    "parsed",
    [
        None,
        5,
        "text",
        {"question": "Q"},
        ["text"],
        [{"question": "Q"}],
        [{"question": "Q", "answer": "A", "more": ""}],
        [{"question": "Q", "answer": None}],
        [{"question": "Q", "answer": "half \ud83d"}],
    ],
    ids=repr,
)
def test_invalid_stored_pairs_are_reported(parsed: Any) -> None:
    with pytest.raises(
        ObjectCorruptedError, match="the stored answer to d:0 is corrupted: run again"
    ):
        pairs_of(replace(answered(0), parsed=parsed), "d:0")


def test_nothing_is_replaced_if_a_stored_answer_is_corrupted(local: ObjectStore) -> None:
    ledger = ledger_of(local, replace(answered(0), parsed={"question": "Q"}))
    with pytest.raises(ObjectCorruptedError, match="the stored answer to d:0 is corrupted"):
        exported(local, ledger, [{"image": "a"}], [key(0)])
    assert not local.exists(QA_JSONL)


def test_a_row_neither_answered_nor_quarantined_is_reported(local: ObjectStore) -> None:
    ledger = ledger_of(local, answered(0))
    with pytest.raises(StoreError, match="d:1 is neither answered nor quarantined"):
        exported(local, ledger, [{"image": "a"}, {"image": "b"}], [key(0), key(1)])
    assert not local.exists(QA_JSONL)


@pytest.mark.parametrize(
    "value",
    [PIXELS, [PIXELS], {"bytes": PIXELS, "path": None}, [{"bytes": PIXELS, "path": "a.png"}]],
    ids=["bytes", "list", "Hugging Face", "Hugging Face list"],
)
@pytest.mark.parametrize("image_key", ["image", None], ids=["image column", "any column"])
def test_embedded_images_become_data_uris_that_can_be_loaded(
    value: Any, image_key: str | None, local: ObjectStore, tmp_path: Path
) -> None:
    ledger = ledger_of(local, answered(0))
    exported(local, ledger, [{"image": value, "id": 1}], [key(0)], image_key)
    (row,) = open_dataset(local.uri_of(QA_JSONL)).rows()
    (ref,) = image_refs(row.record["image"], ImageBase(folder=str(tmp_path)))
    assert ImageReader(1000).read(ref) == PIXELS
    if image_key:
        written = json.dumps(row.record["image"])
        assert "data:application/octet-stream;base64," in written
        assert "bytes" not in written


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a.png", ["a.png"]),
        (["a.png", {"path": "b.png", "bytes": PIXELS}], ["a.png", "b.png"]),
        ("data:image/png;base64,AAAA", []),
        (PIXELS, []),
        ({"bytes": PIXELS, "path": None}, []),
        (None, []),
        (5, []),
        ("caf\udce9.png", ["caf?.png"]),
    ],
    ids=["path", "list", "data URI", "bytes", "Hugging Face", "none", "number", "not UTF-8"],
)
def test_pairs_have_the_paths_of_their_images(
    value: Any, names: list[str], local: ObjectStore, tmp_path: Path
) -> None:
    exported(local, ledger_of(local, answered(0)), [{"image": value}], [key(0)])
    assert [pair["image"] for pair in pairs(local, tmp_path)] == [names]


def strict(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert b"\n" not in data
    return json.loads(data.decode("utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        ([1.5, math.inf], [1.5, None]),
        (2**70, 2**70),
        (-(2**63), -(2**63)),
        ([2**70, math.nan, {"a": -math.inf}], [2**70, None, {"a": None}]),
        ("half \ud83d", "half \ud83d"),
        (["\udcff", math.nan], ["\udcff", None]),
        ("line\u2028 \x00\n \x7f", "line\u2028 \x00\n \x7f"),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
        ({1: 2**70}, {"1": 2**70}),
        ((1, (2,)), [1, [2]]),
        (b"\x00\xff", "data:application/octet-stream;base64,AP8="),
        ([bytearray(b"\x00"), 2**70], ["data:application/octet-stream;base64,AA==", 2**70]),
        (complex(1, 2), "(1+2j)"),
        ("\u00fc \U0001f600", "\u00fc \U0001f600"),
    ],
)
def test_any_value_is_strict_json(value: Any, written: Any) -> None:
    assert strict(dump_record({"x": value}, None)) == {"x": written}
    assert strict(dump_record({"x": value}, "x")) == {"x": written}
