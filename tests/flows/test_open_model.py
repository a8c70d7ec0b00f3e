"""The model of a run: its server is started, checked, restarted or waited for."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.runtime import deployment
from prefect_imageqa import VLLMEndpoint
from prefect_imageqa.flows.open_model import RunModel, open_model
from prefect_imageqa.serving.demo_model import scenes
from prefect_imageqa.serving.server import recovery
from prefect_imageqa.serving.server.checkpoint import checkpoint_digest
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind
from prefect_imageqa.tasks.errors import (
    EndpointError,
    EndpointLostError,
    EndpointUnreachableError,
    ServerError,
)
from prefect_imageqa.tasks.runs.parameters import Limits
from pydantic import SecretStr

CHECKPOINT = Path(scenes.__file__).parent / "checkpoint"
STUB = Path(__file__).resolve().parents[2] / "benchmarks" / "stub_server.py"

# Acts as an interpreter with vLLM, and serves the stub.
FAKE_PYTHON = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    print(json.dumps([True, True]))
    sys.exit()
del os.environ["PYTHONSAFEPATH"]  # the stub imports its neighbours
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


def processes(*words: str) -> list[psutil.Process]:
    """Child processes that have all these words in their command lines."""
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    return [
        process
        for process in psutil.process_iter(["cmdline"])  # skips processes that end meanwhile
        if process.pid in mine and {*words} <= {*(process.info["cmdline"] or [])}
    ]


def ask(*texts: str) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": text}], {}) for text in texts]


def answers(model: RunModel) -> bool:
    (outcome,) = model.client.complete(ask("hello"))
    return isinstance(outcome, Completion)


def test_own_server_is_started_restarted_and_stopped(
    own_server: None, caplog: pytest.LogCaptureFixture
) -> None:
    before = psutil.Process().children(recursive=True)
    with open_model(None, str(CHECKPOINT), Limits(server_wait=0)) as model:
        assert model.client.model == "checkpoint"
        assert model.revision == checkpoint_digest(CHECKPOINT)
        assert answers(model)
        [server] = processes(str(STUB), CHECKPOINT.name)
        server.kill()
        psutil.wait_procs([server], timeout=10)
        assert answers(model)
    assert psutil.Process().children(recursive=True) == before
    assert caplog.text.count("restart 1: ") == 1


def test_own_server_is_restarted_as_often_as_it_takes_to_find_what_crashes_it(
    own_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "MAX_RESTARTS_WITHOUT_PROGRESS", 1)
    fatal = [f"STUB die {number}" for number in range(4)]
    with open_model(None, str(CHECKPOINT), Limits(max_in_flight=1)) as model:
        outcomes = model.client.complete(ask(*fatal), max_crashes=1)
        kinds = [outcome.kind for outcome in outcomes if isinstance(outcome, Failure)]
        assert kinds == [FailureKind.CRASH] * 4
        # Nobody expects a server to crash while it works on the other rows.
        with pytest.raises(ServerError, match="gave up after 1 restarts without a completion"):
            model.client.complete(ask(*fatal))


def test_closing_the_model_stops_a_restart(own_server: None, tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        with open_model(None, str(CHECKPOINT)) as model:
            (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 600\n")
            [server] = processes(str(STUB), CHECKPOINT.name)
            server.kill()
            waiting = pool.submit(answers, model)
            while not processes("sleep"):
                time.sleep(0.05)
        with pytest.raises(EndpointError, match="the client was closed"):
            waiting.result(60)
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize("key", ["stub-api-key-5f2c", "stub-api-key-5f2c\n"], ids=["key", "line"])
def test_urls_get_the_key_of_the_environment(
    key: str, keyed_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_API_KEY", key)
    with open_model(keyed_stub.url, None) as model:
        assert model.client.model == "stub"
        assert answers(model)


def test_a_key_that_is_no_header_is_reported_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_API_KEY", "half\nhunter2")
    with pytest.raises(EndpointError) as error, open_model("http://127.0.0.1:9", None):
        pass
    assert str(error.value) == "PREFECT_IMAGEQA_API_KEY has a line break or control character"


def test_whoever_starts_a_deployment_is_not_sent_the_key_of_the_worker(
    keyed_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_API_KEY", "stub-api-key-5f2c")
    monkeypatch.setitem(deployment.FIELDS, "id", lambda: "of-a-deployment")
    block = VLLMEndpoint(urls=[keyed_stub.url], api_key=SecretStr("stub-api-key-5f2c"))
    with open_model(block, None) as model:
        assert answers(model)
    with pytest.raises(EndpointError, match="no key was sent"), open_model(keyed_stub.url, None):
        pass


def test_a_shared_server_is_waited_for(start_stub: Any) -> None:
    stub = start_stub("--respawn=0.2")
    with open_model([stub.url], "stub") as model:
        assert model.revision == ""
        os.kill(stub.stats()["pid"], signal.SIGKILL)
        assert answers(model)
    assert stub.stats()["starts"] == 2


def test_a_shared_server_that_does_not_return_is_reported_in_one_line(start_stub: Any) -> None:
    stub = start_stub()
    with open_model([stub.url], "stub", Limits(server_wait=0.6)) as model:
        stub.process.kill()
        stub.process.wait()
        with pytest.raises(EndpointLostError) as lost:
            model.client.complete(ask("hello"))
    assert str(lost.value) == (
        f"{stub.url} does not answer (connection refused): waited 1 s; when a server is back, run "
        "the same command again to resume"
    )


@pytest.fixture
def unused_url() -> str:
    """A URL on which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_a_server_that_is_not_up_yet_is_waited_for_on_request(
    unused_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    with (
        pytest.raises(EndpointUnreachableError, match=f"no server answers at {unused_url}/v1"),
        open_model([unused_url], "stub", Limits(server_wait=60)),
    ):
        pass
    assert time.monotonic() - started < 30
    assert not caplog.messages

    def connect() -> bool:
        limits = Limits(wait=True, server_wait=60)
        with open_model([unused_url], "stub", limits) as model:
            return answers(model)

    command = [sys.executable, str(STUB), "--latency=0", "--port", unused_url.rpartition(":")[2]]
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect)
        while not caplog.messages:
            time.sleep(0.02)
        with subprocess.Popen(command) as server:
            assert connecting.result(60)
            server.terminate()
    [message] = caplog.messages
    assert message.startswith(f"no server answers at {unused_url}/v1 (")
    assert message.endswith("waiting for it, up to 60 s")


def test_a_wait_for_a_server_that_is_not_up_ends(unused_url: str) -> None:
    limits = Limits(wait=True, server_wait=0.3)
    with (
        pytest.raises(EndpointUnreachableError, match=f"no server answers at {unused_url}/v1"),
        open_model([unused_url], "stub", limits),
    ):
        pass
