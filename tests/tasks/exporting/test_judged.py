from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.checking import CheckedPair, ComputedCheck, Values
from prefect_imageqa.tasks.checking.conditions import Condition
from prefect_imageqa.tasks.errors import ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.exporting.check_values import MAX_EVIDENCE, CheckValues
from prefect_imageqa.tasks.exporting.checked_rows import checked_pairs
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.judged import Judged, last_judged, write_judged
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, Row
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, FILTERED, JUDGED, JUDGED_RECORD

FIELDS = (pa.field("form", pa.string()), pa.field("rating", pa.int8()))


def checked(values: list[Values]) -> tuple[ComputedCheck, Iterator[Values]]:
    def judge(_: Callable[[], Iterable[CheckedPair]]) -> Iterator[Values]:
        return iter(values)

    return ComputedCheck("duplicates", FIELDS, judge), iter(values)


@pytest.fixture
def exported(local: ObjectStore) -> ObjectStore:
    """An output with the pairs of two rows, of which the second has two."""
    pairs = [{"question": "Which?", "answer": "Red."}, {"question": "Who?", "answer": "He."}]
    outcomes = [
        Answered(f"{number:032x}", "reply", pairs[:count], "m", 1, 1, 0.1)
        for number, count in enumerate((1, 2))
    ]
    rows = [Row(number, {"image": f"{number}.png", "rating": 7}, "d") for number in (0, 1)]
    columns = Columns(image="image", conversation=None)
    reserved = [field.name for field in FIELDS]
    export_rows.fn(local, outcomes, rows, 2, columns, pairs_name=ALL_PAIRS, reserved=reserved)
    return local


def written(store: ObjectStore, values: list[Values], inputs: str = "") -> Judged:
    check, said = checked(values)
    found = CheckValues(store, [check], Condition("", pa.schema([])), len(values), "unused")
    found.add(check.name, said, np.zeros(len(values), bool))
    return write_judged.fn(store, [check], found, inputs)


def test_judged_pairs_have_what_the_checks_say(exported: ObjectStore) -> None:
    long = "x" * (MAX_EVIDENCE + 1)
    judged = written(exported, [("a\ud800", 5), (None, None), (long, 1)])
    assert (judged.pairs, judged.unjudged) == (3, {"duplicates": 1})
    table = pq.read_table(exported.uri_of(JUDGED)).to_pydict()
    assert table["form"] == ["a?", None, long[:-1]]
    assert table["rating"] == [5, None, 1]
    assert table["dataset_rating"] == [7, 7, 7]
    assert table["question"] == ["Which?", "Which?", "Who?"]
    assert [(pair.row, pair.number) for pair in checked_pairs(exported)] == [(0, 0), (1, 0), (1, 1)]


def test_they_are_known_to_be_right_by_what_they_were_made_from(exported: ObjectStore) -> None:
    values: list[Values] = [("", 1)] * 3
    judged = written(exported, values, "1")
    assert last_judged(exported, "1") == judged
    assert last_judged(exported, "2") is None
    assert last_judged(exported, "") is None
    exported.write(JUDGED, exported.read(JUDGED) + b"more")
    assert last_judged(exported, "1") is None
    written(exported, values, "")
    assert last_judged(exported, "") is None  # what is not known may have changed
    exported.write(JUDGED_RECORD, b'{"inputs": "1", "unjudged": {"\x1b[2J": 1}}')
    assert last_judged(exported, "1") is None


def test_a_check_says_something_of_every_pair(exported: ObjectStore) -> None:
    with pytest.raises(StoreError, match="more pairs than check duplicates has judged"):
        written(exported, [("", 1)])


def test_corrupted_pairs_are_named(exported: ObjectStore) -> None:
    exported.write(ALL_PAIRS, b"PAR1")
    with pytest.raises(ObjectCorruptedError, match=r"checks/pairs\.parquet is corrupted"):
        written(exported, [])


def test_no_pairs_are_judged_pairs(local: ObjectStore) -> None:
    nothing: Any = export_rows.fn(local, [], [], 0, Columns(), pairs_name=ALL_PAIRS)
    assert nothing.pairs == 0
    assert written(local, []).pairs == 0
    assert "form" in pq.read_schema(local.uri_of(JUDGED)).names


def test_pairs_that_were_never_judged_are_removed_with_the_checks(exported: ObjectStore) -> None:
    exported.write(FILTERED, b"mine")  # it is not ours without JUDGED
    export_rows.fn(exported, [], [], 0, Columns())
    assert not exported.exists(ALL_PAIRS)
    assert exported.exists(FILTERED)
