"""What a run rejects before its first request, and which of its parameters are stored."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect_imageqa import (
    Caching,
    Columns,
    DatasetError,
    Exports,
    ImageQAError,
    Images,
    Limits,
    ObjectStore,
    StoreError,
    image_qa,
)
from prefect_imageqa.tasks.runs.run_record import read_runs, unfinished_runs
from prefect_imageqa.tasks.storing.layout import LAYOUT_VERSION, open_output


def requests_to(stub: Any) -> int:
    return int(stub.stats()["requests"])


def test_a_file_not_written_by_a_run_is_not_overwritten(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out" / "README.md"
    file.parent.mkdir()
    file.write_text("mine")
    before = requests_to(stub)
    with pytest.raises(StoreError, match=r"README\.md already exists"):
        image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=stub.url)
    assert file.read_text() == "mine"
    assert list((tmp_path / "out").iterdir()) == [file]
    assert requests_to(stub) == before


def test_files_put_beside_those_of_a_run_are_not_overwritten(
    with_report: None, stub: Any, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, output = str(drawn / "dataset.json"), tmp_path / "out"
    open_output(ObjectStore(uri=str(output)))  # as a killed first run leaves it
    (output / "README.md").write_text("mine")
    image_qa(dataset, str(output), endpoint=stub.url, max_rows=2)
    assert (output / "README.md").read_text() == "mine"
    assert (output / "report.html").exists()
    assert "README.md is not as a run has written it, and stays as it is" in caplog.text
    (output / "qa.json").write_text("mine")
    with pytest.raises(StoreError, match=r"qa\.json already exists"):
        image_qa(dataset, str(output), endpoint=stub.url, exports=Exports(json_array=True))


def test_a_run_does_not_overwrite_its_dataset(stub: Any, drawn: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    image_qa(str(drawn / "dataset.json"), str(output), endpoint=stub.url)
    answers = (output / "qa.jsonl").read_bytes()
    columns = Columns(output="again")
    with pytest.raises(StoreError, match=r"qa\.jsonl is the dataset and would be overwritten"):
        image_qa(str(output / "qa.jsonl"), str(output), endpoint=stub.url, columns=columns)
    assert (output / "qa.jsonl").read_bytes() == answers


def test_a_corrupted_manifest_is_reported_before_any_request(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"layout_version": LAYOUT_VERSION, "junk": 1})
    )
    before = requests_to(stub)
    with pytest.raises(StoreError, match=r"manifest\.json is not a run record"):
        image_qa(str(drawn / "dataset.json"), str(tmp_path), endpoint=stub.url)
    assert requests_to(stub) == before


SECRET = "hunter2-9f31"
SECRETS: dict[str, dict[str, Any]] = {
    "cache": {"caching": {"cache": f"s3://KEY:{SECRET}@bucket/x"}},
    "cache on the web": {"caching": {"cache": f"http://u:{SECRET}@host/x"}},
    "root": {"images": {"root": f"http://u:{SECRET}@host/x"}},
    "endpoint without a scheme": {"endpoint": f"user:{SECRET}@host:8000"},
    "endpoint as an object": {"endpoint": {"urls": [f"http://u:{SECRET}@host"]}},
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_password_in_a_parameter_is_neither_stored_nor_logged(
    case: str, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    parameters = {"endpoint": "http://127.0.0.1:9", **SECRETS[case]}
    with pytest.raises(Exception, match=r"\w") as raised:
        image_qa(str(drawn / "dataset.json"), str(output), **parameters)
    assert SECRET not in str(raised.value)
    assert SECRET not in caplog.text
    for path in output.rglob("*"):
        assert path.is_dir() or SECRET not in path.read_text()
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=20)
    assert SECRET not in json.dumps([run.model_dump(mode="json") for run in runs])


def test_groups_of_parameters_are_stored_unchanged(
    stub: Any, drawn: Path, tmp_path: Path, runs_of: Callable[..., Any]
) -> None:
    output = tmp_path / "out"
    cache = str(tmp_path / "cache")
    image_qa(
        str(drawn / "dataset.json"),
        str(output),
        endpoint=stub.url,
        caching=Caching(cache=cache),
        images=Images(root=str(drawn)),
        limits=Limits(batch_size=5),
    )
    [run] = runs_of(output)
    assert run.parameters["caching"]["cache"] == cache
    assert run.parameters["images"]["root"] == str(drawn)
    assert run.parameters["limits"]["batch_size"] == 5
    assert len(os.listdir(cache)) == 3  # noqa: PTH208


def test_a_missing_dataset_leaves_no_output(stub: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        image_qa(str(tmp_path / "missing.json"), str(tmp_path / "out"), endpoint=stub.url)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_server_does_not_start_leaves_nothing_to_resume(
    stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, model = tmp_path / "out", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", "/no/such/python")
    with pytest.raises(ImageQAError, match="/no/such/python"):
        image_qa(str(drawn / "dataset.json"), str(output), model=str(model))
    [record] = (output / "runs").iterdir()
    assert json.loads(record.read_text())["state"] == "failed"
    summary = image_qa(str(drawn / "dataset.json"), str(output), endpoint=stub.url)
    assert summary.ok == 12
    assert not unfinished_runs(read_runs(ObjectStore(uri=str(output))))
