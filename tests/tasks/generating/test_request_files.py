"""Batch files in a folder: their size, and what an export may replace."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.generating import request_files
from prefect_imageqa.tasks.generating.request_files import check_request_folder, write_request_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_lines_are_split_by_number_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_files, "MAX_BYTES", 100)
    lines = [b"a" * 10] * 5 + [b"b" * 60] * 3 + [b"c" * 9]
    files = write_request_files(tmp_path / "new" / "requests", iter(lines), max_rows=4)
    assert files == {
        "requests-00001.jsonl": 4,
        "requests-00002.jsonl": 2,
        "requests-00003.jsonl": 1,
        "requests-00004.jsonl": 2,
    }
    folder = tmp_path / "new" / "requests"
    assert [line for name in files for line in (folder / name).read_bytes().splitlines()] == lines
    marker = json.loads((folder / "batch.json").read_text())
    assert (marker["complete"], marker["requests"], marker["files"]) == (True, 9, files)


def test_an_export_replaces_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    write_request_files(tmp_path, iter([b"1", b"2", b"3"]), max_rows=1)
    (tmp_path / "results-00001.jsonl").write_text("{}")
    (tmp_path / ".writing-0123").write_text("left by a process that was killed")
    write_request_files(tmp_path, iter([b"4"]), max_rows=1)
    assert names(tmp_path) == ["batch.json", "requests-00001.jsonl", "results-00001.jsonl"]
    assert (tmp_path / "requests-00001.jsonl").read_bytes() == b"4\n"


def test_an_interrupted_export_leaves_whole_files_and_says_that_some_are_missing(
    tmp_path: Path,
) -> None:
    def lines() -> Iterator[bytes]:
        yield from [b"1", b"2", b"3"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_request_files(tmp_path, lines(), max_rows=2)
    assert names(tmp_path) == ["batch.json", "requests-00001.jsonl"]
    assert (tmp_path / "requests-00001.jsonl").read_bytes() == b"1\n2\n"
    assert json.loads((tmp_path / "batch.json").read_text())["complete"] is False
    check_request_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", "mine"),
        ("requests-00001.jsonl", "{}"),
        ("batch.json", "{}"),
        ("batch.json", "[]"),
        ("batch.json", "{"),
    ],
)
def test_a_folder_with_other_files_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StoreError, match="was not written by batch-export"):
        write_request_files(tmp_path, iter([b"1"]), max_rows=1)
    assert (tmp_path / name).read_text() == content


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "requests").write_text("")
    with pytest.raises(StoreError, match=r"requests: cannot be read: Not a directory"):
        write_request_files(tmp_path / "requests", iter([b"1"]), max_rows=1)
