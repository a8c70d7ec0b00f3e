"""The shipped deployment, deployed and run by a real worker on a real Prefect server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

ROOT = Path(__file__).resolve().parents[2]


def prefect(*arguments: str) -> str:
    """Run Prefect's command line against the tests' server."""
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_the_deployment_runs_on_a_worker(stub: Any, drawn: Path, tmp_path: Path) -> None:
    prefect("work-pool", "create", "default", "--type", "process")
    prefect("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    parameters = {
        "dataset": str(drawn / "dataset.json"),
        "output": str(tmp_path / "out"),
        "endpoint": stub.url,
        "sampling": {"max_tokens": 64},
    }
    prefect("deployment", "run", "image-qa/on-demand", "--params", json.dumps(parameters))
    prefect("worker", "start", "--pool", "default", "--run-once")
    assert len((tmp_path / "out" / "qa.jsonl").read_text().splitlines()) == 12
    assert stub.stats()["bodies"][-1]["max_tokens"] == 64


def test_the_block_type_can_be_registered() -> None:
    told = prefect("block", "register", "-m", "prefect_imageqa.serving.endpoint")
    assert "vLLM Endpoint" in told
