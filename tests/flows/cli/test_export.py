"""`export` on the output of a real run, and the exports that a run writes itself."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_imageqa import Columns, Images, ObjectStore, StoreError, image_qa
from prefect_imageqa.flows.cli import source
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError
from prefect_imageqa.tasks.storing.layout import open_output

from .conftest import Call

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


def test_a_run_and_the_command_write_the_same(
    call: Call, stub: Any, drawn: Path, tmp_path: Path
) -> None:
    dataset, output = str(drawn / "dataset.json"), str(tmp_path / "out")
    rows = json.loads(Path(dataset).read_text())
    reply = "STUB text **Question:** What? **Answer:** a <video> of it"
    rows[3]["conversation"] = [{"from": "human", "value": reply}]
    Path(dataset).write_text(json.dumps(rows))
    parameters: dict[str, Any] = {
        "asking": {"samples": 2},
        "exports": {"formats": ["llava", "hf"], "validation": 0.3},
    }
    image_qa(dataset, output, endpoint=stub.url, max_rows=8, **parameters)
    store = ObjectStore(uri=output)
    written = {name: store.read(name) for name in store.list("export/llava")}
    assert {"export/llava/train.json", "export/llava/validation.json"} <= written.keys()
    requests = stub.stats()["requests"]

    options = ["--format", "llava", "--dataset", dataset, "--validation", "0.3"]
    code, out, err = call("export", output, *options)
    assert (code, out.splitlines()[-1]) == (0, f"{output}/export/llava")
    assert err.startswith("export llava leaves out 1 of 8 conversations: control text")
    assert {name: store.read(name) for name in store.list("export/llava")} == written
    assert call("export", output, *options, "--to", str(tmp_path / "x"))[0] == 0
    assert (tmp_path / "x" / "train.json").read_bytes() == written["export/llava/train.json"]
    assert stub.stats()["requests"] == requests

    store.write("export/qwen/mine.txt", b"mine")
    code, out, err = call("export", output, "--format", "qwen", "--dataset", dataset)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has files that no export has written, such as mine.txt: choose another folder" in err
    code, out, err = call("export", output, "--format", "qwen")
    assert (code, out) == (1, "")
    assert err == (
        "prefect-imageqa: give the run's dataset as --dataset: the images are read from it\n"
    )


def test_an_unfinished_output_is_a_one_line_error(call: Call, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    open_output(ObjectStore(uri=output))
    code, out, err = call("export", output, "--format", "llava", "--dataset", "d.json")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no run has completed here yet; finish the run first: call `prefect-imageqa run" in err


def test_a_file_of_an_output_is_no_output(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    file.write_bytes(b"")
    for command in (["export", str(file), "--format", "hf"], ["report", str(file)]):
        code, out, err = call(*command)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "pairs.parquet is a file: give the folder of a run, its --output" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "x"], "Invalid value"),
        (["--format", "llava", "--shard-size", "0"], "--shard-size"),
        (["--format", "llava", "--validation", "1"], "--validation: Input should be less than 1"),
        (["--format", "llava", "--images", "embed"], "--images: format llava cannot embed images"),
        (["--dataset", "d.json"], "give --format: llava, sharegpt, qwen, openai, hf, webdataset"),
    ],
    ids=["format", "shard size", "validation", "images", "no format"],
)
def test_usage_errors(options: list[str], message: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call("export", str(tmp_path / "out"), *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_run_refuses_an_export_folder_of_others_before_any_request(
    stub: Any, drawn: Path, tmp_path: Path
) -> None:
    parameters: dict[str, Any] = {"exports": ["llava"]}
    output = ObjectStore(uri=str(tmp_path / "out"))
    output.write("export/llava/mine.txt", b"mine")
    requests = stub.stats()["requests"]
    with pytest.raises(StoreError, match=r"no export has written, such as mine\.txt"):
        image_qa(str(drawn / "dataset.json"), output.uri, endpoint=stub.url, **parameters)
    assert stub.stats()["requests"] == requests


def test_images_are_read_up_to_the_size_that_the_run_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parameters = SimpleNamespace(columns=Columns(), images=Images(max_file_bytes=9))
    monkeypatch.setattr(source, "completed_run", lambda _: SimpleNamespace(parameters=parameters))
    (tmp_path / "a.png").write_bytes(b"0123456789")
    store = ObjectStore(uri=str(tmp_path))
    with (
        source.open_source(store, None, None, allow_private_hosts=False) as opened,
        pytest.raises(RowError) as raised,
    ):
        opened.reader.read(ImageRef(path=str(tmp_path / "a.png")))
    assert raised.value.problem.kind is Kind.IMAGE_TOO_LARGE
