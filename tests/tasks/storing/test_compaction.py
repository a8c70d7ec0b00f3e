import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined
from prefect_imageqa.tasks.storing import compaction
from prefect_imageqa.tasks.storing.compaction import compact
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.parts import rows_of
from prefect_imageqa.tasks.storing.store import write_part
from prefect_imageqa.tasks.storing.stored_rows import StoredRows

PARTS = PassFolder().parts("qa_pairs-v1")
BATCHES = 10


@pytest.fixture(autouse=True)
def six_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MAX_SMALL_PARTS", 6)


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, **changed: Any) -> Answered:
    pairs = [{"question": "What?", "answer": f"A <b> {number}"}]
    return replace(Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25), **changed)


def quarantined(number: int, **changed: Any) -> Quarantined:
    row = Quarantined(key(number), number, f"d:{number}", Kind.UNPARSED, "no", text="\n")
    return replace(row, **changed)


def batch_key(number: int) -> str:
    return key(10_000 + number)


def write(store: ObjectStore, batch: int, *rows: FinishedRow, **options: Any) -> None:
    write_part(store, PARTS, batch_key(batch), rows, **options)


def many_parts(store: ObjectStore, batches: int = BATCHES) -> list[str]:
    """Batches of four rows, stored in random order; every third row is quarantined."""
    numbers = list(range(batches))
    random.Random(0).shuffle(numbers)
    for batch in numbers:
        rows = range(4 * batch, 4 * batch + 4)
        write(store, batch, *map(outcome, rows))
    return [key(number) for number in range(4 * batches)]


def outcome(number: int) -> FinishedRow:
    return quarantined(number) if number % 3 == 2 else answered(number)


def read(store: ObjectStore) -> Ledger:
    return Ledger.read(store, PARTS)


def stored_rows(store: ObjectStore, name: str) -> list[FinishedRow]:
    return list(rows_of(pq.read_table(pa.BufferReader(store.read(name)))))


def stored_keys(store: ObjectStore, name: str) -> list[str]:
    return [row.key for row in stored_rows(store, name)]


def check(store: ObjectStore, keys: Sequence[str], batches: int = BATCHES) -> None:
    ledger = read(store)
    assert list(ledger.outcomes(keys)) == [outcome(int(name, 16)) for name in keys]
    assert ledger.batches == {batch_key(number) for number in range(batches)}


def test_many_small_parts_are_merged_into_one_in_dataset_order(store: ObjectStore) -> None:
    """The merged part has both answered and quarantined rows."""
    keys = many_parts(store)
    store.write(f"{PARTS}/note.txt", b"other")
    assert compact(store, read(store), keys) == BATCHES
    merged, note = store.list()
    assert merged.startswith(f"{PARTS}/merged-")
    assert store.read(note) == b"other"
    assert stored_rows(store, merged) == list(map(outcome, range(4 * BATCHES)))
    check(store, keys)
    assert compact(store, read(store), keys) == 0


def test_merged_rows_are_in_the_order_of_the_keys(local: ObjectStore) -> None:
    many_parts(local)
    keys = [key(4 * batch + row) for batch in reversed(range(1, BATCHES)) for row in range(4)]
    compact(local, read(local), keys)
    not_in_dataset = [key(row) for row in range(4)]
    assert stored_keys(local, local.list()[0]) == keys + not_in_dataset


def test_a_few_small_parts_are_not_merged(local: ObjectStore) -> None:
    keys = many_parts(local, 6)
    before = local.list()
    assert compact(local, read(local), keys) == 0
    assert local.list() == before


def test_a_ledger_points_to_the_merged_parts_without_listing_or_reading_them_again(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = many_parts(local)
    ledger = read(local)
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "sizes", None)
        assert compact(local, ledger, keys) == BATCHES
        assert list(ledger.outcomes(keys)) == list(map(outcome, range(len(keys))))
        assert ledger.batches == {batch_key(number) for number in range(BATCHES)}
        assert compact(local, ledger, keys) == 0
    before = [array.copy() for array in ledger.rows.index.entries()]
    ledger.rows.sync()
    assert all(map(np.array_equal, ledger.rows.index.entries(), before))


def test_compacted_rows_that_were_stored_twice_are_those_that_count(local: ObjectStore) -> None:
    keys = many_parts(local)
    write(local, 0, answered(0, text="later"), written=1e10)
    ledger = read(local)
    compact(local, ledger, keys)
    for now in (ledger, read(local)):
        assert now.outcome(keys[0]) == answered(0, text="later")
        assert list(now.outcomes(keys[1:])) == list(map(outcome, range(1, len(keys))))


def test_merged_parts_have_a_maximum_size(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGED_ROWS", 12)
    monkeypatch.setattr(compaction, "SMALL_ROWS", 5)
    monkeypatch.setattr(compaction, "_GROUP_ROWS", 4)
    keys = many_parts(local)
    assert compact(local, read(local), keys) == BATCHES - 1, (
        "the last batch has nothing left to merge with"
    )
    counts = [len(stored_keys(local, name)) for name in local.list()]
    assert sorted(counts) == [4, 12, 12, 12]
    merged = next(name for name in local.list() if "merged" in name)
    part = pq.ParquetFile(pa.BufferReader(local.read(merged)))
    groups = [part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)]
    assert groups == [4, 4, 4]
    check(local, keys)


def test_row_groups_have_a_maximum_size_in_bytes(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_GROUP_BYTES", 800)
    keys = many_parts(local)
    compact(local, read(local), keys)
    (merged,) = local.list()
    assert 1 < pq.ParquetFile(pa.BufferReader(local.read(merged))).num_row_groups <= BATCHES
    check(local, keys)


def test_later_runs_merge_small_parts_again(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in range(12):
        rows = range(4 * batch, 4 * batch + 4)
        write(local, batch, *map(outcome, rows))
        compact(local, read(local), [])
        assert len(local.list()) <= 7
    check(local, [key(number) for number in range(48)], 12)


def test_only_rows_that_count_are_copied(local: ObjectStore) -> None:
    for batch in range(BATCHES):
        write(local, batch, answered(batch, text="old"), quarantined(1000 + batch), written=1)
    for batch in range(BATCHES):
        again = quarantined(1000 + batch, attempt=1)
        write(local, BATCHES + batch, answered(batch, text="new"), again, written=2)
    write(local, 2 * BATCHES, answered(1000), written=3)
    keys = [key(number) for number in (*range(BATCHES), *range(1000, 1000 + BATCHES))]
    before = list(read(local).outcomes(keys))
    assert compact(local, read(local), keys) == 2 * BATCHES + 1
    (part,) = local.list()
    assert sorted(stored_keys(local, part)) == sorted(keys)
    ledger = read(local)
    assert list(ledger.outcomes(keys)) == before
    assert ledger.outcome(key(3)) == answered(3, text="new")
    assert ledger.outcome(key(1000)) == answered(1000)
    assert ledger.attempts([key(1001)]) == [2]
    assert ledger.batches == {batch_key(number) for number in range(2 * BATCHES + 1)}


def test_a_merged_answer_keeps_its_time(local: ObjectStore) -> None:
    many_parts(local)
    compact(local, read(local), [])
    write(local, 1, answered(0, text="before"), written=1)
    assert read(local).outcome(key(0)) == answered(0)
    write(local, 1, answered(0, text="after"), written=1e10)
    assert read(local).outcome(key(0)) == answered(0, text="after")


@pytest.mark.parametrize("removed", [0, 1, 7])
def test_a_killed_compaction_loses_nothing(
    removed: int, local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = many_parts(local)
    original, remaining = ObjectStore.remove, list(range(removed))

    def remove_until_killed(store: ObjectStore, path: str) -> None:
        if not remaining:
            raise KeyboardInterrupt
        remaining.pop()
        original(store, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "remove", remove_until_killed)
        with pytest.raises(KeyboardInterrupt):
            compact(local, read(local), keys)
    check(local, keys)
    compact(local, read(local), keys)
    check(local, keys)


def test_corrupted_and_missing_parts_are_skipped(local: ObjectStore) -> None:
    keys = many_parts(local)
    ledger = read(local)
    corrupted, missing, *_ = local.list()
    local.write(corrupted, b"corrupted")
    local.remove(missing)
    assert compact(local, ledger, keys) == BATCHES - 2
    assert local.read(corrupted) == b"corrupted"
    with pytest.raises(StoreError, match=r"is corrupted .*: delete it and run again"):
        read(local)
    local.remove(corrupted)
    again = read(local)
    assert sum(outcome is None for outcome in again.outcomes(keys)) == 8
    assert len(again.batches) == BATCHES - 2  # the other two will be parsed again


def test_nothing_is_removed_if_the_merged_part_cannot_be_stored(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = many_parts(local)
    before = local.list()

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", full)
        with pytest.raises(StoreError, match="the disk is full"):
            compact(local, read(local), keys)
    assert local.list() == before


def test_a_part_that_is_merged_into_itself_stays(local: ObjectStore) -> None:
    """The other sources have no rows that count, so the merged part is the same object again."""
    for batch in range(BATCHES):
        write(local, batch, answered(1, text="old"), written=1)
    write(local, BATCHES, answered(1), written=2)
    compact(local, read(local), [])
    (merged,) = local.list()
    for _ in range(2):
        for batch in range(BATCHES):
            write(local, batch, answered(1, text="old"), written=1)
        assert compact(local, read(local), []) == BATCHES + 1
        assert local.list() == [merged]
        assert read(local).outcome(key(1)) == answered(1)


def test_few_threads_read_parts(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow keeps memory for each thread that has read one."""
    keys = many_parts(local, 30)
    ledger, threads = read(local), set[int]()
    table = StoredRows.table

    def recorded(rows: StoredRows, file: int) -> Any:
        threads.add(threading.get_ident())
        return table(rows, file)

    monkeypatch.setattr(StoredRows, "table", recorded)
    assert compact(local, ledger, keys) == 30
    assert len(threads) <= 4
