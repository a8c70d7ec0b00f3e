import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading import long_records, table_formats
from prefect_imageqa.tasks.loading.files import find_files
from prefect_imageqa.tasks.loading.table_formats import read_frame
from prefect_imageqa.tasks.loading.tables import read_table
from prefect_imageqa.tasks.records import Problem

PNG = b"\x89PNG\r\n\x1a\nabc"
SIGNED = [byte - 256 if byte > 127 else byte for byte in PNG]
IMAGE = {"bytes": PNG, "path": None}
COLUMNS: dict[str, tuple[pa.Array, Any]] = {
    "struct": (pa.array([IMAGE]), IMAGE),
    "list": (pa.array([[IMAGE, IMAGE]]), [IMAGE, IMAGE]),
    "binary": (pa.array([PNG]), PNG),
    "large_binary": (pa.array([PNG], pa.large_binary()), PNG),
    "binary_view": (pa.array([PNG], pa.binary_view()), PNG),
    "fixed_binary": (pa.array([PNG], pa.binary(len(PNG))), PNG),
    "dictionary": (pa.array([PNG]).dictionary_encode(), PNG),
    "numbers": (pa.array([list(PNG)], pa.list_(pa.uint8())), PNG),
    "large_numbers": (pa.array([list(PNG)], pa.large_list(pa.uint8())), PNG),
    "signed": (pa.array([SIGNED], pa.list_(pa.int8())), PNG),
    "wide": (pa.array([list(PNG)], pa.list_(pa.int64())), PNG),
    "fixed_numbers": (pa.array([list(PNG)], pa.list_(pa.uint8(), len(PNG))), PNG),
    "struct_of_numbers": (pa.array([[{"bytes": list(PNG)}] * 2]), [{"bytes": PNG}] * 2),
    "large": (pa.array([[*PNG, 256]]), [*PNG, 256]),
    "small": (pa.array([[*SIGNED, -129]]), [*SIGNED, -129]),
    "holes": (pa.array([[*PNG, None]]), [*PNG, None]),
    "ratings": (pa.array([[1, 5]], pa.list_(pa.uint8())), [1, 5]),
    "no_numbers": (pa.array([None], pa.list_(pa.uint8())), None),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [["a", 1]]),
    "id": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))),
        str(uuid.UUID(int=0)),
    ),
}
TABLE = pa.table({name: array for name, (array, _) in COLUMNS.items()})


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as stream:
        stream.write_table(table)


def read(path: Path) -> list[Any]:
    """The records, and the messages of problems."""
    files = find_files(str(path))
    return [
        record.message if isinstance(record, Problem) else record
        for file, label in zip(files.files, files.labels, strict=True)
        for _, record in read_table(file, label, files.format, None)
    ]


@pytest.mark.parametrize(
    ("name", "write"),
    [("d.parquet", pq.write_table), ("d.arrow", write_stream), ("d.arrow", write_file)],
    ids=["parquet", "arrow-stream", "arrow-file"],
)
def test_images_are_read_from_any_type_that_holds_bytes(
    tmp_path: Path, name: str, write: Callable[[pa.Table, Path], None]
) -> None:
    write(TABLE, tmp_path / name)
    assert read(tmp_path / name) == [{name: value for name, (_, value) in COLUMNS.items()}]


def test_images_in_a_frame_may_be_numbers() -> None:
    frame = pd.DataFrame({"image": [np.frombuffer(PNG, np.uint8), SIGNED]})
    assert [record for _, record in read_frame(frame)] == [{"image": PNG}] * 2


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    table = pa.table({"image": ["a", "b"]})
    for number in range(2):
        write_stream(table, tmp_path / f"data-{number:05}-of-00002.arrow")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text("{}")
    assert read(tmp_path) == [{"image": "a"}, {"image": "b"}] * 2
    assert find_files(str(tmp_path)).notes == ()


@pytest.mark.parametrize("kept", [0, 4, 100, 900])
def test_a_broken_arrow_file_is_an_error(tmp_path: Path, kept: int) -> None:
    write_file(TABLE, tmp_path / "d.arrow")
    data = (tmp_path / "d.arrow").read_bytes()
    for broken in (data[:kept], data[:kept] + b"\xff" * 100):
        (tmp_path / "d.arrow").write_bytes(broken)
        with pytest.raises(DatasetError, match=r"d\.arrow: cannot be read: "):
            read(tmp_path / "d.arrow")


def test_a_cell_that_is_too_large_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (table_formats, long_records):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1 << 20)
    table = pa.table({"image": [b"a", bytes(3 << 20), b"c", b"d", b"e"]})
    for name, write in (("d.parquet", pq.write_table), ("d.arrow", write_stream)):
        write(table, tmp_path / name)
        first, problem, *rest = read(tmp_path / name)
        assert first == {"image": b"a"}
        assert problem.startswith("row 1 (from 0) has 3 MB, and a record may have 1 MB; keep large")
        assert [record["image"] for record in rest] == [b"c", b"d", b"e"]
    pq.write_table(
        pa.table({"image": [bytes(3 << 20)]}), tmp_path / "x.parquet", use_dictionary=False
    )
    with pytest.raises(DatasetError, match="on average, a row of row group 0 has 3 MB, and a reco"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_small_rows_are_decoded_together(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = list[int]()
    read_single = table_formats._single_rows

    def counted(batch: pa.RecordBatch, first: int) -> Any:
        single.append(batch.num_rows)
        return read_single(batch, first)

    monkeypatch.setattr(table_formats, "_single_rows", counted)
    numbers = list(range(300))
    small = pa.table({"number": numbers, "image": [PNG] * 300})
    assert [record["number"] for record in _records(small, file_format, tmp_path)] == numbers
    assert not single
    large = pa.table({"number": numbers[:9], "image": [PNG + bytes(1 << 20)] * 9})
    assert [record["number"] for record in _records(large, file_format, tmp_path)] == numbers[:9]
    assert sum(single) == 9, "large rows are decoded one by one"


def test_a_bad_row_among_small_ones_costs_one_row(tmp_path: Path) -> None:
    times = pa.array([0, 2**62, 1, 2], pa.timestamp("ms"))
    read = _records(pa.table({"time": times, "n": [0, 1, 2, 3]}), "parquet", tmp_path)
    assert [isinstance(record, Problem) for record in read] == [False, True, False, False]
    assert [record["n"] for record in read if not isinstance(record, Problem)] == [0, 2, 3]


def _records(table: pa.Table, file_format: str, folder: Path) -> list[Any]:
    path = folder / f"t.{file_format}"
    if file_format == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    return [record for _, record in read_table(str(path), path.name, file_format, None)]


def test_a_value_that_all_rows_share_is_decoded_for_few_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"image": [PNG + bytes(1 << 19)] * 1000}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr(table_formats, "_records", lambda _, batches: batches)
    with (tmp_path / "a.parquet").open("rb") as file:
        batches: Iterable[Any] = table_formats.read_parquet(file)
        assert max(batch.num_rows for batch in batches) <= 4
