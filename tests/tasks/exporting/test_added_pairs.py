"""Pairs that are added to a file of exported pairs."""

import functools
from collections.abc import Sequence

import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError, StoreError
from prefect_imageqa.tasks.exporting import added_pairs
from prefect_imageqa.tasks.exporting.added_pairs import add_pairs
from prefect_imageqa.tasks.exporting.bounded_parquet import bounded_batches
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered, QAPair, Row
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, ANSWERED_PAIRS

NEW = QAPair("What?", "There is none.", type="unanswerable", language="English")
Added = Sequence[tuple[int, QAPair]]


def export(store: ObjectStore, counts: Sequence[int]) -> None:
    """Export so many pairs of each row, with options."""
    pairs = [
        [{"question": f"{row}.{n}?", "answer": "x", "options": ["x", "y"]} for n in range(count)]
        for row, count in enumerate(counts)
    ]
    outcomes = [
        Answered(f"{row:032x}", "", some, "m", 1, 1, 0.1, style="s@1")
        for row, some in enumerate(pairs)
    ]
    rows = [Row(row, {"image": f"{row}.png", "own": row}, "d") for row in range(len(counts))]
    columns = Columns(image="image", conversation=None)
    export_rows.fn(store, outcomes, rows, len(rows), columns, pairs_name=ANSWERED_PAIRS)


def add(store: ObjectStore, added: Added) -> int:
    return add_pairs(store, ANSWERED_PAIRS, ALL_PAIRS, added, "negatives@1")


@pytest.mark.parametrize("per_batch", [1, 2, 3, 4096])
def test_pairs_come_after_those_of_their_row(
    local: ObjectStore, monkeypatch: pytest.MonkeyPatch, per_batch: int
) -> None:
    small = functools.partial(bounded_batches, rows_per_batch=per_batch)
    monkeypatch.setattr(added_pairs, "bounded_batches", small)
    export(local, [2, 1, 3, 0, 1])
    before = pq.read_table(local.uri_of(ANSWERED_PAIRS))
    assert add(local, [(0, NEW), (0, NEW), (2, NEW), (4, NEW)]) == 4
    table = pq.read_table(local.uri_of(ALL_PAIRS))
    assert table.schema == before.schema
    lines = table.to_pylist()
    assert [(line["row"], line["pair"]) for line in lines] == [
        *((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (4, 0), (4, 1)),
    ]
    new = [line for line in lines if line["type"] == "unanswerable"]
    assert [line for line in lines if line not in new] == before.to_pylist()
    assert [(line["row"], line["pair"]) for line in new] == [(0, 2), (0, 3), (2, 3), (4, 1)]
    for line in new:
        of_row = next(other for other in lines if other["row"] == line["row"])
        for name in ("key", "image", "image_digest", "own"):
            assert line[name] == of_row[name]
        assert (line["question"], line["answer"]) == (NEW.question, NEW.answer)
        assert (line["language"], line["style"]) == ("English", "negatives@1")
        assert (line["options"], line["correct"], line["turn"]) == (None, None, None)


def test_without_more_pairs_the_file_is_the_same(local: ObjectStore) -> None:
    for counts in ([2, 1], [0]):
        export(local, counts)
        assert add(local, []) == 0
        before, after = (pq.read_table(local.uri_of(n)) for n in (ANSWERED_PAIRS, ALL_PAIRS))
        assert after == before


@pytest.mark.parametrize("row", [1, 7])
def test_a_row_without_a_pair_is_given_none(local: ObjectStore, row: int) -> None:
    export(local, [1, 0, 1])
    with pytest.raises(StoreError, match=f"has no pair of row {row}: run again"):
        add(local, [(0, NEW), (row, NEW)])
    assert not local.exists(ALL_PAIRS)


def test_corrupted_pairs_are_named(local: ObjectStore) -> None:
    local.write(ANSWERED_PAIRS, b"PAR1")
    with pytest.raises(ObjectCorruptedError, match=r"checks/answered\.parquet is corrupted"):
        add(local, [])
