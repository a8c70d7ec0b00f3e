import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from prefect_imageqa.flows.dataflow.file_storage import CacheType, FileStorage
from prefect_imageqa.tasks.errors import DatasetError, ImageQAError, StoreError
from prefect_imageqa.tasks.object_store.store import ObjectStore

RECORDS: list[dict[str, Any]] = [
    {"image": ["a.png", "b.png"], "n": 1, "score": 0.5, "text": 'ü,\n"x"'},
    {"image": ["c.png"], "n": 2, "score": None, "text": None},
]
CACHE_TYPES = get_args(CacheType)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "cache")
    bucket: str = request.getfixturevalue("s3")
    return f"{bucket}/{tmp_path.name}"


def entry(folder: str, records: list[dict[str, Any]]) -> str:
    ObjectStore(uri=folder).write("entry.json", json.dumps(records).encode())
    return f"{folder}/entry.json"


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    folder = str(tmp_path / "cache")
    return FileStorage(entry(folder, RECORDS), folder).step()


def as_read(record: dict[str, Any], cache_type: CacheType) -> dict[str, Any]:
    """The record as read back from a step file; cells of CSV are text."""
    if cache_type != "csv":
        return record
    kept = str | None
    return {
        name: value if isinstance(value, kept) else json.dumps(value)
        for name, value in record.items()
    }


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_step_reads_what_the_previous_step_wrote(cache_type: CacheType, folder: str) -> None:
    storage = FileStorage(entry(folder, RECORDS), folder, "run", cache_type)
    assert storage.step().current() == f"{folder}/entry.json"
    assert storage.read("dict") == RECORDS
    table = storage.read()
    table["answer"] = ["yes", None]
    written = storage.write(table)
    assert written == f"{folder}/run_step1.{cache_type}"
    storage.step()
    assert storage.current() == written
    expected = [
        {**as_read(RECORDS[0], cache_type), "answer": "yes"},
        {**as_read(RECORDS[1], cache_type), "answer": None},
    ]
    assert storage.read("dict") == expected
    storage.write(storage.read("dict"))
    assert storage.step().read("dict") == expected
    assert storage.operator_step == 2
    assert storage.reset().step().current() == f"{folder}/entry.json"


def test_a_frame_holds_plain_python_values(storage: FileStorage) -> None:
    table = storage.read()
    assert list(table.columns) == ["image", "n", "score", "text"]
    assert table.to_dict(orient="records") == RECORDS
    assert type(table.at[0, "n"]) is int
    assert table.at[1, "score"] is None


def test_use_before_the_first_step_is_an_error(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    storage = FileStorage(entry(folder, RECORDS), folder)
    message = r"call storage\.step\(\) before the first operator"
    with pytest.raises(ImageQAError, match=message):
        storage.current()
    with pytest.raises(ImageQAError, match=message):
        storage.read()
    with pytest.raises(ImageQAError, match=message):
        storage.write(RECORDS)
    with pytest.raises(ImageQAError, match=message):
        storage.work_folder()
    assert [path.name for path in Path(folder).iterdir()] == ["entry.json"]


@pytest.mark.parametrize("cache_type", ["pickle", "JSON", "", "jsonl.gz"])
def test_an_unknown_cache_type_is_an_error(cache_type: Any) -> None:
    with pytest.raises(ImageQAError, match="it must be one of json, jsonl, csv, parquet"):
        FileStorage("entry.json", cache_type=cache_type)


def test_a_missing_or_empty_table_is_an_error(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"entry\.json"):
        FileStorage(f"{folder}/entry.json", folder).step().read()
    with pytest.raises(DatasetError, match="has no rows"):
        FileStorage(entry(folder, []), folder).step().read()
    with pytest.raises(DatasetError, match="step1"):
        FileStorage(entry(folder, RECORDS), folder).step().step().read()


def test_a_line_that_is_not_json_remains_a_row(tmp_path: Path) -> None:
    lines = tmp_path / "entry.jsonl"
    lines.write_text('{"a": 1}\nbroken\n{"a": 3}\n')
    storage = FileStorage(str(lines), str(tmp_path)).step()
    assert storage.read()["a"].tolist() == [1, None, 3]


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_integers_stay_integers_next_to_missing_values(
    cache_type: CacheType, tmp_path: Path
) -> None:
    storage = FileStorage("entry.json", str(tmp_path), cache_type=cache_type).step()
    storage.write([{"a": 1, "b": "x"}, {"b": "y"}, {"a": 2**60, "b": "z"}])
    read = storage.step().read("dict")
    kind = str if cache_type == "csv" else int
    assert [record["a"] for record in read] == [kind(1), None, kind(2**60)]
    assert [type(record["a"]) for record in read] == [kind, type(None), kind]


@pytest.mark.parametrize("cache_type", ["json", "jsonl"])
def test_numpy_and_pandas_values_become_plain_values(cache_type: CacheType, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "array": [np.array([[1, 2], [3, 4]]), np.array(["a"])],
            "scalar": pd.Series([np.int64(7), np.float32(0.5)], dtype=object),
            "missing": pd.array([1, pd.NA], dtype="Int64"),
            "nan": [1.5, math.nan],
            "time": pd.Series([pd.Timestamp("2024-01-02"), pd.NaT]),
            5: ["five", "six"],
        }
    )
    storage = FileStorage("entry.json", str(tmp_path), cache_type=cache_type).step()
    storage.write(frame)
    first, second = storage.step().read("dict")
    assert first == {
        "array": [[1, 2], [3, 4]],
        "scalar": 7,
        "missing": 1,
        "nan": 1.5,
        "time": "2024-01-02T00:00:00",
        "5": "five",
    }
    assert list(second.values()) == [["a"], 0.5, None, None, None, "six"]


def test_csv_columns_with_numeric_names_keep_their_cells(tmp_path: Path) -> None:
    storage = FileStorage("entry.json", str(tmp_path), cache_type="csv").step()
    storage.write(pd.DataFrame({0: ["a", "b"], 1: ["c", "d"]}))
    assert storage.step().read("dict") == [{"0": "a", "1": "c"}, {"0": "b", "1": "d"}]


@pytest.mark.parametrize("cache_type", ["json", "jsonl", "csv"])
def test_embedded_bytes_remain_an_image(cache_type: CacheType, tmp_path: Path) -> None:
    uri = "data:application/octet-stream;base64,AP8="
    storage = FileStorage("entry.json", str(tmp_path), cache_type=cache_type).step()
    storage.write(pd.DataFrame({"image": [b"\x00\xff", [b"\x00\xff"]]}))
    several = json.dumps([uri]) if cache_type == "csv" else [uri]
    assert storage.step().read("dict") == [{"image": uri}, {"image": several}]


@pytest.mark.parametrize(
    ("value", "cache_type"),
    [
        (2**70, "parquet"),
        ({}, "parquet"),
        (object(), "parquet"),
        ("\ud800", "parquet"),
        ("\ud800", "csv"),
    ],
    ids=["huge", "empty object", "object", "surrogate", "surrogate in CSV"],
)
def test_a_table_that_the_format_cannot_represent_is_an_error(
    value: Any, cache_type: CacheType, tmp_path: Path
) -> None:
    storage = FileStorage("entry.json", str(tmp_path), cache_type=cache_type).step()
    with pytest.raises(StoreError, match=f"the table cannot be written as {cache_type}") as raised:
        storage.write([{"a": value}])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_other_files_of_a_step_are_next_to_its_table(folder: str) -> None:
    storage = FileStorage(entry(folder, RECORDS), folder, "run").step()
    assert storage.work_folder() == f"{folder}/run_step1"
    storage.write_quarantine(b'{"row": 0}\n')
    assert ObjectStore(uri=folder).read("run_step1.quarantine.jsonl") == b'{"row": 0}\n'


def test_the_default_folder_is_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = FileStorage("entry.json").step()
    storage.write(RECORDS)
    assert (tmp_path / "cache" / "dataflow_cache_step1.jsonl").is_file()
