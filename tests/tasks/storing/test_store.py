import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.serving.types import Completion
from prefect_imageqa.tasks.errors import ObjectMissingError, StoreError
from prefect_imageqa.tasks.generating.completions import Completions, StoredReply
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.parsing.parse import ANSWER, QA_PAIRS
from prefect_imageqa.tasks.prompting.keys import KeyList
from prefect_imageqa.tasks.records import (
    Answered,
    Batch,
    FinishedRow,
    Kind,
    Problem,
    Quarantined,
)
from prefect_imageqa.tasks.storing.key_index import KEY
from prefect_imageqa.tasks.storing.layout import (
    LAYOUT_VERSION,
    MANIFEST,
    PassFolder,
    batch_of,
    open_output,
    parser_labels,
    write_manifest,
)
from prefect_imageqa.tasks.storing.parts import PART_SCHEMA
from prefect_imageqa.tasks.storing.row_keys import read_keys, write_keys
from prefect_imageqa.tasks.storing.store import parse_and_store, write_part

FOLDER = PassFolder()
PARTS = FOLDER.parts("qa_pairs-v1")
KEYS = f"{FOLDER.keys}/c/d"


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int) -> Answered:
    pairs = [{"question": "What?", "answer": "A <b>"}]
    return Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25)


def quarantined(number: int) -> Quarantined:
    return Quarantined(key(number), number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)


def test_completions_are_parsed_and_stored_under_their_parser(store: ObjectStore) -> None:
    completion = Completion("Question: What?\nAnswer: A cat.", "stop", 100, 20, 0.25, "m")
    replies = [
        StoredReply(key(1), 0, 1, "d:1", completion),
        StoredReply(key(2), 0, 2, "d:2", Problem(Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)),
    ]
    batch, completions = Batch(1, key(7), (), ()), Completions(replies, 1.5)
    stored = parse_and_store.fn(batch, completions, store)
    first, second = stored.rows
    assert (stored.answered, stored.time) == ([first], 1.5)
    assert (first.key, second) == (key(1), quarantined(2))
    other = parse_and_store.fn(batch, completions, store, ANSWER)
    assert store.list() == sorted([stored.part, other.part])
    assert batch_of(stored.part) == batch_of(other.part) == key(7)
    assert parser_labels(store.list(), FOLDER) == {QA_PAIRS.label, ANSWER.label}


def test_a_batch_is_stored_as_one_part(store: ObjectStore) -> None:
    part = write_part(store, PARTS, key(7), [answered(1), quarantined(2), answered(3)], 1.5)
    assert store.list() == [part]
    assert part.startswith(f"pairs/parts/qa_pairs-v1/{key(7)}-")
    table = pq.read_table(pa.BufferReader(store.read(part)))
    assert table.schema.equals(PART_SCHEMA)
    first, second, _ = table.to_pylist()
    assert {row["written"].timestamp() for row in table.to_pylist()} == {1.5}
    values = {name: value for name, value in first.items() if value is not None}
    assert values.pop("written")
    assert json.loads(values.pop("parsed")) == answered(1).parsed
    assert values == {
        "key": key(1),
        "status": "ok",
        "text": "raw 1",
        "model": "m",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "latency": 0.25,
        "reasoning": "",
        "lost": 0,
        "style": "",
        "attempt": 0,
    }
    values = {name: value for name, value in second.items() if value is not None}
    assert values.pop("written")
    assert values == {
        "key": key(2),
        "status": "bad_request",
        "message": "HTTP 400: no",
        "http_status": 400,
        "requests": 1,
        "attempt": 0,
        "row": 2,
        "where": "d:2",
    }


def test_the_name_of_a_part_depends_on_its_content(local: ObjectStore) -> None:
    rows: list[FinishedRow] = [answered(1), quarantined(2)]
    first = write_part(local, PARTS, key(7), rows, 1)
    before = local.read(first)
    assert write_part(local, PARTS, key(7), rows, 1) == first
    other = write_part(local, PARTS, key(7), [answered(1), quarantined(3)], 1)
    assert other != first
    assert local.read(first) == before
    assert parser_labels(local.list(), FOLDER) == {"qa_pairs-v1"}


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        (f"{PARTS}/{key(1)}-0123abcd.parquet", key(1)),
        (f"{PARTS}/merged-0123abcd.parquet", ""),
        (f"{PARTS}/{key(1)}.parquet", None),
        (f"{PARTS}/{key(1)}-0123abcd.jsonl", None),
        (f"{PARTS}/{key(1)}-0123abcd.parquet.tmp", None),
        (f"{PARTS}/a{key(1)}-0123abcd.parquet", None),
        (f"{PARTS}/README.txt", None),
    ],
)
def test_the_batch_of_a_part_is_in_its_name(name: str, batch: str | None) -> None:
    assert batch_of(name) == batch


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_row_keys_are_stored_in_order(count: int, store: ObjectStore) -> None:
    keys = KeyList()
    for number in range(count):
        keys.append(key(2**100 // (number + 1)))
    write_keys(store, KEYS, keys)
    assert read_keys(store, KEYS).tobytes().hex() == "".join(keys)
    assert len(store.read("pairs/keys/c/d")) == 16 * count


def test_row_keys_that_are_no_longer_in_the_dataset_are_stored_separately(
    local: ObjectStore,
) -> None:
    def stored_after(*numbers: int) -> tuple[str, set[str]]:
        write_keys(local, KEYS, [key(number) for number in numbers])
        older = f"{KEYS}.before"
        before = read_keys(local, older) if older in local.list() else np.empty(0, KEY)
        former = {before[i : i + 1].tobytes().hex() for i in range(len(before))}
        return read_keys(local, KEYS).tobytes().hex(), former

    assert stored_after(3, 1, 2) == (key(3) + key(1) + key(2), set())
    assert stored_after(3, 1, 2, 4)[1] == set()
    assert stored_after(4, 5) == (key(4) + key(5), {key(1), key(2), key(3)})
    assert stored_after(6)[1] == {key(number) for number in (1, 2, 3, 4, 5)}
    assert stored_after(1, 5)[1] == {key(number) for number in (2, 3, 4, 6)}


def test_missing_and_corrupted_row_keys_are_reported(local: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError):
        read_keys(local, KEYS)
    local.write(KEYS, b"\0" * 17)
    with pytest.raises(StoreError, match="c/d is corrupted: delete it and run again"):
        read_keys(local, KEYS)


def test_an_empty_output_gets_a_manifest(store: ObjectStore) -> None:
    open_output(store)
    assert json.loads(store.read(MANIFEST)) == {"layout_version": LAYOUT_VERSION}
    manifest: dict[str, Any] = {"dataset": "d", "rows": 2}
    write_manifest(store, manifest)
    open_output(store)
    assert json.loads(store.read(MANIFEST)) == {**manifest, "layout_version": LAYOUT_VERSION}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"layout_version": 2}', "has layout 2, this version writes 5: use another output"),
        ("{}", "has layout None"),
        ("[]", "is not a prefect-imageqa manifest"),
        ("<html>", "is not a prefect-imageqa manifest"),
    ],
)
def test_an_output_with_another_layout_is_rejected(
    content: str, message: str, local: ObjectStore
) -> None:
    local.write(MANIFEST, content.encode())
    with pytest.raises(StoreError, match=message) as raised:
        open_output(local)
    assert str(raised.value).startswith(local.uri_of(MANIFEST))
    assert "\n" not in str(raised.value)
    assert local.read(MANIFEST) == content.encode()
