"""Table files that are none."""

import os
from pathlib import Path

import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading.load import open_dataset


@pytest.mark.parametrize("is_searched", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/dev/zero", "is not a regular file"),
        ("../pipe", "is not a regular file"),
        ("/proc/self/environ", "is a file of the operating system"),
        ("../none", "not found|no such file or folder .*"),
    ],
    ids=["device", "pipe", "system", "missing"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_link_to_what_is_no_file_is_reported(
    name: str, target: str, reason: str, is_searched: bool, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    table = tmp_path / "data" / name
    table.parent.mkdir()
    table.symlink_to(target)
    with pytest.raises(DatasetError, match=f"^{table}: ({reason})$"):
        open_dataset(str(table.parent if is_searched else table))
