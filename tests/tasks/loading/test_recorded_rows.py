"""A dataset that is read again, in every format, after it has grown or changed."""

import gzip
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading import recorded_rows
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.loading.load import load_dataset, open_dataset
from prefect_imageqa.tasks.loading.recorded_rows import RecordedRows
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Row

Records = Sequence[dict[str, Any]]


def records_of(count: int) -> list[dict[str, Any]]:
    return [{"image": f"{n}.png", "id": str(n), "text": "Wie viele? \u00fc"} for n in range(count)]


def to_lines(records: Records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def to_parquet(records: Records) -> bytes:
    rows = [{**record, "image": {"bytes": record["image"].encode() * 999}} for record in records]
    return pd.DataFrame(rows).to_parquet()


FORMATS: dict[str, Callable[[Records], bytes]] = {
    "json": lambda records: json.dumps(records, indent=1).encode(),
    "jsonl": to_lines,
    "jsonl.gz": lambda records: gzip.compress(to_lines(records)),
    "csv": lambda records: pd.DataFrame(records).to_csv(index=False).encode(),
    "parquet": to_parquet,
}
every_format = pytest.mark.parametrize("suffix", FORMATS)


def recorded(path: Path, records: Records) -> tuple[RecordedRows, list[Row]]:
    """A dataset that was read once."""
    path.write_bytes(FORMATS[path.name.partition(".")[2]](records))
    rows = RecordedRows(open_dataset(path))
    return rows, list(rows.read())


@every_format
@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_dataset_that_has_grown_gives_the_same_rows(
    suffix: str, more: int, tmp_path: Path
) -> None:
    path = tmp_path / f"d.{suffix}"
    rows, first = recorded(path, records_of(5))
    path.write_bytes(FORMATS[suffix](records_of(5 + more)))
    assert list(rows.read_again()) == first
    assert rows.new == more


CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], None], int]] = {
    "a value": (lambda records: records[3].update(text="Wo?"), 3),
    "a null": (lambda records: records[0].update(text=None), 0),
    "the order": (lambda records: records.reverse(), 0),
    "a row before": (lambda records: records.insert(0, records_of(9)[8]), 0),
    "a row removed": (lambda records: records.__delitem__(1), 1),
    "the last row removed": (lambda records: records.__delitem__(-1), 4),
}


@every_format
@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_has_changed_is_reported(suffix: str, change: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{suffix}"
    rows, _ = recorded(path, records_of(5))
    records = records_of(5)
    edit, at = CHANGES[change]
    edit(records)
    path.write_bytes(FORMATS[suffix](records))
    with pytest.raises(DatasetError, match=rf"changed during the run: row {at} \(from 0\)"):
        list(rows.read_again())


def test_a_new_column_is_a_change(tmp_path: Path) -> None:
    rows, _ = recorded(tmp_path / "d.jsonl", records_of(2))
    (tmp_path / "d.jsonl").write_bytes(to_lines([{**row, "new": 1} for row in records_of(2)]))
    with pytest.raises(DatasetError, match="row 0"):
        list(rows.read_again())


def test_any_file_of_several_may_grow_and_new_ones_are_not_read(tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / f"{name}.jsonl").write_bytes(to_lines(records_of(2)))
    rows = RecordedRows(load_dataset.fn(str(tmp_path / "*.jsonl"), Columns(), max_rows=5))
    first = list(rows.read())
    (tmp_path / "a.jsonl").write_bytes(to_lines(records_of(6)))
    (tmp_path / "b.jsonl").write_bytes(to_lines(records_of(3)))
    again = list(rows.read_again())
    assert again == first
    assert [row.where for row in again] == ["a.jsonl:1", "a.jsonl:2", "c.jsonl:1", "c.jsonl:2"]
    assert rows.new == 4


@pytest.mark.parametrize(("limit", "read", "new"), [(3, 3, 0), (5, 4, 1), (99, 4, 5)])
def test_rows_beyond_max_rows_are_not_new(limit: int, read: int, new: int, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(to_lines(records_of(4)))
    rows = RecordedRows(load_dataset.fn(str(path), Columns(), max_rows=limit))
    assert len(list(rows.read())) == read
    path.write_bytes(to_lines(records_of(9)))
    assert len(list(rows.read_again())) == read
    assert rows.new == new


def test_a_reading_that_ends_early_leaves_the_count(tmp_path: Path) -> None:
    rows, first = recorded(tmp_path / "d.jsonl", records_of(3))
    (tmp_path / "d.jsonl").write_bytes(to_lines(records_of(5)))
    assert list(rows.read_again()) == first
    assert next(rows.read_again()) == first[0]
    assert rows.new == 2


def test_a_line_may_be_completed_meanwhile(tmp_path: Path) -> None:
    """A program that appends to a file writes it in blocks, which end anywhere in a line."""
    path, text = tmp_path / "d.jsonl", to_lines(records_of(4))
    path.write_bytes(text[:-30])
    rows = RecordedRows(open_dataset(path))
    first = list(rows.read())
    assert first[-1].problem
    path.write_bytes(text + b'{"half": ')
    assert list(rows.read_again())[:-1] == first[:-1]
    assert rows.new == 2
    path.write_bytes(text[:-30])
    assert list(rows.read_again()) == first
    assert rows.new == 0


def test_what_is_being_written_behind_the_rows_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    rows, first = recorded(path, records_of(3))
    path.write_bytes(FORMATS["json"](records_of(6))[:-20])
    assert list(rows.read_again()) == first
    assert rows.new == 2


def test_a_file_that_is_gone_is_reported(tmp_path: Path) -> None:
    rows, _ = recorded(tmp_path / "d.jsonl", records_of(3))
    (tmp_path / "d.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"d\.jsonl"):
        list(rows.read_again())


def test_new_rows_are_counted_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_rows, "COUNTED_ROWS", 10)
    rows, _ = recorded(tmp_path / "d.jsonl", records_of(3))
    (tmp_path / "d.jsonl").write_bytes(to_lines(records_of(100)))
    assert len(list(rows.read_again())) == 3
    assert rows.new == 10


def test_values_that_are_not_json_are_compared_as_well(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"

    def write(*numbers: int) -> None:
        ids = pa.array([uuid.UUID(int=number).bytes for number in numbers], pa.binary(16))
        ids = pa.ExtensionArray.from_storage(pa.uuid(), ids)
        pq.write_table(pa.table({"image": ["a.png"] * len(numbers), "id": ids}), path)

    write(1, 2)
    rows = RecordedRows(open_dataset(path))
    first = list(rows.read())
    write(1, 2, 3)
    assert list(rows.read_again()) == first
    write(1, 3)
    with pytest.raises(DatasetError, match="row 1"):
        list(rows.read_again())


def test_a_frame_and_a_folder_of_images_are_read_again_as_they_are(tmp_path: Path) -> None:
    cells = [[1], [2]]
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "cell": cells})
    rows = RecordedRows(open_dataset(frame))
    list(rows.read())
    cells[0].append(3)  # by the prompt style of a user, for example
    assert [row.record["cell"] for row in rows.read_again()] == [[1, 3], [2]]
    for name in "bd":
        (tmp_path / f"{name}.png").touch()
    rows = RecordedRows(open_dataset(tmp_path))
    first = list(rows.read())
    (tmp_path / "a.png").touch()
    assert list(rows.read_again()) == first
    assert (len(first), rows.new) == (2, 0)


def test_objects_on_s3_may_grow(s3: str, tmp_path: Path) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("d.jsonl", to_lines(records_of(3)))
    rows = RecordedRows(open_dataset(store.uri_of("d.jsonl")))
    first = list(rows.read())
    store.write("d.jsonl", to_lines(records_of(5)))
    assert list(rows.read_again()) == first
    assert rows.new == 2
    store.write("d.jsonl", to_lines(records_of(5)[1:]))
    with pytest.raises(DatasetError, match="changed during the run"):
        list(rows.read_again())


def test_rows_without_a_conversation_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"image": "a", "question": "?"}\n{"image": "b"}\n{"image": "c"}\nbroken\n')
    rows = RecordedRows(open_dataset(path))
    assert len(list(rows.read())) == len(list(rows.read_again())) == 4
    assert rows.unasked == 2
    none = RecordedRows(open_dataset(path, Columns(conversation=None)))
    assert len(list(none.read())) == 4
    assert none.unasked == 0


DIGEST = """
import sys
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.loading.recorded_rows import RecordedRows
rows = RecordedRows(open_dataset(sys.argv[1]))
assert list(rows.read())
print(rows.digest.hex())
"""


def test_the_digest_of_all_rows_is_the_same_in_every_process(tmp_path: Path) -> None:
    dataset = tmp_path / "d.jsonl"
    rows, _ = recorded(dataset, records_of(3))
    command = [sys.executable, "-c", DIGEST, str(dataset)]
    assert subprocess.check_output(command, text=True).strip() == rows.digest.hex()
    changed = [*records_of(2), {**records_of(3)[2], "text": "other"}]
    others = [recorded(dataset, records)[0] for records in (changed, records_of(2))]
    assert len({rows.digest, *(other.digest for other in others)}) == 3


def test_a_frame_has_no_digest() -> None:
    assert RecordedRows(load_dataset.fn(pd.DataFrame(records_of(2)))).digest == b""
