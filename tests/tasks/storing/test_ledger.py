import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.keys import batch_key
from prefect_imageqa.tasks.records import TRANSIENT, Answered, FinishedRow, Kind, Quarantined
from prefect_imageqa.tasks.storing import compaction, key_index, stored_rows
from prefect_imageqa.tasks.storing import ledger as ledger_module
from prefect_imageqa.tasks.storing.compaction import compact
from prefect_imageqa.tasks.storing.key_index import Array, KeyIndex, Location, Lookup, pack_keys
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger, LedgerCounts, RowStatus
from prefect_imageqa.tasks.storing.store import write_part
from prefect_imageqa.tasks.storing.stored_rows import StoredRows

PARTS = PassFolder().parts("qa_pairs-v1")


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, **changed: Any) -> Answered:
    pairs = [{"question": "What?", "answer": f"A <b> {number}"}]
    return replace(Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25), **changed)


def quarantined(number: int, **changed: Any) -> Quarantined:
    row = Quarantined(key(number), number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)
    return replace(row, **changed)


def write(store: ObjectStore, batch: int, *rows: FinishedRow, written: float | None = None) -> str:
    return write_part(store, PARTS, key(1000 + batch), rows, written)


def read(store: ObjectStore, **options: bool) -> Ledger:
    return Ledger.read(store, PARTS, **options)


def test_rows_are_read_as_they_were_written(store: ObjectStore) -> None:
    rows: list[FinishedRow] = [
        answered(1),
        quarantined(2),
        answered(3, parsed=[], text=""),
        quarantined(4, kind=Kind.TRUNCATED, status=None, attempts=3, text="raw\n ü"),
        answered(5, parsed={"score": 0.5, "why": ["ü", None]}),
    ]
    write(store, 1, *rows[:4])
    write(store, 2, rows[4])
    ledger = read(store)
    keys = [key(number) for number in (5, 4, 3, 9, 2, 1, 5)]
    expected = [rows[4], rows[3], rows[2], None, rows[1], rows[0], rows[4]]
    assert list(ledger.outcomes(keys)) == [ledger.outcome(key) for key in keys] == expected
    assert ledger.batches == {key(1001), key(1002)}
    reasons = Counter({Kind.BAD_REQUEST: 1, Kind.TRUNCATED: 1})
    assert ledger.counts() == LedgerCounts(3, reasons)
    assert ledger.counts().quarantined == 2
    assert ledger.counts(keys) == LedgerCounts(4, reasons, missing=1)


def test_the_ledger_of_a_missing_output_is_empty(store: ObjectStore) -> None:
    ledger = read(store)
    assert ledger.statuses([key(1)]) == [RowStatus.PENDING]
    assert ledger.attempts([key(1)]) == [0]
    assert list(ledger.outcomes([key(1)])) == [None]
    assert list(ledger.outcomes([])) == []
    assert ledger.counts() == LedgerCounts(0)
    assert ledger.counts([key(1)]) == LedgerCounts(0, missing=1)
    assert ledger.batches == set()
    assert store.list() == []


def test_every_parser_configuration_has_its_own_ledger(local: ObjectStore) -> None:
    write(local, 1, answered(1), quarantined(2))
    other_parts = PassFolder().parts("json-v2")
    write_part(local, other_parts, key(1001), [answered(1, text="other")])
    assert read(local).outcome(key(1)) == answered(1)
    other = Ledger.read(local, other_parts)
    assert other.outcome(key(1)) == answered(1, text="other")
    assert other.statuses([key(2)]) == [RowStatus.PENDING]
    assert Ledger.read(local, PassFolder().parts("json")).batches == set()
    assert Ledger.read(local, PassFolder("checks").parts("qa_pairs-v1")).batches == set()


def test_a_row_is_pending_only_once_and_never_if_it_is_answered(local: ObjectStore) -> None:
    write(local, 1, answered(1), quarantined(2, kind=Kind.TIMEOUT))
    ledger = read(local)
    assert ledger.statuses([key(1)]) == [RowStatus.ANSWERED]
    assert ledger.statuses([key(2)]) == [RowStatus.PENDING]
    assert ledger.statuses([key(2)]) == [RowStatus.DUPLICATE]
    assert ledger.statuses([key(3)]) == [RowStatus.PENDING]
    assert ledger.statuses([key(3)]) == [RowStatus.DUPLICATE]
    assert read(local).statuses([key(3)]) == [RowStatus.PENDING]


@pytest.mark.parametrize("kind", list(Kind))
def test_only_transient_failures_are_retried_by_default(kind: Kind, local: ObjectStore) -> None:
    write(local, 1, quarantined(1, kind=kind))
    retried = RowStatus.SUSPECT if kind is Kind.CRASH else RowStatus.PENDING
    assert read(local).statuses([key(1)]) == [retried if kind in TRANSIENT else RowStatus.FAILED]
    for options in ({"retry_quarantined": True}, {"refresh": True}):
        ledger = read(local, **options)
        assert ledger.statuses([key(1)]) == [retried]
        assert ledger.statuses([key(1)]) == [RowStatus.DUPLICATE]


def test_a_refresh_makes_every_row_pending_but_keeps_its_answer_until_there_is_a_new_one(
    local: ObjectStore,
) -> None:
    write(local, 1, answered(1), answered(2))
    ledger = read(local, refresh=True)
    assert ledger.statuses([key(1), key(1)]) == [RowStatus.PENDING, RowStatus.DUPLICATE]
    assert ledger.outcome(key(1)) == answered(1)
    rows: list[FinishedRow] = [answered(1, text="new"), quarantined(2)]
    ledger.add(write(local, 2, *rows), rows)
    for now in (ledger, read(local)):
        assert now.outcome(key(1)) == rows[0]
        assert list(now.outcomes([key(2)])) == [answered(2)]
    assert ledger.statuses([key(1)]) == [RowStatus.DUPLICATE]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["old first", "new first"])
def test_the_later_of_two_answers_counts(order: tuple[int, int], local: ObjectStore) -> None:
    for written in order:
        write(local, written, answered(1, text=f"at {written}"), answered(written + 1), written=9.0)
    for written in order:
        name = 10 * written
        write(local, name, answered(5, text=f"at {written}"), written=1e9 + written)
    assert read(local).outcome(key(5)) == answered(5, text="at 2")


def test_an_older_answer_that_is_added_later_does_not_count(local: ObjectStore) -> None:
    write(local, 1, answered(1, text="new"), written=2e9)
    ledger = read(local)
    old: list[FinishedRow] = [answered(1, text="old")]
    ledger.add(write(local, 2, *old, written=1e9), old, 1e9)
    for now in (ledger, read(local)):
        assert now.outcome(key(1)) == answered(1, text="new")
        assert now.batches == {key(1001), key(1002)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_an_answer_beats_any_failure(order: tuple[int, int], local: ObjectStore) -> None:
    rows: dict[int, FinishedRow] = {1: quarantined(1, attempt=7), 2: answered(1)}
    for number in order:
        write(local, number, rows[number])
    ledger = read(local)
    assert ledger.statuses([key(1)]) == [RowStatus.ANSWERED]
    assert list(ledger.outcomes([key(1)])) == [answered(1)]
    assert ledger.counts() == LedgerCounts(1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_last_attempt_of_several_failures_counts(
    order: tuple[int, ...], local: ObjectStore
) -> None:
    kinds = [Kind.BAD_REQUEST, Kind.CRASH, Kind.TRUNCATED]
    for attempt in order:
        write(local, attempt, quarantined(1, kind=kinds[attempt], attempt=attempt))
    ledger = read(local)
    assert ledger.outcome(key(1)) == quarantined(1, kind=Kind.TRUNCATED, attempt=2)
    assert ledger.statuses([key(1)]) == [RowStatus.FAILED]
    assert ledger.attempts([key(1)]) == [3]
    assert ledger.counts().reasons == {Kind.TRUNCATED: 1}


def test_an_attempt_is_counted_each_time_a_row_is_quarantined(local: ObjectStore) -> None:
    for attempt in range(3):
        ledger = read(local)
        assert ledger.attempts([key(1)]) == [attempt]
        row = quarantined(1, message=f"attempt {attempt}", attempt=attempt)
        name = batch_key([key(1)], [attempt])
        ledger.add(write_part(local, PARTS, name, [row]), [row])
        assert ledger.attempts([key(1)]) == [attempt + 1]
        assert ledger.outcome(key(1)) == row
    assert len(local.list()) == 3


def test_a_batch_that_was_just_stored_is_in_the_ledger(store: ObjectStore) -> None:
    ledger = read(store)
    rows: list[FinishedRow] = [quarantined(1), answered(2), answered(3)]
    name = write(store, 77, *rows)
    assert ledger.outcome(key(2)) is None
    for _ in range(2):
        ledger.add(name, rows)
        assert list(ledger.outcomes([key(1), key(2), key(3)])) == rows
        assert ledger.statuses([key(2)]) == [RowStatus.ANSWERED]
        assert ledger.batches == {key(1077)}


def test_a_lone_surrogate_is_replaced_by_a_question_mark(local: ObjectStore) -> None:
    half, pairs = "b \ud83d", [{"question": "\udcff?", "answer": "b \ud83d"}]
    failure = quarantined(2, text=half, message=half, where=half)
    write(local, 1, answered(1, text=half, parsed=pairs, model=half), failure)
    pairs = [{"question": "??", "answer": "b ?"}]
    assert list(read(local).outcomes([key(1), key(2)])) == [
        answered(1, text="b ?", parsed=pairs, model="b ?"),
        quarantined(2, text="b ?", message="b ?", where="b ?"),
    ]


def test_rows_can_be_read_in_any_order(local: ObjectStore) -> None:
    numbers = list(range(6000))
    for start in range(0, 6000, 1000):
        write(local, start, *map(answered, numbers[start : start + 1000]))
    random.Random(0).shuffle(numbers)
    ledger = read(local)
    assert list(ledger.outcomes(list(map(key, numbers)))) == list(map(answered, numbers))


@pytest.fixture
def six_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MAX_SMALL_PARTS", 6)


def many_parts(store: ObjectStore) -> list[str]:
    for batch in range(9):
        first = 3 * batch
        write(store, batch, answered(first), quarantined(first + 1), answered(first + 2))
    return [key(number) for number in range(27)]


@pytest.mark.usefixtures("six_small_parts")
def test_rows_that_another_run_has_merged_meanwhile_are_found(store: ObjectStore) -> None:
    keys = many_parts(store)
    early = read(store)
    expected = list(early.outcomes(keys))
    reader = read(store)
    assert compact(store, early, keys) == 9
    assert reader.outcome(keys[0]) == answered(0)
    assert list(reader.outcomes(keys)) == expected
    assert None not in expected
    assert reader.batches == {key(1000 + batch) for batch in range(9)}


@pytest.mark.usefixtures("six_small_parts")
def test_large_parts_are_read_in_ranges(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: ObjectStore, path: str) -> bytes:
        raise AssertionError(f"{path} is read in one request")

    keys = many_parts(store)
    expected = list(read(store).outcomes(keys))
    other = read(store)
    with monkeypatch.context() as patched:
        patched.setattr(stored_rows, "_SMALL_BYTES", 0)
        patched.setattr(ObjectStore, "read", refuse)
        ledger = read(store)
        assert list(ledger.outcomes(keys)) == expected
        reopened = read(store)
        assert reopened.outcome(keys[0]) == answered(0)
    assert compact(store, other, keys) == 9
    monkeypatch.setattr(stored_rows, "_SMALL_BYTES", 0)
    monkeypatch.setattr(ObjectStore, "read", refuse)
    # Some of these parts are open and some are not; none of them exists any more.
    for reader in (reopened, ledger):
        assert reader.outcome(keys[1]) == quarantined(1)
        assert list(reader.outcomes(keys)) == expected


@pytest.mark.usefixtures("six_small_parts")
@pytest.mark.parametrize("method", ["sizes", "read"], ids=["while listing", "while reading"])
def test_a_ledger_that_is_read_during_a_compaction_misses_nothing(
    method: str, local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = many_parts(local)
    other = read(local)
    original: Any = getattr(ObjectStore, method)
    calls: list[str] = []

    def merged_after(store: ObjectStore, path: str) -> Any:
        calls.append(path)
        result = original(store, path)
        if len(calls) == 1:
            assert compact(local, other, []) == 9
        return result

    monkeypatch.setattr(ObjectStore, method, merged_after)
    outcomes = list(read(local).outcomes(keys))
    assert len(calls) > 1
    assert [outcome.key for outcome in outcomes if outcome] == keys


@pytest.mark.parametrize(
    ("characters", "most"), [(10**9, 256), (1, 8)], ids=["short replies", "long replies"]
)
def test_more_rows_are_read_together_if_they_are_scattered_and_short(
    characters: int, most: int, local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_ROWS_PER_FETCH", 8)
    monkeypatch.setattr(ledger_module, "_MOST_ROWS_PER_FETCH", 256)
    monkeypatch.setattr(ledger_module, "_CHARACTERS_PER_FETCH", characters)
    for batch in range(20):
        write(local, batch, *map(answered, range(50 * batch, 50 * batch + 50)))
    fetched, fetch = list[int](), StoredRows.fetch

    def counted(rows: StoredRows, keys: Array) -> Any:
        fetched.append(len(keys))
        return fetch(rows, keys)

    monkeypatch.setattr(StoredRows, "fetch", counted)
    numbers = random.Random(3).sample(range(1000), 1000)
    assert list(read(local).outcomes(list(map(key, numbers)))) == list(map(answered, numbers))
    assert max(fetched) == most
    assert sum(fetched) == 1000


def test_parts_that_keep_disappearing_are_reported_in_one_line(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(_: ObjectStore, folder: str) -> dict[str, int]:
        return {f"{folder}/{key(1)}-01234567.parquet": 1}

    monkeypatch.setattr(ObjectStore, "sizes", sizes)
    with pytest.raises(StoreError, match="other runs keep replacing objects there"):
        read(local)


def test_the_rows_of_a_deleted_part_are_pending_again(local: ObjectStore) -> None:
    name = write(local, 1, answered(1))
    ledger = read(local)
    local.remove(name)
    assert ledger.outcome(key(1)) is None
    assert read(local).statuses([key(1)]) == [RowStatus.PENDING]


def test_the_index_is_a_dict_in_which_the_highest_rank_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_index, "_MAX_RECENT", 7)
    random_ = random.Random(1)
    index, expected = KeyIndex(), dict[bytes, Location]()
    # Keys with zero bytes at either end, which numpy would strip from its strings.
    keys = [bytes([a, *bytes(13), b, c]) for a in (0, 1) for b in (0, 255) for c in range(30)]
    for number in range(2000):
        location = Location(number % 5, number, random_.randrange(9))
        chosen = random_.sample(keys, 1 + number % 3)
        for key_ in chosen:
            if key_ not in expected or expected[key_].rank <= location.rank:
                expected[key_] = location
        if len(chosen) == 1:
            index.put(chosen[0], location)
        else:
            index.update(dict.fromkeys(chosen, location))
        assert [index.get(key_) for key_ in chosen] == [expected[key_] for key_ in chosen]
        found = index.find(pack_keys([key_.hex() for key_ in chosen]))
        assert found.locations["row"].tolist() == [expected[key_].row for key_ in chosen]
    index.forget([3])
    expected = {key_: location for key_, location in expected.items() if location.file != 3}
    assert len(index) == len(expected)
    assert {key_: index.get(key_) for key_ in keys if key_ in index} == expected
    found = index.find(pack_keys([key_.hex() for key_ in keys]))
    assert found.known.tolist() == [key_ in expected for key_ in keys]
    assert [tuple(location.item()) for location in found.locations[found.known]] == [
        expected[key_] for key_ in keys if key_ in expected
    ]


def test_an_index_extended_in_pieces_is_that_of_all_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of copies of a key, within a piece or not, that with the highest rank counts."""
    monkeypatch.setattr(key_index, "_MIN_EXTENSION", 50)
    random_ = random.Random(2)
    index, expected = KeyIndex(), dict[str, tuple[int, int, int, int]]()
    index.put(bytes.fromhex(key(7)), Location(9, 9, 5))
    expected[key(7)] = (9, 9, 5, 0)

    def entries() -> Iterator[tuple[Array, Array]]:
        for file in range(40):
            keys = [key(random_.randrange(500)) for _ in range(20)]
            ranks = [random_.randrange(10) for _ in keys]
            located = [(file, row, rank, 0) for row, rank in enumerate(ranks)]
            for key_, location in zip(keys, located, strict=True):
                if key_ not in expected or expected[key_][2] <= location[2]:
                    expected[key_] = location
            yield pack_keys(keys), np.array(located, key_index.LOCATION)

    index.extend(entries())
    keys, locations = index.entries()
    assert (keys[:-1] < keys[1:]).all()
    found = [keys[number : number + 1].tobytes().hex() for number in range(len(keys))]
    assert dict(zip(found, map(tuple, locations.tolist()), strict=True)) == expected


def test_the_larger_an_index_the_less_often_its_arrays_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied, merge = list[int](), KeyIndex._merge

    def counted(index: KeyIndex, keys: Array, locations: Array) -> None:
        copied.append(len(keys))
        merge(index, keys, locations)

    monkeypatch.setattr(KeyIndex, "_merge", counted)
    monkeypatch.setattr(key_index, "_MAX_RECENT", 4)
    index = KeyIndex()
    for number in range(4000):
        index.put(bytes.fromhex(key(number)), Location(0, number, 0))
    assert len(index) == sum(copied) == 4000
    assert len(copied) < 350, "not each time that there are four more"
    assert copied[-2] >= 50


def test_rows_are_looked_up_together(monkeypatch: pytest.MonkeyPatch, local: ObjectStore) -> None:
    keys, finds, find = [key(number) for number in range(500)], Counter[str](), KeyIndex.find

    def counted(index: KeyIndex, wanted: Array) -> Lookup:
        finds["all"] += 1
        return find(index, wanted)

    ledger = read(local)
    monkeypatch.setattr(KeyIndex, "find", counted)
    assert ledger.statuses(keys) == [RowStatus.PENDING] * 500
    ledger.add("p", [answered(number) for number in range(500)])
    assert ledger.attempts(keys) == [0] * 500
    assert finds["all"] <= 5


def test_keys_put_one_by_one_are_not_sorted_with_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_index, "_MAX_RECENT", 10)
    monkeypatch.setattr(KeyIndex, "extend", None)
    index = KeyIndex()
    for number in range(1000):
        index.put(bytes.fromhex(key(number * 7919 % 1000)), Location(0, number, 0))
    assert len(index) == 1000
    keys, locations = index.entries()
    assert (keys[:-1] < keys[1:]).all()
    assert locations["row"][7] == next(n for n in range(1000) if n * 7919 % 1000 == 7)
