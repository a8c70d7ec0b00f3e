"""`status`, `verify` and `clean` on an output that real runs have made."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import ObjectStore, image_qa

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('s3')}/outputs-{tmp_path.name}"


@pytest.fixture
def ask(stub: Any, drawn: Path, output: str) -> Callable[..., Any]:
    def run(**changed: Any) -> Any:
        return image_qa(
            str(drawn / "dataset.json"), output, endpoint=stub.url, batch_size=5, **changed
        )

    return run


def test_an_output_is_told_checked_and_cleaned(ask: Callable[..., Any], output: str) -> None:
    nothing = run_cli("status", output)
    assert (nothing.returncode, nothing.stdout.strip()) == (0, f"{output}: nothing there yet")
    ask(system_prompt="Be brief.")
    ask()
    told = run_cli("status", output)
    assert told.returncode == 0
    assert "12 rows: 12 ok, 0 quarantined" in told.stdout
    assert json.loads(run_cli("status", output, "--json").stdout)["output"] == output
    well = run_cli("verify", output)
    assert (well.returncode, well.stderr) == (0, "")
    assert "12 rows, " in well.stdout
    assert "all there and readable" in well.stdout

    planned = run_cli("clean", output, "--dry-run")
    assert "would remove 7 objects" in planned.stdout  # three batches, and the keys
    assert run_cli("clean", output).stdout.startswith("removed 7 objects")
    assert run_cli("verify", output).returncode == 0
    assert ask().requests == 0
    assert ask(system_prompt="Be brief.").requests == 12


def test_what_is_damaged_is_named(ask: Callable[..., Any], output: str) -> None:
    ask()
    store = ObjectStore(uri=output)
    [damaged, *_] = store.list("parts")
    store.write(damaged, store.read(damaged)[:100])
    store.write("qa.jsonl", store.read("qa.jsonl") + b"{}\n")
    checked = run_cli("verify", output)
    assert checked.returncode == 1
    assert f"{output}/{damaged}" in checked.stdout
    assert "qa.jsonl" in checked.stdout
    assert "Traceback" not in checked.stderr


def test_an_output_that_cannot_be_read_is_one_line(s3: str) -> None:
    for command in ("status", "verify", "clean"):
        done = run_cli(command, "s3://no-such-bucket/qa")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("prefect-imageqa: s3://no-such-bucket")
