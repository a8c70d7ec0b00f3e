"""The model of a run: its server is started, checked, restarted or waited for."""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect_imageqa.flows import open_model as open_model_module
from prefect_imageqa.flows.open_model import RunModel, open_model
from prefect_imageqa.serving.demo_model import scenes
from prefect_imageqa.serving.server.checkpoint import checkpoint_digest
from prefect_imageqa.serving.types import ChatRequest, Completion
from prefect_imageqa.tasks.errors import EndpointError, ServerError

CHECKPOINT = Path(scenes.__file__).parent / "checkpoint"
STUB = Path(__file__).resolve().parents[2] / "benchmarks" / "stub_server.py"

# Acts as an interpreter with vLLM, and serves the stub.
FAKE_PYTHON = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    print(json.dumps([True, True]))
    sys.exit()
value = lambda name: sys.argv[sys.argv.index(name) + 1]
os.execv(sys.executable, [
    sys.executable, {str(STUB)!r}, "--latency=0", "--port", value("--port"),
    "--model", value("--served-model-name"), "--api-key=" + os.environ["VLLM_API_KEY"],
])
"""


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stub the server that a run starts."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", str(python))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def in_a_flow(work: Callable[[], None]) -> None:
    """The start of a server is logged in a run, so there must be one."""
    flow(name="test-run-model", persist_result=False)(work)()


def processes(*words: str) -> list[psutil.Process]:
    """Child processes that have all these words in their command lines."""
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    return [
        process
        for process in psutil.process_iter(["cmdline"])  # skips processes that end meanwhile
        if process.pid in mine and {*words} <= {*(process.info["cmdline"] or [])}
    ]


def answers(model: RunModel) -> bool:
    (outcome,) = model.client.complete([ChatRequest([{"role": "user", "content": "hello"}], {})])
    return isinstance(outcome, Completion)


def test_own_server_is_started_restarted_and_stopped(own_server: None) -> None:
    before = psutil.Process().children(recursive=True)

    def work() -> None:
        with open_model(None, str(CHECKPOINT), 4) as model:
            assert model.client.model == "checkpoint"
            assert model.revision == checkpoint_digest(CHECKPOINT)
            assert answers(model)
            model.recover()
            [server] = processes(str(STUB), CHECKPOINT.name)
            server.kill()
            psutil.wait_procs([server], timeout=10)
            model.recover(expected=True)
            assert answers(model)

    in_a_flow(work)
    assert psutil.Process().children(recursive=True) == before


def test_closing_the_model_stops_a_restart(own_server: None, tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)

    def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            with open_model(None, str(CHECKPOINT), 4) as model:
                (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
                [server] = processes(str(STUB), CHECKPOINT.name)
                server.kill()
                recovering = pool.submit(model.recover)
                while not processes("sleep"):
                    time.sleep(0.05)
            with pytest.raises(ServerError, match="or was stopped"):
                recovering.result(10)

    in_a_flow(work)
    assert psutil.Process().children(recursive=True) == before


def test_a_shared_server_is_waited_for(start_stub: Any) -> None:
    stub = start_stub("--respawn=0.2")
    with open_model([stub.url], "stub", 4) as model:
        assert model.revision == ""
        os.kill(stub.stats()["pid"], signal.SIGKILL)
        model.recover()
        assert answers(model)
    assert stub.stats()["starts"] == 2


def test_a_shared_server_that_does_not_return_is_reported_in_one_line(
    start_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_model_module, "RECONNECT_SECONDS", 0.5)
    stub = start_stub()
    with open_model([stub.url], "stub", 4) as model:
        stub.process.kill()
        stub.process.wait()
        with pytest.raises(EndpointError) as lost:
            model.recover(expected=True)
    assert str(lost.value) == (
        f"{stub.url}: no server has answered for 0 s; when one is back, run the same command again "
        "to resume"
    )
