import json
import random
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks import compaction, key_index, stored_rows
from prefect_imageqa.tasks.caching import batch_key
from prefect_imageqa.tasks.compaction import compact
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.key_index import KeyIndex, Place, pack_keys
from prefect_imageqa.tasks.ledger import Ledger, LedgerCounts, RowStatus
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.records import TRANSIENT, Answered, Kind, QAPair, Quarantined
from prefect_imageqa.tasks.storing import write_batch

PARSE = "qa_pairs-v1"


def key(number: int) -> str:
    return f"{number:032x}"


def answered(number: int, **changed: Any) -> Answered:
    pairs = (QAPair("What?", f"A <b> {number}"), QAPair("Wo? ü", "Hier\n!"))
    return replace(Answered(key(number), f"raw {number}", pairs, "m", 100, 20, 0.25), **changed)


def quarantined(number: int, **changed: Any) -> Quarantined:
    told = Quarantined(key(number), number, f"d:{number}", Kind.BAD_REQUEST, "HTTP 400: no", 400, 1)
    return replace(told, **changed)


def write(
    store: ObjectStore, batch: int, *rows: Answered | Quarantined, written: float | None = None
) -> list[str]:
    return write_batch(store, PARSE, key(1000 + batch), rows, written)


def read(store: ObjectStore, **options: bool) -> Ledger:
    return Ledger.read(store, PARSE, **options)


def test_what_is_written_is_read(store: ObjectStore) -> None:
    rows: list[Answered | Quarantined] = [
        answered(1),
        quarantined(2),
        answered(3, pairs=(), text=""),
        quarantined(4, kind=Kind.TRUNCATED, status=None, attempts=3, text="raw\n \ud83d ü"),
    ]
    write(store, 1, *rows)
    write(store, 2, answered(5))
    ledger = read(store)
    assert [ledger.answer(key(number)) for number in (1, 3, 5)] == [rows[0], rows[2], answered(5)]
    assert [ledger.failure(key(number)) for number in (2, 4)] == [rows[1], rows[3]]
    assert ledger.answer(key(2)) is ledger.answer(key(9)) is None
    assert ledger.failure(key(1)) is ledger.failure(key(9)) is None
    keys = [key(number) for number in (5, 4, 3, 9, 2, 1, 5)]
    assert list(ledger.outcomes(keys)) == [
        answered(5),
        rows[3],
        rows[2],
        None,
        rows[1],
        rows[0],
        answered(5),
    ]
    assert ledger.batches == {key(1001), key(1002)}
    assert ledger.counts() == LedgerCounts(3, ledger.counts().quarantined)
    assert ledger.counts().quarantined == {Kind.BAD_REQUEST: 1, Kind.TRUNCATED: 1}


def test_an_output_that_is_not_there_is_an_empty_ledger(store: ObjectStore) -> None:
    ledger = read(store)
    assert ledger.status(key(1)) is RowStatus.PENDING
    assert ledger.attempt(key(1)) == 0
    assert list(ledger.outcomes([key(1)])) == [None]
    assert list(ledger.outcomes([])) == []
    assert ledger.counts() == LedgerCounts(0)
    assert ledger.batches == set()
    assert store.list() == []


def test_every_configuration_of_the_parser_has_its_own_ledger(local: ObjectStore) -> None:
    write(local, 1, answered(1), quarantined(2))
    write_batch(local, "json-v2", key(1001), [answered(1, text="other")])
    assert read(local).answer(key(1)) == answered(1)
    other = Ledger.read(local, "json-v2")
    assert other.answer(key(1)) == answered(1, text="other")
    assert other.status(key(2)) is RowStatus.PENDING
    assert Ledger.read(local, "json").batches == set()


def test_a_row_is_pending_once_and_never_when_it_is_answered(local: ObjectStore) -> None:
    write(local, 1, answered(1), quarantined(2, kind=Kind.TIMEOUT))
    ledger = read(local)
    assert ledger.status(key(1)) is RowStatus.ANSWERED
    assert ledger.status(key(2)) is RowStatus.PENDING
    assert ledger.status(key(2)) is RowStatus.ASKED
    assert ledger.status(key(3)) is RowStatus.PENDING
    assert ledger.status(key(3)) is RowStatus.ASKED
    assert read(local).status(key(3)) is RowStatus.PENDING


@pytest.mark.parametrize("kind", list(Kind))
def test_only_what_may_pass_is_asked_again(kind: Kind, local: ObjectStore) -> None:
    write(local, 1, quarantined(1, kind=kind))
    asked = RowStatus.SUSPECT if kind is Kind.CRASH else RowStatus.PENDING
    assert read(local).status(key(1)) is (asked if kind in TRANSIENT else RowStatus.FAILED)
    for options in ({"retry_quarantined": True}, {"refresh": True}):
        ledger = read(local, **options)
        assert ledger.status(key(1)) is asked
        assert ledger.status(key(1)) is RowStatus.ASKED


def test_a_refresh_asks_every_row_once_and_keeps_its_answer_until_then(local: ObjectStore) -> None:
    write(local, 1, answered(1), answered(2))
    ledger = read(local, refresh=True)
    assert [ledger.status(key(1)) for _ in range(2)] == [RowStatus.PENDING, RowStatus.ASKED]
    assert ledger.answer(key(1)) == answered(1)
    rows: list[Answered | Quarantined] = [answered(1, text="new"), quarantined(2)]
    ledger.add(write(local, 2, *rows), rows)
    for now in (ledger, read(local)):
        assert now.answer(key(1)) == rows[0]
        assert list(now.outcomes([key(2)])) == [answered(2)]
    assert ledger.status(key(1)) is RowStatus.ASKED


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["old first", "new first"])
def test_of_two_answers_the_later_one_counts(order: tuple[int, int], local: ObjectStore) -> None:
    for written in order:
        write(local, written, answered(1, text=f"at {written}"), answered(written + 1), written=9.0)
    assert read(local).answer(key(1)) is not None
    for written in order:
        name = 10 * written
        write(local, name, answered(5, text=f"at {written}"), written=1e9 + written)
    assert read(local).answer(key(5)) == answered(5, text="at 2")


def test_an_older_answer_that_comes_late_does_not_count(local: ObjectStore) -> None:
    write(local, 1, answered(1, text="new"), written=2e9)
    ledger = read(local)
    old = [answered(1, text="old")]
    ledger.add(write(local, 2, *old, written=1e9), old, 1e9)
    for now in (ledger, read(local)):
        assert now.answer(key(1)) == answered(1, text="new")
        assert now.batches == {key(1001), key(1002)}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_an_answer_beats_any_failure(order: tuple[int, int], local: ObjectStore) -> None:
    rows: dict[int, Answered | Quarantined] = {1: quarantined(1, attempt=7), 2: answered(1)}
    for number in order:
        write(local, number, rows[number])
    ledger = read(local)
    assert ledger.status(key(1)) is RowStatus.ANSWERED
    assert list(ledger.outcomes([key(1)])) == [answered(1)]
    assert ledger.counts() == LedgerCounts(1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_of_failures_the_last_attempt_counts(order: tuple[int, ...], local: ObjectStore) -> None:
    kinds = [Kind.BAD_REQUEST, Kind.CRASH, Kind.TRUNCATED]
    for attempt in order:
        write(local, attempt, quarantined(1, kind=kinds[attempt], attempt=attempt))
    ledger = read(local)
    assert ledger.failure(key(1)) == quarantined(1, kind=Kind.TRUNCATED, attempt=2)
    assert ledger.status(key(1)) is RowStatus.FAILED
    assert ledger.attempt(key(1)) == 3
    assert ledger.counts().quarantined == {Kind.TRUNCATED: 1}


def test_attempts_count_the_times_a_row_was_quarantined(local: ObjectStore) -> None:
    for attempt in range(3):
        ledger = read(local)
        assert ledger.attempt(key(1)) == attempt
        row = quarantined(1, message=f"attempt {attempt}", attempt=attempt)
        name = batch_key([key(1)], [attempt])
        ledger.add(write_batch(local, PARSE, name, [row]), [row])
        assert ledger.attempt(key(1)) == attempt + 1
        assert ledger.failure(key(1)) == row
    assert len(local.list("quarantine")) == 3


def test_a_batch_that_was_just_stored_is_known_at_once(store: ObjectStore) -> None:
    ledger = read(store)
    rows: list[Answered | Quarantined] = [quarantined(1), answered(2), answered(3)]
    names = write(store, 77, *rows)
    assert ledger.answer(key(2)) is None
    for _ in range(2):
        ledger.add(names, rows)
        assert [ledger.answer(key(2)), ledger.answer(key(3))] == rows[1:]
        assert ledger.failure(key(1)) == rows[0]
        assert ledger.status(key(2)) is RowStatus.ANSWERED
        assert ledger.batches == {key(1077)}


def test_half_a_surrogate_pair_costs_one_character(local: ObjectStore) -> None:
    row = answered(1, text="a \ud83d", pairs=(QAPair("\udcff?", "b \ud83d"),))
    write(local, 1, row)
    expected = replace(row, text="a ?", pairs=(QAPair("??", "b ?"),))
    assert read(local).answer(key(1)) == expected


def test_rows_come_in_any_order(local: ObjectStore) -> None:
    numbers = list(range(6000))
    for start in range(0, 6000, 1000):
        write(local, start, *map(answered, numbers[start : start + 1000]))
    random.Random(0).shuffle(numbers)
    ledger = read(local)
    assert list(ledger.outcomes(list(map(key, numbers)))) == list(map(answered, numbers))


@pytest.fixture
def few_is_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MOST_SMALL", 6)


def many_parts(store: ObjectStore) -> list[str]:
    for batch in range(9):
        first = 3 * batch
        write(store, batch, answered(first), quarantined(first + 1), answered(first + 2))
    return [key(number) for number in range(27)]


@pytest.mark.usefixtures("few_is_many")
def test_rows_that_another_run_merges_meanwhile_are_found(store: ObjectStore) -> None:
    keys = many_parts(store)
    early = read(store)
    expected = list(early.outcomes(keys))
    reader = read(store)
    assert compact(store, early, keys) == 18
    assert reader.answer(keys[0]) == answered(0)
    assert list(reader.outcomes(keys)) == expected
    assert None not in expected
    assert reader.failure(keys[1]) == quarantined(1)
    assert reader.batches == {key(1000 + batch) for batch in range(9)}


@pytest.mark.usefixtures("few_is_many")
def test_large_parts_are_read_in_pieces(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: ObjectStore, path: str) -> bytes:
        raise AssertionError(f"{path} is read whole")

    names = [
        name
        for batch in range(9)
        for name in write(store, batch, *map(answered, range(3 * batch, 3 * batch + 3)))
    ]
    keys = [key(number) for number in range(27)]
    other = read(store)
    with monkeypatch.context() as patched:
        patched.setattr(stored_rows, "_WHOLE_BYTES", 0)
        patched.setattr(ObjectStore, "read", refuse)
        ledger = read(store)
        assert list(ledger.outcomes(keys)) == list(map(answered, range(27)))
        reopened = read(store)
        assert reopened.answer(keys[0]) == answered(0)
    assert compact(store, other, keys) == len(names)
    monkeypatch.setattr(stored_rows, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(ObjectStore, "read", refuse)
    # Of these parts some are open and some are not; all are gone.
    for reader in (reopened, ledger):
        assert reader.answer(keys[1]) == answered(1)
        assert list(reader.outcomes(keys)) == list(map(answered, range(27)))


@pytest.mark.usefixtures("few_is_many")
@pytest.mark.parametrize("method", ["sizes", "read"], ids=["listed", "read"])
def test_a_ledger_misses_nothing_that_is_merged_while_it_is(
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
            assert compact(local, other, []) == 18
        return result

    monkeypatch.setattr(ObjectStore, method, merged_after)
    outcomes = list(read(local).outcomes(keys))
    assert len(calls) > 1
    assert [outcome.key for outcome in outcomes if outcome] == keys


def test_objects_that_vanish_for_ever_end_in_one_clear_line(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(_: ObjectStore, folder: str) -> dict[str, int]:
        return {f"{folder}/{key(1)}-01234567.parquet": 1}

    monkeypatch.setattr(ObjectStore, "sizes", sizes)
    with pytest.raises(StoreError, match="other runs keep replacing objects there"):
        read(local)


def test_a_part_that_was_deleted_has_no_rows(local: ObjectStore) -> None:
    (name,) = write(local, 1, answered(1))
    ledger = read(local)
    local.remove(name)
    assert ledger.answer(key(1)) is None
    assert read(local).status(key(1)) is RowStatus.PENDING


def table_of(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@pytest.mark.parametrize(
    ("number", "content"),
    [
        (0, b""),
        (0, b"not Parquet at all"),
        (0, b"PAR1" + b"\0" * 100 + b"PAR1"),
        (0, table_of(other=["a"])),
        (0, table_of(key=[key(1)], answer=["text"])),
        (1, b'{"key": "00"'),
        (1, b"[]\n"),
        (1, b"{}\n"),
        (1, b"null\n"),
        (1, b'{"key": "xyz", "kind": "crash", "attempt": 0}\n'),
        (1, json.dumps({"key": key(2), "kind": "crash"}).encode()),
        (1, json.dumps({"key": key(2), "kind": "crash", "attempt": None}).encode()),
        (1, json.dumps({"key": key(2), "kind": "crash", "attempt": 2**70}).encode()),
        (1, json.dumps({"key": key(2), "attempt": 0}).encode()),
        (1, json.dumps({"key": key(2), "kind": "unknown", "attempt": 0}).encode()),
        (1, b"\xff\xfe\n"),
        (1, b"[" * 100_000),
        (1, b'{"batches": 5}'),
    ],
)
def test_a_damaged_object_is_named_with_what_to_do(
    number: int, content: bytes, local: ObjectStore
) -> None:
    name = sorted(write(local, 1, answered(1), quarantined(2)))[number]
    local.write(name, content)
    with pytest.raises(StoreError) as raised:
        read(local)
    assert str(raised.value).startswith(f"{local.uri_of(name)} is damaged (")
    assert str(raised.value).endswith("delete it, and run again")
    assert "\n" not in str(raised.value)
    local.remove(name)
    read(local)


@pytest.mark.parametrize("bad", ["not hexadecimal", "", key(1)[:-1] + " ", 2 * key(1)])
def test_keys_that_are_none_are_damage(bad: str, local: ObjectStore) -> None:
    write(local, 1, answered(1, key=key(1)))
    (name,) = local.list()
    table = pq.read_table(pa.BufferReader(local.read(name)))
    column = pa.array([bad], pa.string())
    broken = table.set_column(0, table.schema.field("key"), column)
    sink = pa.BufferOutputStream()
    pq.write_table(broken, sink)
    local.write(name, sink.getvalue().to_pybytes())
    with pytest.raises(StoreError, match="is damaged"):
        read(local)


def test_a_part_that_is_cut_anywhere_is_damaged(local: ObjectStore) -> None:
    (name,) = write(local, 1, *map(answered, range(20)))
    whole = local.read(name)
    for length in range(0, len(whole), 97):
        local.write(name, whole[:length])
        with pytest.raises(StoreError, match="is damaged"):
            read(local)


@pytest.mark.parametrize("replacement", [[], [answered(2)]], ids=["fewer rows", "another row"])
def test_damage_that_is_found_late_is_named_as_well(
    replacement: list[Answered], local: ObjectStore
) -> None:
    (name,) = write(local, 1, answered(3), answered(1))
    ledger = read(local)
    (other,) = write(local, 2, answered(3), *replacement)
    local.write(name, local.read(other))
    with pytest.raises(StoreError, match="is damaged"):
        ledger.answer(key(1))


def test_objects_of_others_beside_ours_do_not_matter(local: ObjectStore) -> None:
    write(local, 1, answered(1))
    local.write(f"parts/{PARSE}/README.parquet", b"hello")
    local.write(f"parts/{PARSE}/{key(1)}-01234567.jsonl", b"hello")
    local.write("parts/note", b"hello")
    assert read(local).answer(key(1)) == answered(1)


def test_an_index_is_a_dict_in_which_the_highest_rank_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_index, "_FOLDED_AT", 7)
    random_ = random.Random(1)
    index, expected = KeyIndex(), dict[bytes, Place]()
    # Keys with zero bytes at either end, which numpy would strip from its strings.
    keys = [bytes([a, *bytes(13), b, c]) for a in (0, 1) for b in (0, 255) for c in range(30)]
    for number in range(2000):
        key_, place = random_.choice(keys), Place(number % 5, number, random_.randrange(9))
        if key_ not in expected or expected[key_].rank <= place.rank:
            expected[key_] = place
        index.put(key_, place)
        assert index.get(key_) == expected[key_]
    index.forget([3])
    expected = {key_: place for key_, place in expected.items() if place.file != 3}
    assert len(index) == len(expected)
    assert {key_: index.get(key_) for key_ in keys if key_ in index} == expected
    found = index.find(pack_keys([key_.hex() for key_ in keys]))
    assert found.known.tolist() == [key_ in expected for key_ in keys]
    assert [tuple(place.item()) for place in found.places[found.known]] == [
        expected[key_] for key_ in keys if key_ in expected
    ]
