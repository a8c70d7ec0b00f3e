"""`batch-export` and `batch-import`: what they print, and errors before anything is stored."""

import json
import sys
from pathlib import Path

import pytest
from prefect_imageqa.flows.cli.main import main

from .conftest import Call

# The command line of the tests is passed in `sys.argv`, as that of a user is.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


KEY = "0123456789abcdef" * 2


@pytest.fixture
def call_main(call: Call, drawn: Path, tmp_path: Path) -> Call:
    """Runs a command about the drawn images in this process; gives exit code, stdout and stderr."""

    rows = str(drawn / "dataset.json"), "--output", str(tmp_path / "out")
    return lambda command, *flags: call(command, *rows, *flags)


def test_an_export_has_every_row_that_can_be_asked(
    call_main: Call, drawn: Path, tmp_path: Path
) -> None:
    rows = json.loads((drawn / "dataset.json").read_text())
    (drawn / "broken.png").write_bytes(b"<html>")
    rows += [rows[0], {**rows[0], "image": "broken.png"}, {**rows[0], "image": "missing.png"}]
    (drawn / "dataset.json").write_text(json.dumps(rows))
    folder = tmp_path / "requests"
    flags = ["--to", str(folder), "--model", "m", "--rows-per-file", "10", "--max-tokens", "77"]
    code, out, err = call_main("batch-export", *flags, "--json")
    files = {"requests-00001.jsonl": 10, "requests-00002.jsonl": 2}
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "requests": 12,
        "finished": 0,
        "duplicates": 1,
        "problems": 2,
        "suspects": 0,
        "folder": str(folder),
        "files": files,
    }
    lines = [json.loads(line) for name in files for line in (folder / name).open()]
    bodies = [line["body"] for line in lines]
    assert len({line["custom_id"] for line in lines}) == 12
    assert {(body["model"], body["max_tokens"]) for body in bodies} == {("m", 77)}
    assert len({body["seed"] for body in bodies}) == 12
    [image, _] = bodies[0]["messages"][-1]["content"]
    assert image["image_url"]["url"].startswith("data:image/")
    assert not (tmp_path / "out").exists()
    before = [(folder / name).read_bytes() for name in files]
    code, out, _ = call_main("batch-export", *flags)
    assert [(folder / name).read_bytes() for name in files] == before
    assert out.splitlines()[:3] == [
        f"requests: 12, in 2 files in {folder}",
        "the same as an earlier row: 1",
        "cannot be asked, the import says why: 2",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "m"], 2, "--to"),
        (["--to", "TMP/requests"], 2, "--model"),
        (["--to", "TMP/requests", "--model", "m", "--rows-per-file", "50001"], 2, "<= 50000"),
        (["--to", "TMP/drawn", "--model", "m"], 1, "was not written by batch-export"),
        (["--to", "s3://bucket/requests", "--model", "m"], 1, "written to a local folder"),
        (["--to", "TMP/requests", "--model", "m", "--style", "none"], 1, "none"),
        (["--to", "TMP/requests", "--model", "m", "--extra-body.min_p", "1"], 2, "one JSON object"),
        (["--to", "TMP/requests", "--model", "m", "--temperature", "3"], 2, "--temperature"),
    ],
    ids=[
        *("no folder", "no model", "too many rows", "foreign folder", "not local", "no style"),
        *("misread flag", "bad flag"),
    ],
)
def test_an_export_that_is_not_possible_is_one_clear_line(
    call_main: Call, tmp_path: Path, flags: list[str], code: int, message: str
) -> None:
    given = [flag.replace("TMP", str(tmp_path)) for flag in flags]
    ended, out, err = call_main("batch-export", *given)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("prefect-imageqa: ")
    assert message in err
    assert not (tmp_path / "requests").exists()


def test_files_inside_the_dataset_are_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    images = str(drawn / "images")
    flags = ["--output", str(tmp_path / "out"), "--model", "m", "--to", f"{images}/requests"]
    monkeypatch.setattr(sys, "argv", ["prefect-imageqa", "batch-export", images, *flags])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "is inside the dataset's folder" in capfd.readouterr().err


RESULT = {"response": {"status_code": 200, "body": {"choices": []}}, "error": None}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "results: cannot be read: No such file or directory"),
        ({}, "results: the folder has no *.jsonl file with results"),
        ({"r.jsonl": "{\n"}, "cannot be read: 1, the first: RESULTS/r.jsonl:1 is not JSON"),
        (
            {"r.jsonl": json.dumps({"custom_id": "row-1", **RESULT})},
            "custom_id that no run gives: 1, the first: RESULTS/r.jsonl:1, 'row-1'",
        ),
        (
            {"r.jsonl": json.dumps({"custom_id": KEY, **RESULT})},
            "none of the 1 results is about a row of this run: give the dataset, --model",
        ),
    ],
    ids=["no folder", "no files", "not JSON", "foreign", "of another run"],
)
def test_results_that_cannot_be_imported_are_one_clear_line(
    call_main: Call, tmp_path: Path, files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "results"
    if files is not None:
        folder.mkdir()
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    code, out, err = call_main("batch-import", "--results", str(folder), "--model", "m")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message.replace("RESULTS", str(folder)) in err
    assert not (tmp_path / "out").exists()
