"""What a run finds in its output before it writes anything, local and on a real S3 server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prefect_imageqa import Columns, Exports, ObjectStore, StoreError
from prefect_imageqa.flows.own_files import check_own_files
from prefect_imageqa.tasks.loading.dataset import Dataset
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.runs.run_record import RunRecord
from prefect_imageqa.tasks.storing.layout import open_output


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(uri=str(tmp_path / "out"))
    return ObjectStore(uri=f"{request.getfixturevalue('s3')}/own-{tmp_path.name}")


@pytest.fixture
def table(drawn: Path) -> Dataset:
    return open_dataset(str(drawn / "dataset.json"), Columns())


@pytest.mark.parametrize(
    "name",
    ["qa.jsonl", "pairs.parquet", "qa.json", "report.html", "README.md", "pairs/cats", "runs/cats"],
)
def test_files_that_no_run_has_written_are_refused(
    name: str, output: ObjectStore, table: Dataset
) -> None:
    output.write(name, b"mine")
    with pytest.raises(StoreError, match="already exists and was not written by a run"):
        check_own_files(output, table, Exports())


def test_other_files_are_no_obstacle(output: ObjectStore, table: Dataset) -> None:
    check_own_files(output, table, Exports(json_array=True))
    output.write("notes.txt", b"mine")
    output.write("qa.jsonl.bak", b"mine")
    check_own_files(output, table, Exports(json_array=True))


def test_what_a_killed_run_left_is_its_own(output: ObjectStore, table: Dataset) -> None:
    open_output(output)
    for name in ("qa.jsonl", "pairs/parts/p/x.parquet", "runs/1.json"):
        output.write(name, b"")
    check_own_files(output, table, Exports(json_array=True))


def test_a_file_that_only_some_runs_write_is_one_of_theirs_or_refused(
    output: ObjectStore, table: Dataset, record_of: Callable[..., RunRecord]
) -> None:
    open_output(output)
    output.write("qa.json", b"[]")
    record_of(run="without").write(output)
    check_own_files(output, table, Exports())
    with pytest.raises(StoreError, match=r"qa\.json already exists"):
        check_own_files(output, table, Exports(json_array=True))
    exports = Exports(json_array=True)
    record_of(run="with", state="failed", parameters={"exports": exports}).write(output)
    check_own_files(output, table, Exports(json_array=True))
