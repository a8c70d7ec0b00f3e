"""The vLLM server: started, restarted and stopped, with no process left behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from prefect_imageqa.serving import demo_model
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import server as server_module
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.process import terminate_on_signals
from prefect_imageqa.serving.server.recovery import Recovery
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.serving.server.vllm_python import find_vllm_python
from prefect_imageqa.serving.types import ChatRequest, Completion

DEMO_MODEL = Path(demo_model.__file__).parent / "checkpoint"

LONG_REQUEST = ChatRequest(
    [{"role": "user", "content": "Describe the image."}],
    {"temperature": 0.0, "max_tokens": 900, "ignore_eos": True},
)

# Owns a server, and recovers it on the command of a line of its input.
PARENT = """
import sys, threading
from pathlib import Path
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.process import terminate_on_signals
from prefect_imageqa.serving.server.recovery import Recovery
from prefect_imageqa.serving.server.server import VLLMServer
python, model, log, *extra = sys.argv[1:]
options = ServerOptions(
    model, python=python, log_file=Path(log), extra_args=tuple(extra), max_model_len=1024
)
with terminate_on_signals(), VLLMServer(options) as server:
    recovery = Recovery(server, lambda: 0)
    print(server.process.pid, server.url, flush=True)
    for command in sys.stdin:
        if command == "recover in a thread\\n":
            threading.Thread(target=recovery.recover).start()
        else:
            recovery.recover()
            print(server.process.pid, server.url, flush=True)
"""


def tree(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def assert_ended(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive


def kill_processes(supervisor: int) -> None:
    """Kill the server's processes, but not their supervisor."""
    for process in tree(supervisor)[1:]:
        with suppress(psutil.NoSuchProcess):  # the supervisor may have ended it already
            process.kill()


def starts(log: Path) -> int:
    return log.read_text().count("Loading the weights") if log.exists() else 0


def start_parent(python: Path, log: Path, *extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, python, DEMO_MODEL, log, *extra],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until_started(parent: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the process id of the supervisor and the server's URL."""
    assert parent.stdout is not None
    pid, url = parent.stdout.readline().split()
    return int(pid), url


def send(command: str, parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    print(command, file=parent.stdin, flush=True)


# --- the life of the process ----------------------------------------------------------------------


def test_a_healthy_server_is_not_restarted_and_is_stopped_with_all_its_processes(
    options: Callable[..., ServerOptions],
) -> None:
    server = VLLMServer(options("serve", "--stubborn"))
    with server:
        processes = tree(server.process.pid)
        assert len(processes) == 3
        assert server.is_alive()
        assert server.uptime > 0
        assert server.engine_processes() == [processes[2].pid]
        assert server.probe.is_healthy()
        server.check()
        Recovery(server, lambda: 0).recover()
        assert starts(server.log_file) == 1
    assert_ended(processes, 0)
    assert not server.is_alive()
    server.stop()


def test_a_port_in_use_is_rejected_before_the_start(stand_in: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = VLLMServer(ServerOptions(DEMO_MODEL, port=port, python=stand_in))
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1 port {port}.*in use"):
            server.start()
    assert not server.is_alive()


def test_death_during_the_start_is_reported_with_the_log(
    options: Callable[..., ServerOptions],
) -> None:
    server = VLLMServer(options("die"))
    with pytest.raises(ServerError, match="ended with code 3") as death:
        server.start()
    assert str(death.value).splitlines()[1:] == ["  RuntimeError: the weights are torn"]
    assert str(server.log_file) in str(death.value)


def test_a_server_that_anyone_can_use_is_warned_about(
    options: Callable[..., ServerOptions], caplog: pytest.LogCaptureFixture
) -> None:
    exposed = replace(options("die"), host="0.0.0.0")  # noqa: S104
    for server in (VLLMServer(exposed), VLLMServer(replace(exposed, api_key="secret"))):
        with pytest.raises(ServerError, match="torn"):
            server.start()
    [warning] = [message for message in caplog.messages if "can use the server" in message]
    assert re.fullmatch(
        r"anyone who can reach 0\.0\.0\.0 port \d+ can use the server: set VLLM_API_KEY to a key",
        warning,
    )


def test_a_hanging_start_logs_its_progress_and_can_be_stopped(
    options: Callable[..., ServerOptions],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_module, "_PROGRESS_SECONDS", 0.1)
    caplog.set_level("INFO", "prefect_imageqa.serving")
    server = VLLMServer(options("hang"))
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)
        try:
            wait_until(lambda: "s of 120, Loading the weights" in caplog.text)
            assert re.fullmatch(r"\d+ s of 120, Loading the weights", server.progress)
        finally:
            server.stop()
        with pytest.raises(ServerError, match="was stopped"):
            starting.result(60)
    assert server.progress == ""


def test_a_hanging_start_ends_at_the_timeout(options: Callable[..., ServerOptions]) -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServerError, match="not healthy within 1 s"):
        VLLMServer(options("hang", startup_timeout=1)).start()
    assert not set(psutil.Process().children(recursive=True)) - before


def test_an_unwritable_log_is_an_error(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = VLLMServer(
        ServerOptions(DEMO_MODEL, python=stand_in, log_file=tmp_path / "file" / "server.log")
    )
    with pytest.raises(ServerError, match="log cannot be written"):
        server.start()


def test_no_process_outlives_a_killed_server(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve", "--stubborn")) as server:
        processes = tree(server.process.pid)
        processes[1].kill()
        server.process.wait(60)
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.check()
        assert_ended(processes, 0)


@pytest.mark.usefixtures("graceful")
def test_a_stopped_tree_is_ended_without_waiting(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        processes = tree(server.process.pid)
        for process in reversed(processes):
            process.suspend()
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 40
    assert_ended(processes, 0)


@pytest.mark.usefixtures("graceful")
def test_a_restart_does_not_wait_for_a_server_that_hangs(
    options: Callable[..., ServerOptions],
) -> None:
    with VLLMServer(options("serve", "--hung", "--stubborn")) as server:
        processes = tree(server.process.pid)
        began = time.monotonic()
        server.process.stop(kill=True)
        assert time.monotonic() - began < 40
        assert_ended(processes, 0)


@pytest.mark.parametrize("state", ["loading", "serving", "restarting", "restarting in a thread"])
def test_no_process_outlives_the_parent(state: str, stand_in: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        parents = {}
        for ending in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            files = tmp_path / ending.name
            files.mkdir()
            (files / "mode").write_text("hang" if state == "loading" else "serve")
            command = ("--stubborn", "--mode", str(files / "mode"))
            parents[ending] = stack.enter_context(start_parent(stand_in, files / "log", *command))
        for ending, parent in parents.items():
            files = tmp_path / ending.name
            if state != "loading":
                supervisor, _ = wait_until_started(parent)
            if state.startswith("restarting"):
                (files / "mode").write_text("hang")
                kill_processes(supervisor)
                send(state.replace("restarting", "recover"), parent)
        processes = []
        for ending, parent in parents.items():
            expected = 2 if state.startswith("restarting") else 1
            log = tmp_path / ending.name / "log"
            # parent, supervisor, server, child
            wait_until(lambda: starts(log) == expected and len(tree(parent.pid)) == 4)  # noqa: B023
            processes += tree(parent.pid)[1:]
        for ending, parent in parents.items():
            parent.send_signal(ending)
        assert_ended(processes, 60)
        for parent in parents.values():
            parent.wait(60)


def test_a_program_under_nohup_survives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_server_ends_with_a_killed_supervisor(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        supervisor, first, child = tree(server.process.pid)
        supervisor.kill()
        assert_ended([supervisor, first], 60)
        child.kill()  # without a supervisor, the child of its own session survives


def test_a_deleted_log_is_no_obstacle(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        server.log_file.unlink()
        assert str(server.error("stalled")).endswith("last lines:\n  (empty)")


def test_a_restart_preserves_url_and_log(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        url, processes = server.url, tree(server.process.pid)
        server.restart()
        assert_ended(processes, 0)
        assert server.probe.is_healthy()
        assert server.url == url
        assert starts(server.log_file) == 2
        processes = tree(server.process.pid)
    assert_ended(processes, 0)
    with pytest.raises(ServerError, match="stopped"):
        server.restart()


# --- real vLLM ------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_vllm_recovers_from_the_loss_of_its_engine_and_shuts_down_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with start_parent(find_vllm_python().path, log) as parent:
        supervisor, url = wait_until_started(parent)
        with urlopen(f"{url}/v1/models", timeout=60) as reply:  # noqa: S310
            assert [model["id"] for model in json.load(reply)["data"]] == ["checkpoint"]
        port = int(url.rpartition(":")[2])
        with pytest.raises(ServerError, match=f"port {port}"):
            VLLMServer(ServerOptions(DEMO_MODEL, port=port)).start()

        endpoint = VLLMEndpoint(urls=[url], model="checkpoint")
        with ChatClient(endpoint, max_in_flight=4) as client, ThreadPoolExecutor(1) as pool:
            processes = tree(supervisor)
            asked = pool.submit(client.complete, [LONG_REQUEST] * 8)
            wait_until(lambda: client.stats.in_flight == 4)
            time.sleep(0.3)
            [engine] = [process for process in processes if "EngineCore" in process.name()]
            engine.kill()
            psutil.wait_procs(processes[1:2], timeout=60)
            send("recover", parent)
            supervisor, same_url = wait_until_started(parent)
            assert_ended(processes, 0)
            assert same_url == url
            outcomes = asked.result(120)
            assert all(isinstance(outcome, Completion) for outcome in outcomes)

        log_size = log.stat().st_size
        processes = tree(supervisor)
        assert len(processes) >= 3
        parent.terminate()
        assert_ended(processes, 60)
        assert parent.wait(60) == 128 + signal.SIGTERM
    assert b"Application shutdown complete" in log.read_bytes()[log_size:]


@pytest.mark.vllm
def test_no_process_of_vllm_outlives_parent_and_api_server_killed_while_it_loads(
    tmp_path: Path,
) -> None:
    with start_parent(find_vllm_python().path, tmp_path / "server.log") as parent:
        # parent, supervisor, API server, resource tracker, engine
        wait_until(lambda: len(tree(parent.pid)) >= 5, 240)
        supervisor, api_server, *others = tree(parent.pid)[1:]
        parent.kill()
        api_server.kill()
        assert_ended([supervisor, api_server, *others], 60)
