import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading.files import DatasetFiles, find_files
from prefect_imageqa.tasks.loading.tables import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `set`, of which a test adds the files."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def add(folder: Path, **files: str | list[Any]) -> None:
    """Add files; in their names, "__" stands for a folder, and the last "_" for a point."""
    for name, content in files.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        path.write_text(lines)


def read(files: DatasetFiles) -> list[Any]:
    return [
        record
        for file, label in zip(files.files, files.labels, strict=True)
        for _, record in read_table(file, label, files.format, None)
    ]


def test_the_metadata_of_a_folder_of_images_are_its_rows(folder: Path) -> None:
    add(
        folder,
        train__0_jpg="",
        train__1_jpg="",
        train__2_jpg="",
        test__9_jpg="",
        train__metadata_jsonl=[
            {"file_name": "0.jpg", "text": "0.jpg"},
            {"file_names": ["0.jpg", "./x/../1.jpg"], "file_name": None},
            {"depth_file_name": "d.png", "objects": [{"mask_file_name": "m.png"}]},
            {"file_name": "https://host/a.jpg", "profile_name": "Ann"},
        ],
        test__metadata_jsonl=[{"file_name": "9.jpg"}],
        labels_csv="a,b\n",
        README_md="",
    )
    files = find_files(str(folder))
    assert read(files) == [
        {"file_name": "test/9.jpg"},
        {"file_name": "train/0.jpg", "text": "0.jpg"},
        {"file_names": ["train/0.jpg", "train/./x/../1.jpg"], "file_name": None},
        {"depth_file_name": "train/d.png", "objects": [{"mask_file_name": "train/m.png"}]},
        {"file_name": "https://host/a.jpg", "profile_name": "Ann"},
    ]
    splits, not_read, not_asked = files.notes
    assert splits.startswith("files of test and train are read as one dataset")
    assert not_read.startswith("labels.csv is not read, only test/metadata.jsonl, train/metadata")
    assert not_asked == (
        "1 of 4 images are not in test/metadata.jsonl, train/metadata.jsonl, and are not asked "
        "about"
    )
    # By itself, it is a table like any other: its own folder is the base of its file names.
    assert read(find_files(f"{folder}/train/metadata.jsonl"))[0]["file_name"] == "0.jpg"


def test_metadata_may_be_csv_with_any_delimiter(folder: Path) -> None:
    add(folder, a_jpg="", metadata_csv="file_name;text\na.jpg;hello\n")
    files = find_files(str(folder))
    assert read(files) == [{"file_name": "a.jpg", "text": "hello"}]
    assert files.notes == ("metadata.csv: read with delimiter semicolon",)


def test_tables_that_are_passed_over_are_named(folder: Path) -> None:
    add(folder, images__a_jpg="", data_json="[]", x_csv="", y_csv="", z_tsv="", README_md="")
    files = find_files(str(folder))
    assert files.labels == ("images/a.jpg",)
    (note,) = files.notes
    assert note == (
        "data.json, x.csv, y.csv and 1 more are not read, only the images; to ask about the rows "
        "of a table, give it as the dataset, or name it metadata.csv or metadata.jsonl, with a "
        "column file_name"
    )


def test_a_folder_of_tables_of_one_format_is_read(folder: Path) -> None:
    add(folder, a_jsonl=[{"image": "1"}], sub__b_jsonl=[{"image": "2"}], README_md="x")
    assert read(find_files(str(folder))) == [{"image": "1"}, {"image": "2"}]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a_csv": "", "b_json": ""}, r"csv files \(a\.csv\) and json files \(b\.json\); select"),
        ({"a_jpg": "", "a_tar": ""}, r"has images \(a\.jpg\) and webdataset files \(a\.tar\)"),
        (
            {"a_jpg": "", "metadata_csv": "", "metadata_jsonl": ""},
            r"csv files \(metadata\.csv\) and jsonl files \(metadata\.jsonl\)",
        ),
        ({"README_md": ""}, r"the folder has no images and no tables \(\.json, "),
    ],
    ids=["tables", "shards", "metadata", "none"],
)
def test_an_ambiguous_folder_is_an_error(folder: Path, files: dict[str, str], reason: str) -> None:
    add(folder, **files)
    with pytest.raises(DatasetError, match=reason):
        find_files(str(folder))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("data/train-0.parquet", "data/test-0.parquet"), "test and train"),
        (("train/0.parquet", "val/0.parquet"), "train and validation"),
        (("train-0.parquet", "train-1.parquet", "trains.parquet"), ""),
    ],
)
def test_files_of_several_splits_are_told(
    names: tuple[str, ...], splits: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pd.DataFrame({"image": ["a.png"]}).to_parquet(tmp_path / name)
    notes = find_files(str(tmp_path)).notes
    assert [note.partition(" are read as one dataset")[0] for note in notes] == (
        [f"files of {splits}"] if splits else []
    )
