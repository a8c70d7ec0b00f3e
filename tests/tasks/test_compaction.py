import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks import compaction
from prefect_imageqa.tasks.compaction import compact
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.ledger import Ledger
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.records import Answered, Kind, QAPair, Quarantined
from prefect_imageqa.tasks.storing import write_batch

PARSE = "qa_pairs-v1"
PARTS = f"parts/{PARSE}"
QUARANTINE = f"quarantine/{PARSE}"
BATCHES = 10


@pytest.fixture(autouse=True)
def few_is_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MOST_SMALL", 6)


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, **changed: Any) -> Answered:
    pairs = (QAPair("What?", f"A <b> {number}"),)
    return replace(Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25), **changed)


def quarantined(number: int, **changed: Any) -> Quarantined:
    told = Quarantined(key(number), number, f"d:{number}", Kind.UNPARSED, "no \ud83d", text="\n")
    return replace(told, **changed)


def batch_key(number: int) -> str:
    return key(10_000 + number)


def write(store: ObjectStore, batch: int, *rows: Answered | Quarantined, **options: Any) -> None:
    write_batch(store, PARSE, batch_key(batch), rows, **options)


def many_parts(store: ObjectStore, batches: int = BATCHES) -> list[str]:
    """Batches of four rows, stored in random order; every third of them is quarantined."""
    numbers = list(range(batches))
    random.Random(0).shuffle(numbers)
    for batch in numbers:
        rows = range(4 * batch, 4 * batch + 4)
        write(store, batch, *(quarantined(n) if n % 3 == 2 else answered(n) for n in rows))
    return [key(number) for number in range(4 * batches)]


def outcome(number: int) -> Answered | Quarantined:
    return quarantined(number) if number % 3 == 2 else answered(number)


def read(store: ObjectStore) -> Ledger:
    return Ledger.read(store, PARSE)


def stored_keys(store: ObjectStore, name: str) -> list[str]:
    column = pq.read_table(pa.BufferReader(store.read(name))).column("key")
    keys: list[str] = column.to_pylist()
    return keys


def check(store: ObjectStore, keys: Sequence[str], batches: int = BATCHES) -> None:
    ledger = read(store)
    assert list(ledger.outcomes(keys)) == [outcome(int(name, 16)) for name in keys]
    assert ledger.batches == {batch_key(number) for number in range(batches)}


def test_many_small_objects_become_one_in_dataset_order(store: ObjectStore) -> None:
    keys = many_parts(store)
    store.write(f"{PARTS}/note.txt", b"kept")
    assert compact(store, read(store), keys) == 2 * BATCHES
    part, note = store.list(PARTS)
    (lines,) = store.list(QUARANTINE)
    assert part.startswith(f"{PARTS}/merged-")
    assert lines.startswith(f"{QUARANTINE}/merged-")
    assert store.read(note) == b"kept"
    assert stored_keys(store, part) == [name for name in keys if int(name, 16) % 3 != 2]
    check(store, keys)
    assert compact(store, read(store), keys) == 0


def test_the_order_is_the_datasets(local: ObjectStore) -> None:
    many_parts(local)
    keys = [key(4 * batch + row) for batch in reversed(range(1, BATCHES)) for row in range(4)]
    compact(local, read(local), keys)
    beyond = [key(row) for row in range(4)]
    expected = [name for name in keys + beyond if int(name, 16) % 3 != 2]
    assert stored_keys(local, local.list(PARTS)[0]) == expected


def test_few_objects_are_left_alone(local: ObjectStore) -> None:
    keys = many_parts(local, 6)
    before = local.list()
    assert compact(local, read(local), keys) == 0
    assert local.list() == before


def test_the_ledger_that_was_compacted_reads_on(local: ObjectStore) -> None:
    keys = many_parts(local)
    ledger = read(local)
    compact(local, ledger, keys)
    assert list(ledger.outcomes(keys)) == list(map(outcome, range(len(keys))))
    assert compact(local, ledger, keys) == 0


def test_merged_objects_are_of_limited_size(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGED_ROWS", 12)
    monkeypatch.setattr(compaction, "SMALL_ROWS", 5)
    monkeypatch.setattr(compaction, "_GROUP_ROWS", 4)
    keys = many_parts(local)
    assert compact(local, read(local), keys) == 2 * BATCHES - 1, "the last quarantined row is alone"
    answers = sum(number % 3 != 2 for number in range(4 * BATCHES))
    counts = [len(stored_keys(local, name)) for name in local.list(PARTS)]
    assert sum(counts) == answers
    assert len(counts) == 3
    assert max(counts) <= 12
    part = pq.ParquetFile(pa.BufferReader(local.read(local.list(PARTS)[0])))
    groups = [part.metadata.row_group(group).num_rows for group in range(part.num_row_groups)]
    assert max(groups) <= 4
    assert len(groups) <= 4
    assert len(local.list(QUARANTINE)) == 2
    check(local, keys)


def test_quarantined_rows_are_merged_up_to_a_number_of_bytes(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_MERGED_LINES_BYTES", 800)
    keys = many_parts(local)
    compact(local, read(local), keys)
    assert 1 < len(local.list(QUARANTINE)) < 5
    check(local, keys)


def test_later_runs_merge_what_is_small_again(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in range(12):
        rows = range(4 * batch, 4 * batch + 4)
        write(local, batch, *map(outcome, rows))
        compact(local, read(local), [])
        assert len(local.list(PARTS)) <= 7
    check(local, [key(number) for number in range(48)], 12)


def test_only_rows_that_count_are_kept(local: ObjectStore) -> None:
    for batch in range(BATCHES):
        write(local, batch, answered(batch, text="old"), written=1)
        write(local, batch, quarantined(1000 + batch))
    for batch in range(BATCHES, 2 * BATCHES):
        write(local, batch, answered(batch - BATCHES, text="new"), written=2)
        write(local, batch, quarantined(1000 - BATCHES + batch, attempt=1))
    write(local, 2 * BATCHES, answered(1000), written=3)
    keys = [key(number) for number in (*range(BATCHES), *range(1000, 1000 + BATCHES))]
    before = list(read(local).outcomes(keys))
    assert compact(local, read(local), keys) == 2 * BATCHES + 1 + 2 * BATCHES
    (part,), (lines,) = local.list(PARTS), local.list(QUARANTINE)
    assert sorted(stored_keys(local, part)) == sorted([*keys[:BATCHES], key(1000)])
    assert len(local.read(lines).splitlines()) == BATCHES - 1 + 1
    ledger = read(local)
    assert list(ledger.outcomes(keys)) == before
    assert ledger.answer(key(3)) == answered(3, text="new")
    assert ledger.attempt(key(1001)) == 2
    assert ledger.batches == {batch_key(number) for number in range(2 * BATCHES + 1)}


def test_an_answer_keeps_its_time(local: ObjectStore) -> None:
    many_parts(local)
    compact(local, read(local), [])
    write(local, 1, answered(0, text="before"), written=1)
    assert read(local).answer(key(0)) == answered(0)
    write(local, 1, answered(0, text="after"), written=1e10)
    assert read(local).answer(key(0)) == answered(0, text="after")


def test_two_runs_may_compact_at_once(local: ObjectStore) -> None:
    keys = many_parts(local)
    one, two = read(local), read(local)
    extra: list[Answered | Quarantined] = [answered(500), quarantined(501)]
    two.add(write_batch(local, PARSE, batch_key(BATCHES), extra), extra)
    compact(local, one, keys)
    assert compact(local, two, keys) == 0
    assert list(two.outcomes([*keys, key(500)])) == [*map(outcome, range(len(keys))), extra[0]]
    check(local, keys, BATCHES + 1)


def test_compactions_that_interleave_lose_nothing(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGED_ROWS", 12)
    keys = many_parts(local)
    other = read(local)
    remove, calls = ObjectStore.remove, list[str]()

    def compact_before(store: ObjectStore, path: str) -> None:
        calls.append(path)
        if len(calls) in (1, 6):
            compact(local, other, keys[::-1])
        remove(store, path)

    monkeypatch.setattr(ObjectStore, "remove", compact_before)
    compact(local, read(local), keys)
    check(local, keys)


@pytest.mark.parametrize("removed", [0, 1, 7])
def test_a_compaction_that_is_killed_loses_nothing(
    removed: int, local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = many_parts(local)
    original, left = ObjectStore.remove, list(range(removed))

    def killed(store: ObjectStore, path: str) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        original(store, path)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(local, read(local), keys)
    check(local, keys)
    compact(local, read(local), keys)
    check(local, keys)


def test_what_is_damaged_or_gone_is_left_alone(local: ObjectStore) -> None:
    keys = many_parts(local)
    ledger = read(local)
    damaged, gone, *_ = local.list(PARTS)
    local.write(damaged, b"damaged")
    local.remove(gone)
    assert compact(local, ledger, keys) == 2 * BATCHES - 2
    assert local.read(damaged) == b"damaged"
    with pytest.raises(StoreError, match=r"is damaged .*: delete it, and run again"):
        read(local)
    local.remove(damaged)
    again = read(local)
    assert sum(outcome is None for outcome in again.outcomes(keys)) == 6
    assert len(again.batches) == BATCHES - 2  # what is left of these two is parsed again


def test_nothing_is_removed_if_the_merged_object_cannot_be_stored(
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


def test_an_object_that_is_its_own_successor_stays(local: ObjectStore) -> None:
    """Sources without rows that count add nothing to the one that has them all."""
    for batch in range(BATCHES):
        write(local, batch, answered(1, text="old"), written=1)
    write(local, BATCHES, answered(1), written=2)
    compact(local, read(local), [])
    (merged,) = local.list(PARTS)
    for _ in range(2):
        for batch in range(BATCHES):
            write(local, batch, answered(1, text="old"), written=1)
        assert compact(local, read(local), []) == BATCHES + 1
        assert local.list(PARTS) == [merged]
        assert read(local).answer(key(1)) == answered(1)
