import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.caching import KeyList
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.filesystems import ObjectMissingError
from prefect_imageqa.tasks.key_index import KEY
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.parsing import ParsedBatch
from prefect_imageqa.tasks.parts import PART_SCHEMA
from prefect_imageqa.tasks.records import Answered, Batch, Kind, QAPair, Quarantined
from prefect_imageqa.tasks.storing import (
    LAYOUT_VERSION,
    MANIFEST,
    batch_of,
    open_output,
    read_keys,
    store_batch,
    write_batch,
    write_keys,
    write_manifest,
    write_run,
)

PARSE = "qa_pairs-v1"


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int) -> Answered:
    return Answered(key(number), f"raw {number}", (QAPair("What?", "A <b>"),), "m", 100, 20, 0.25)


def quarantined(number: int) -> Quarantined:
    return Quarantined(key(number), number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)


def test_a_batch_becomes_a_part_and_quarantined_rows(store: ObjectStore) -> None:
    rows: list[Answered | Quarantined] = [answered(1), quarantined(2), answered(3)]
    names = write_batch(store, PARSE, key(7), rows, written=1.5)
    assert sorted(names) == store.list()
    part, lines = sorted(names)
    assert part.startswith(f"parts/{PARSE}/{key(7)}-")
    assert lines.startswith(f"quarantine/{PARSE}/{key(7)}-")
    table = pq.read_table(pa.BufferReader(store.read(part)))
    assert table.schema.equals(PART_SCHEMA)
    first, second = table.to_pylist()
    assert (first["key"], second["key"]) == (key(1), key(3))
    assert (first["written"].timestamp(), first["answer"]["text"]) == (1.5, "raw 1")
    assert first["answer"]["pairs"] == [{"question": "What?", "answer": "A <b>"}]
    (line,) = store.read(lines).splitlines()
    assert json.loads(line) == {
        "key": key(2),
        "row": 2,
        "where": "d:2",
        "kind": "bad_request",
        "message": "HTTP 400: no",
        "status": 400,
        "attempts": 1,
        "text": None,
        "attempt": 0,
    }


@pytest.mark.parametrize(
    ("rows", "suffixes"),
    [([], []), ([answered(1)], [".parquet"]), ([quarantined(1)], [".jsonl"])],
    ids=["none", "answered", "quarantined"],
)
def test_nothing_empty_is_written(
    rows: list[Answered | Quarantined], suffixes: list[str], local: ObjectStore
) -> None:
    names = store_batch.fn(Batch(1, key(7), (), ()), ParsedBatch(rows, 1.5), local, PARSE)
    assert [Path(name).suffix for name in names] == suffixes
    assert local.list() == names


def test_an_object_is_named_by_its_content(local: ObjectStore) -> None:
    first = write_batch(local, PARSE, key(7), [answered(1), quarantined(2)], written=1)
    before = {name: local.read(name) for name in local.list()}
    assert write_batch(local, PARSE, key(7), [answered(1), quarantined(2)], written=1) == first
    others = write_batch(local, PARSE, key(7), [answered(2), quarantined(3)], written=1)
    assert set(first).isdisjoint(others)
    assert {name: local.read(name) for name in first} == before


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        (f"parts/x/{key(1)}-0123abcd.parquet", key(1)),
        (f"{key(1)}-0123abcd.jsonl", key(1)),
        (f"{key(1)}-0123abcd+part.jsonl", key(1)),
        (f"{key(1)}-0123abcd+part.parquet", None),
        ("parts/x/merged-0123abcd.parquet", ""),
        (f"parts/x/{key(1)}.parquet", None),
        (f"parts/x/{key(1)}-0123abcd.parquet.tmp", None),
        (f"parts/x/a{key(1)}-0123abcd.parquet", None),
        ("parts/x/README.txt", None),
    ],
)
def test_objects_tell_their_batch_by_name(name: str, batch: str | None) -> None:
    assert batch_of(name) == batch


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_keys_are_kept_in_order(count: int, store: ObjectStore) -> None:
    keys = KeyList()
    for number in range(count):
        keys.append(key(2**100 // (number + 1)))
    write_keys(store, "configuration", keys)
    assert read_keys(store, "configuration").tobytes().hex() == "".join(keys)
    assert len(store.read("keys/configuration")) == 16 * count


def test_keys_that_a_dataset_has_lost_are_kept_beside_it(local: ObjectStore) -> None:
    def kept(*numbers: int) -> tuple[str, set[str]]:
        write_keys(local, "c/d", [key(number) for number in numbers])
        older = "c/d.before"
        before = read_keys(local, older) if f"keys/{older}" in local.list() else np.empty(0, KEY)
        held = {before[place : place + 1].tobytes().hex() for place in range(len(before))}
        return read_keys(local, "c/d").tobytes().hex(), held

    assert kept(3, 1, 2) == (key(3) + key(1) + key(2), set())
    assert kept(3, 1, 2, 4)[1] == set()
    assert kept(4, 5) == (key(4) + key(5), {key(1), key(2), key(3)})
    assert kept(6)[1] == {key(number) for number in (1, 2, 3, 4, 5)}
    assert kept(1, 5)[1] == {key(number) for number in (2, 3, 4, 6)}


def test_keys_that_are_missing_or_damaged_are_told(local: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError):
        read_keys(local, "configuration")
    local.write("keys/configuration", b"\0" * 17)
    with pytest.raises(StoreError, match="configuration is damaged: delete it and run again"):
        read_keys(local, "configuration")


def test_an_output_is_marked_before_anything_is_in_it(store: ObjectStore) -> None:
    open_output(store)
    assert json.loads(store.read(MANIFEST)) == {"layout_version": LAYOUT_VERSION}
    open_output(store)


def test_opening_keeps_the_manifest(local: ObjectStore) -> None:
    described: dict[str, Any] = {"dataset": "d", "rows": 2}
    write_manifest(local, described)
    open_output(local)
    assert json.loads(local.read(MANIFEST)) == {**described, "layout_version": LAYOUT_VERSION}


def test_every_run_has_its_record(local: ObjectStore) -> None:
    write_run(local, "run-1", {"rows": 1})
    write_run(local, "run-2", {"rows": 2})
    assert local.list() == ["runs/run-1.json", "runs/run-2.json"]
    assert json.loads(local.read("runs/run-1.json")) == {
        "rows": 1,
        "layout_version": LAYOUT_VERSION,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"layout_version": 1}', "has layout 1, this version writes 2: use another output"),
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
        open_output(local)
    assert str(raised.value).startswith(local.uri_of(MANIFEST))
    assert "\n" not in str(raised.value)
    assert local.read(MANIFEST) == content.encode()
