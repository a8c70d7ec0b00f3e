import json
import math
import tracemalloc
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_imageqa.tasks.errors import DatasetError, ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.exporting import bounded_parquet, row_pairs
from prefect_imageqa.tasks.exporting.dataset_columns import MAX_COLUMNS, DatasetColumns
from prefect_imageqa.tasks.exporting.distinct_pairs import normal_form
from prefect_imageqa.tasks.exporting.embedded import images_digest
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.pairs_parquet import (
    PAIRS,
    PAIRS_SCHEMA,
    ROWS,
    ROWS_SCHEMA,
    dataset_fields,
    pairs_of,
)
from prefect_imageqa.tasks.exporting.qa_json import QA_JSON, QA_JSONL, dump_record
from prefect_imageqa.tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from prefect_imageqa.tasks.exporting.row_pairs import most_images, pairs_of_rows, read_pairs
from prefect_imageqa.tasks.images.references import encode_png
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined, Row
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part

PARTS = PassFolder().parts("qa_pairs-v1")

PIXELS = encode_png(Image.new("RGB", (16, 16)))
OTHER_PIXELS = encode_png(Image.new("RGB", (2, 2), "red"))
DIGEST = sha256(PIXELS).hexdigest()
URI = f"data:image/png;base64,{b64encode(PIXELS).decode()}"

NOTHING_MORE = dict.fromkeys(PAIRS_SCHEMA.names[6:-1])
"""The columns of a pair that is a question and an answer only."""


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
    image: str | None = "image",
    conversation: str | None = None,
    output: str = "output",
    **options: Any,
) -> RunCounts:
    columns = Columns(image=image, conversation=conversation, output=output)
    rows, outcomes = rows_of(records), ledger.outcomes(keys)
    return export_rows.fn(store, outcomes, rows, len(keys), columns, **options)


def lines(store: ObjectStore, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(name).splitlines()]


def table(store: ObjectStore, folder: Path, name: str = PAIRS) -> pa.Table:
    local = folder / "read.parquet"
    local.write_bytes(store.read(name))
    return pq.read_table(local)


def pairs(store: ObjectStore, folder: Path) -> list[dict[str, Any]]:
    """The export's own columns of `pairs.parquet`, but the digest of images."""
    names = PAIRS_SCHEMA.names[:-1]
    found: list[dict[str, Any]] = table(store, folder).select(names).to_pylist()
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
        | NOTHING_MORE
        for row, pair in ((0, 0), (3, 0), (3, 1))
    ]
    assert lines(store, QUARANTINE_JSONL) == [
        {
            "row": 1,
            "where": "d:1",
            "question": None,
            "image": ["1.png"],
            "kind": "truncated",
            "message": "too long",
            "status": None,
            "attempts": 2,
            "text": "**Question:** Wh",
            "key": key(1),
        }
    ]


def test_pairs_that_could_not_be_read_are_counted_and_logged(
    local: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = ledger_of(local, answered(0), replace(answered(1), lost=2), answered(2))
    counts = exported(local, ledger, [{}, {}, {}], [key(number) for number in range(3)])
    assert counts.lost_pairs == 2
    assert "2 pairs in the replies of answered rows could not be read" in caplog.text
    assert "the first in that of d:1;" in caplog.text


def test_pairs_have_everything_that_a_reply_says(local: ObjectStore, tmp_path: Path) -> None:
    choice = {"question": "Q", "answer": "red", "options": ["red", "blue"], "correct": "A"}
    more = {"type": "colour", "language": "French", "reasoning": "I see it."}
    turn = {"question": "And now?", "answer": "blue", "turn": 2}
    outcome = replace(answered(0), parsed=[{**choice, **more}, turn], style="multiple-choice@1")
    exported(local, ledger_of(local, outcome), [{"image": "a"}], [key(0)])
    first, second = pairs(local, tmp_path)
    assert first.items() >= {**choice, **more, "turn": None, "style": "multiple-choice@1"}.items()
    assert second.items() >= {**NOTHING_MORE, **turn, "style": "multiple-choice@1"}.items()


def test_pairs_that_repeat_one_of_their_record_are_dropped(
    local: ObjectStore, tmp_path: Path
) -> None:
    def answer(number: int, question: str, text: str, turn: int = 0) -> Answered:
        pair = {"question": question, "answer": text, "turn": turn}
        return Answered(key(number), f"{question} {text}", [pair], "m", 1, 1, 0.1)

    caption = Answered(key(6), "A cat.", [{"question": "Q?", "answer": "A cat."}], "m", 1, 1, 0.1)
    outcomes = [
        answer(0, "What colour is it?", "Red"),
        answer(1, " what COLOUR is it", "It is red"),
        answer(2, "What colour is it?", "Red"),
        answer(3, "\uff37hat colour is it?", "Red", turn=1),
        answer(4, "?!", "Red"),
        answer(5, "??", "Red"),
        caption,
        replace(caption, key=key(7), text="Two cats.", parsed=[{"question": "Q?", "answer": "2"}]),
        replace(caption, key=key(8), text="a cat", parsed=[{"question": "Q?", "answer": "a cat"}]),
    ]
    samples = [0, 1, 0, 1, 2, 3, 4, 5, 6]
    rows = [Row(n, {"image": "a"}, f"d:{n}", sample=sample) for n, sample in enumerate(samples)]
    columns = Columns(image="image", conversation=None)
    counts = export_rows.fn(local, outcomes, rows, len(rows), columns)
    assert [pair["row"] for pair in pairs(local, tmp_path)] == [0, 2, 3, 4, 5, 6, 7]
    assert (counts.ok, counts.pairs, counts.duplicate_pairs) == (9, 7, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is it -5 °C?", "Is it 5 °C?"),
        ("1.50?", "150?"),
        ("What does '?' mean?", "What does '!' mean?"),
        ("Is it 12-3?", "Is it 123?"),
        ("Is it <b>?", "Is it b?"),
    ],
    ids=lambda text: text,
)
def test_signs_tell_questions_apart(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


def test_questions_are_the_same_without_case_quotes_and_final_punctuation() -> None:
    forms = ["Is  it a “cat”, or not?", "**is it a cat or not**", "Is it a cat or not ?"]
    assert len(set(map(normal_form, forms))) == 1


@pytest.mark.parametrize(
    ("value", "same", "other"),
    [
        ("a.png", {"path": "a.png"}, "b.png"),
        (PIXELS, {"bytes": PIXELS, "path": "x.png"}, OTHER_PIXELS),
        (URI, PIXELS, OTHER_PIXELS),
        ({"bytes": PIXELS, "path": "x"}, [PIXELS], {"bytes": OTHER_PIXELS, "path": "x"}),
        (["a.png", "b.png"], ["a.png", {"path": "b.png"}], ["b.png", "a.png"]),
        (["ab", "c"], ["ab", "c"], ["a", "bc"]),
        ("a.png", "a.png", None),
    ],
    ids=["path", "bytes", "base64", "same path", "order", "borders", "none"],
)
@pytest.mark.parametrize("conversation", [None, "asked"], ids=["column", "conversation"])
def test_images_are_known_by_path_or_content(
    value: Any, same: Any, other: Any, conversation: str | None
) -> None:
    columns = Columns(image=conversation or "image", conversation=conversation)

    def digest(images: Any) -> str:
        record = {"image": images}
        if conversation:
            images = images if isinstance(images, list) else [images]
            parts = [{"type": "image", "image": image} for image in images]
            record = {"asked": [{"role": "user", "content": parts}]}
        return images_digest(Row(0, record, "d:0"), columns)

    assert digest(value) == digest(same)
    assert digest(value) != digest(other)


def plant(store: ObjectStore, rows: list[int], questions: pa.Array) -> None:
    """Write a file of pairs as small as it can be."""
    columns = {field.name: pa.nulls(len(rows), field.type) for field in PAIRS_SCHEMA}
    columns |= {"row": pa.array(rows), "key": pa.array([key(0)] * len(rows))}
    columns |= {"image": pa.array([["a.png"]] * len(rows)), "question": questions}
    file = pa.BufferOutputStream()
    options = {"store_schema": False, "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(pa.table(columns), file, compression="zstd", write_statistics=False, **options)
    assert file.tell() < 30_000
    store.write(PAIRS, file.getvalue().to_pybytes())


def test_a_small_file_of_long_texts_is_read_in_bounded_memory(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, count = 500_000, 100
    questions = pa.DictionaryArray.from_arrays(pa.array([0] * count), pa.array(["x" * size]))
    plant(local, list(range(count)), questions)
    before = pa.total_allocated_bytes()
    found = peak = 0
    for row in read_pairs(local):
        found += len(row.pairs[0].question)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert found == count * size
    assert peak < 30_000_000
    plant(local, [0] * count, questions)
    monkeypatch.setattr(row_pairs, "MAX_ROW_BYTES", 30_000_000)
    for read in (lambda: list(read_pairs(local)), lambda: pairs_of_rows(local, [0])):
        with pytest.raises(ObjectCorruptedError, match=r"pairs\.parquet is corrupted"):
            read()


def test_row_groups_that_no_export_has_are_not_read(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(local, [0], pa.array(["x" * 100_000]))
    assert most_images(local) == 1
    monkeypatch.setattr(bounded_parquet, "_MAX_GROUP_BYTES", 99_999)
    with pytest.raises(ObjectCorruptedError, match=r"pairs\.parquet is corrupted"):
        most_images(local)


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
        [{"question": "Q", "answer": "A", "options": ["half \ud83d"]}],
        [{"question": "Q", "answer": "A", "options": [5]}],
        [{"question": "Q", "answer": "A", "options": 5}],
        [{"question": "Q", "answer": "A", "language": 5}],
        [{"question": "Q", "answer": "A", "turn": "x"}],
        [{"question": "Q", "answer": "A", "turn": 2**40}],
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
    ("value", "names"),
    [
        (PIXELS, ["row-000000"]),
        ([PIXELS, PIXELS], ["row-000000", "row-000000-2"]),
        ({"bytes": PIXELS, "path": None}, ["row-000000"]),
        ([{"bytes": PIXELS, "path": "a.png"}], ["a.png"]),
        (URI, ["row-000000"]),
        (f" {URI[:40]}\n{URI[40:]}", ["row-000000"]),
        (URI.replace(";", ";charset=x; ").replace("base64", "BASE64 "), ["row-000000"]),
        (f"data:,{b64encode(PIXELS).decode()}", ["row-000000"]),
        (b64encode(PIXELS).decode(), ["row-000000"]),
        (Image.new("RGB", (2, 2)), ["row-000000"]),
    ],
    ids=[
        "bytes",
        "list",
        "Hugging Face",
        "Hugging Face list",
        "data URI",
        "lines",
        "odd URI",
        "unmarked URI",
        "base64",
        "PIL",
    ],
)
def test_embedded_images_are_named_not_copied(
    value: Any, names: list[str], local: ObjectStore, tmp_path: Path
) -> None:
    exported(local, ledger_of(local, answered(0)), [{"image": value, "id": 1}], [key(0)])
    assert [pair["image"] for pair in pairs(local, tmp_path)] == [names]
    assert [row["image"] for row in table(local, tmp_path, ROWS).to_pylist()] == [names]
    (line,) = lines(local, QA_JSONL)
    assert list(line) == ["image", "id", "output"]
    references = line["image"] if isinstance(value, list) else [line["image"]]
    assert [reference["path"] for reference in references] == names
    if not isinstance(value, Image.Image):
        assert {(reference["sha256"], reference["size"]) for reference in references} == {
            (DIGEST, len(PIXELS))
        }


def test_embedded_data_is_replaced_in_every_column_and_nothing_else_is(local: ObjectStore) -> None:
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]}
    texts = {"text": "data: see the base64, table", "long": "word " * 2000, "broken": f"{URI}!"}
    record: dict[str, Any] = {"image": "a.png", "mask": {"bytes": PIXELS, "path": "m.png"}}
    record["messages"] = [turn]
    replied = replace(answered(0), text=URI)
    exported(local, ledger_of(local, replied), [{**record, **texts}], [key(0)])
    (line,) = lines(local, QA_JSONL)
    reference: dict[str, Any] = {"sha256": DIGEST, "size": len(PIXELS)}
    expected = dict(record)
    expected["mask"] = {"path": "m.png", **reference}
    part = {"type": "image_url", "image_url": {"url": reference}}
    expected["messages"] = [{"role": "user", "content": [part]}]
    assert line == {**expected, **texts, "output": URI}


def test_images_in_a_conversation_are_named(local: ObjectStore, tmp_path: Path) -> None:
    parts = [{"type": "image", "image": image} for image in ("a.png", URI, "b.png")]
    record = {"messages": [{"role": "user", "content": parts}], "__key__": "sample7"}
    ledger = ledger_of(local, answered(0))
    exported(local, ledger, [record], [key(0)], image="messages", conversation="messages")
    assert [pair["image"] for pair in pairs(local, tmp_path)] == [["a.png", "sample7", "b.png"]]
    content = lines(local, QA_JSONL)[0]["messages"][0]["content"]
    assert content[1]["image"] == {"path": "sample7", "sha256": DIGEST, "size": len(PIXELS)}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a.png", ["a.png"]),
        (["a.png", {"path": "b.png", "bytes": PIXELS}], ["a.png", "b.png"]),
        ({"url": "https://host/c.png"}, ["https://host/c.png"]),
        ([{"image_url": {"url": URI}}, {"image_url": "c.png"}], ["row-000000", "c.png"]),
        (f"{'A' * 100}/b", [f"{'A' * 100}/b"]),
        ("", []),
        (None, []),
        (5, []),
        ("caf\udce9.png", ["caf?.png"]),
    ],
    ids=["path", "list", "URL", "OpenAI", "long path", "empty", "none", "number", "not UTF-8"],
)
def test_pairs_have_the_paths_of_their_images(
    value: Any, names: list[str], local: ObjectStore, tmp_path: Path
) -> None:
    exported(local, ledger_of(local, answered(0)), [{"image": value}], [key(0)])
    assert [pair["image"] for pair in pairs(local, tmp_path)] == [names]


def test_pairs_and_rows_carry_the_datasets_small_columns(
    local: ObjectStore, tmp_path: Path
) -> None:
    record = {"id": 7, "image": "a.png", "messages": [{"role": "user", "content": "What?"}]}
    record |= {"split": "train", "score": 0.5, "seen": True, "tags": ["a"], "text": "x" * 1001}
    record |= {"mask": PIXELS, "answer": "mine", "dataset_answer": "two", "row": 3, "none": None}
    ledger = ledger_of(local, replace(answered(0, pairs=2), reasoning="Hm. \ud83d"))
    exported(local, ledger, [record], [key(0)], conversation="messages")
    small = {"id": 7, "split": "train", "score": 0.5, "seen": True, "tags": '["a"]'}
    small |= {"dataset_answer": "mine", "dataset_dataset_answer": "two", "dataset_row": 3}
    small |= {"none": None}
    own = {"row": 0, "key": key(0), "image": ["a.png"]}
    qa = [{"pair": n, "question": f"Q0.{n}", "answer": f"A0.{n}"} for n in range(2)]
    qa = [{**pair, **NOTHING_MORE} for pair in qa]
    found = table(local, tmp_path).drop_columns("image_digest").to_pylist()
    assert found == [{**own, **pair, **small} for pair in qa]
    rows = table(local, tmp_path, ROWS)
    assert rows.to_pylist() == [{**own, "reply": "raw 0", "reasoning": "Hm. ?", **small}]
    assert [str(field.type) for field in dataset_fields(rows.schema, ROWS_SCHEMA)] == [
        *("int64", "string", "double", "bool", "string", "string", "string", "int64", "string")
    ]


@pytest.mark.parametrize(
    ("first", "later", "type_", "values"),
    [
        (1, 2**53, "int64", [1, 2**53]),
        (1, 2**60, "int64", [1, 2**60]),
        (1, 0.5, "double", [1.0, 0.5]),
        (2**60, 0.5, "string", [str(2**60), "0.5"]),
        (1, 2**70, "string", ["1", str(2**70)]),
        (1, "one", "string", ["1", "one"]),
        (True, "yes", "string", ["true", "yes"]),
        (True, 1, "string", ["true", "1"]),
        (0.5, math.nan, "double", [0.5, None]),
        (None, 3, "int64", [None, 3]),
        ("a", {"b": [1, None]}, "string", ["a", '{"b": [1, null]}']),
        ("a", "half \ud83d", "string", ["a", "half ?"]),
        (None, None, "string", [None, None]),
        ("a", "x" * 1001, None, None),
        (b"bytes", "a", None, None),
        ("a", {"b": PIXELS}, None, None),
        ("a", ["x" * 1001], None, None),
    ],
    ids=repr,
)
@pytest.mark.parametrize("pairs_between", [1, 5000], ids=["one group", "groups"])
def test_a_column_has_one_type_that_fits_all_its_values(
    first: Any,
    later: Any,
    type_: str | None,
    values: list[Any] | None,
    pairs_between: int,
    local: ObjectStore,
    tmp_path: Path,
) -> None:
    """Also if the row that needs it comes after a row group has been written."""
    ledger = ledger_of(local, answered(0), answered(1, pairs_between), answered(2))
    records = [{"image": "a", "x": first}, {"image": "b"}, {"image": "c", "x": later}]
    exported(local, ledger, records, [key(number) for number in range(3)])
    for name in (PAIRS, ROWS):
        found = table(local, tmp_path, name)
        assert ("x" in found.column_names) is (type_ is not None)
        if type_ is not None:
            column = found.column("x")
            assert str(column.type) == type_
            assert [column[0].as_py(), column[-1].as_py()] == values
            assert column.null_count == len(found) - 2 + (values or []).count(None)
    assert sorted(name for name in local.list() if "/" not in name) == [
        *(PAIRS, QA_JSONL, QUARANTINE_JSONL, ROWS)
    ]


def test_the_number_of_columns_is_bounded(local: ObjectStore, tmp_path: Path) -> None:
    ledger = ledger_of(local, *(answered(number) for number in range(3)))
    records = [{"image": "a", **{f"{row}-{n}": n for n in range(90)}} for row in range(3)]
    records[0] |= {"x" * 300: 1, "\ud83d": 1}
    exported(local, ledger, records, [key(number) for number in range(3)])
    names = table(local, tmp_path).column_names[len(PAIRS_SCHEMA) :]
    assert len(names) == MAX_COLUMNS - 2
    assert names[:91] == [*(f"0-{n}" for n in range(90)), "1-0"]


def test_names_of_columns_take_no_memory_after_the_last_one() -> None:
    """JSON objects with ids as names have new ones in every record."""
    columns = DatasetColumns([], [])
    tracemalloc.start()
    try:
        for row in range(200):
            columns.add({f"{row}-{n}": n for n in range(100)})
        columns.take()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


@pytest.mark.parametrize(
    ("record", "output", "name"),
    [
        ({}, "output", "reasoning"),
        ({"reasoning": "mine"}, "output", "model_reasoning"),
        ({}, "reasoning", "model_reasoning"),
        ({"model_reasoning": "mine"}, "reasoning", "model_model_reasoning"),
    ],
    ids=["free", "taken", "output", "both-taken"],
)
def test_reasoning_is_beside_the_reply(
    record: dict[str, Any], output: str, name: str, local: ObjectStore, tmp_path: Path
) -> None:
    ledger = ledger_of(local, replace(answered(0), reasoning="Hm."), answered(1))
    records = [{"image": "a", **record}, {"image": "b"}]
    exported(local, ledger, records, [key(0), key(1)], output=output)
    first, second = lines(local, QA_JSONL)
    assert list(first.items())[-2:] == [(name, "Hm."), (output, "raw 0")]
    assert second == {"image": "b", output: "raw 1"}
    rows = table(local, tmp_path, ROWS).select(["reply", "reasoning"]).to_pylist()
    assert rows[0] == {"reply": "raw 0", "reasoning": "Hm."}


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
    assert strict(dump_record({"x": value})) == {"x": written}
