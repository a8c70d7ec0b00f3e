"""A server's whole life: found, started, watched, stopped, and never left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import interpreter
from prefect_imageqa.serving.server import recovery as recovery_module
from prefect_imageqa.serving.server.checkpoint import checkpoint_digest
from prefect_imageqa.serving.server.interpreter import VLLMPython, find_vllm_python
from prefect_imageqa.serving.server.launch import (
    ServerOptions,
    local_checkpoint,
    serve_command,
    serve_environment,
)
from prefect_imageqa.serving.server.process import terminate_on_signals
from prefect_imageqa.serving.server.recovery import Recovery
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.serving.types import ChatRequest, Completion, FailureKind

DEMO_MODEL = Path(interpreter.__file__).parents[1] / "demo_model" / "checkpoint"

# Plays vLLM: what it does stands in --play, or in the file named there. Its child leaves the
# session and ignores SIGTERM.
STAND_IN = """#!{python}
import http.server, json, os, signal, subprocess, sys, time
if sys.argv[1] == "-c":
    print(json.dumps([{has_vllm}, True]))
    sys.exit()
script = sys.argv[sys.argv.index("--play") + 1]
read_play = lambda: open(script).read() if os.path.exists(script) else script
play = read_play()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
print("(APIServer pid=7) INFO 11-23 20:51:51 [model.py:1] Loading the weights", flush=True)
if play == "die":
    error = "(EngineCore pid=8) ERROR 11-23 20:51:51 [core.py:1] "
    for line in ("Traceback (most recent call last):", "  File x, line 1", "    load()"):
        print(error + line)
    print(error + "\\x1b[31mRuntimeError: the weights are\\x1b[0m torn", flush=True)
    sys.exit(3)
if play == "hang":
    time.sleep(600)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if read_play() == "ill" else 200)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

# Ends in the middle of a restart, which the first argument puts on a thread or on the main one.
REVIVING_PARENT = """
import os, sys, threading, time
from pathlib import Path
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.process import terminate_on_signals
from prefect_imageqa.serving.server.recovery import Recovery
from prefect_imageqa.serving.server.server import VLLMServer
thread, python, model, log, play = sys.argv[1:]
options = ServerOptions(model, python=python, log_file=Path(log), extra_args=("--play", play))
with terminate_on_signals(), VLLMServer(options) as server:
    Path(play).write_text("hang")
    server.process.stop()
    recovery = Recovery(server, lambda: 0)
    if thread == "thread":
        threading.Thread(target=recovery.recover).start()
        time.sleep(600)
    recovery.recover()
"""

PARENT = """
import sys, time
from pathlib import Path
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.process import terminate_on_signals
from prefect_imageqa.serving.server.server import VLLMServer
python, model, log, *extra = sys.argv[1:]
options = ServerOptions(
    model, python=python, log_file=Path(log), extra_args=tuple(extra), max_model_len=1024
)
with terminate_on_signals(), VLLMServer(options) as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, has_vllm=True))
    path.chmod(0o755)
    return path


@pytest.fixture
def options(stand_in: Path, tmp_path: Path) -> Callable[..., ServerOptions]:
    def make(play: str, startup_timeout: float = 60) -> ServerOptions:
        return ServerOptions(
            DEMO_MODEL,
            python=stand_in,
            extra_args=("--play", play),
            startup_timeout=startup_timeout,
            log_file=tmp_path / "logs" / "server.log",
        )

    return make


def real_python() -> Path:
    return find_vllm_python().path


def tree(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def assert_gone(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive


def start_parent(python: Path, log: Path, *extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, python, DEMO_MODEL, log, *extra],
        stdout=subprocess.PIPE,
        text=True,
    )


def supervisor_of(parent: subprocess.Popen[str]) -> int:
    assert parent.stdout is not None
    return int(parent.stdout.readline())


# --- the interpreter ------------------------------------------------------------------------------


def test_interpreter_that_is_named_counts_first(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", "/no/such/python")
    assert find_vllm_python(stand_in) == VLLMPython(stand_in, cpu_only=True)


def test_interpreter_from_the_environment(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_VLLM_PYTHON", str(stand_in))
    assert find_vllm_python().path == stand_in


def test_interpreter_beside_the_working_directory(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    stand_in.rename(python)
    monkeypatch.chdir(tmp_path)
    assert find_vllm_python().path == python


def test_folder_named_vllm_is_not_taken_for_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerError, match="has no vLLM"):
        find_vllm_python(sys.executable)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda _path: None, "not a working Python", id="missing"),
        pytest.param(lambda path: path.touch(mode=0o755), "not a working Python", id="broken"),
        pytest.param(lambda path: path.symlink_to(sys.executable), "no vLLM", id="without vLLM"),
    ],
)
def test_unusable_interpreter_is_refused_with_advice(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "some-python"
    make(path)
    with pytest.raises(ServerError, match=reason) as refusal:
        find_vllm_python(path)
    assert str(path) in str(refusal.value)
    assert "prefect_imageqa.serving.server.cpu_env" in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- the model, the command and the environment ---------------------------------------------------


def test_hub_name_passes_through() -> None:
    assert local_checkpoint("HuggingFaceTB/SmolVLM-256M-Instruct") is None


@pytest.mark.parametrize(
    "model", ["./nowhere", "~/nowhere", "/no/where", "checkpoints/a/b", "nowhere", Path("no/where")]
)
def test_missing_folder_is_refused(model: str | Path) -> None:
    with pytest.raises(ServerError, match="no such folder"):
        local_checkpoint(model)


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no config\.json"):
        local_checkpoint(tmp_path)


def test_cpu_command_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    python = VLLMPython(Path("/env/bin/python"), cpu_only=True)
    asked = ServerOptions(DEMO_MODEL, api_key="secret", extra_args=("--max-num-seqs", "8"))
    command = serve_command(asked, python, 8000, "demo")
    environment = serve_environment(asked, python)
    assert command[:5] == [
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(DEMO_MODEL)),
    ]
    assert "--enforce-eager" in command
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.3"
    assert command[-2:] == ["--max-num-seqs", "8"]
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert environment["VLLM_API_KEY"] == "secret"
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert "secret" not in " ".join(command) + repr(asked)


def test_gpu_command_and_environment_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.server.launch.has_gpu", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    python = VLLMPython(Path("/env/bin/python"), cpu_only=False)
    asked = ServerOptions("owner/name", tensor_parallel_size=2, gpu_memory_utilization=0.8)
    command = serve_command(asked, python, 8000, "owner/name")
    assert command[2:5] == ["vllm.entrypoints.cli.main", "serve", "owner/name"]
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.8"
    assert not {"--enforce-eager", "--dtype", "--max-model-len"} & set(command)
    assert (
        not {"HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"} & serve_environment(asked, python).keys()
    )


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_hidden_gpu_is_no_gpu(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _self: True)
    assert interpreter.has_gpu()
    monkeypatch.setenv(variable, "")
    assert not interpreter.has_gpu()


@pytest.mark.parametrize(
    ("model", "served", "expected"),
    [
        pytest.param(DEMO_MODEL, None, "checkpoint", id="folder"),
        pytest.param(os.path.relpath(DEMO_MODEL) + "/", None, "checkpoint", id="relative"),
        pytest.param("owner/name", None, "owner/name", id="hub name"),
        pytest.param(DEMO_MODEL, "demo", "demo", id="given"),
    ],
)
def test_model_name_is_never_a_path(
    model: str | Path, served: str | None, expected: str, stand_in: Path
) -> None:
    server = VLLMServer(ServerOptions(model, served_model_name=served, python=stand_in))
    assert server.model_name == expected


# --- the life of the process ----------------------------------------------------------------------


def test_healthy_server_is_stopped_with_all_its_processes(
    options: Callable[..., ServerOptions],
) -> None:
    server = VLLMServer(options("serve"))
    with server:
        processes = tree(server.process.pid)
        assert len(processes) == 3
        assert server.is_alive()
        assert server.is_healthy()
        server.check()
    assert_gone(processes, 0)
    assert not server.is_alive()
    server.stop()


def test_taken_port_is_refused_at_once(stand_in: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = VLLMServer(ServerOptions(DEMO_MODEL, port=port, python=stand_in))
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1 port {port}.*in use"):
            server.start()
    assert not server.is_alive()


def test_death_while_starting_is_told_with_the_log(
    options: Callable[..., ServerOptions],
) -> None:
    server = VLLMServer(options("die"))
    with pytest.raises(ServerError, match="ended with code 3") as death:
        server.start()
    assert str(death.value).splitlines()[1:] == ["RuntimeError: the weights are torn"]
    assert str(server.log_file) in str(death.value)


def test_hanging_start_ends_at_the_deadline_and_tells_progress(
    options: Callable[..., ServerOptions],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("prefect_imageqa.serving.server.server._PROGRESS_SECONDS", 1.0)
    caplog.set_level("INFO", "prefect_imageqa.serving")
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ServerError, match="not healthy within 4 s"):
        VLLMServer(options("hang", startup_timeout=4)).start()
    assert "s, Loading the weights" in caplog.text
    assert psutil.Process().children(recursive=True) == before


def test_unwritable_log_is_refused(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = VLLMServer(
        ServerOptions(DEMO_MODEL, python=stand_in, log_file=tmp_path / "file" / "server.log")
    )
    with pytest.raises(ServerError, match="log cannot be written"):
        server.start()


def test_killed_server_takes_its_processes_along(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        processes = tree(server.process.pid)
        processes[1].kill()
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.wait()
        assert_gone(processes, 0)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("play", ["serve", "hang"])
def test_nothing_outlives_the_parent(
    ending: signal.Signals, play: str, stand_in: Path, tmp_path: Path
) -> None:
    with start_parent(stand_in, tmp_path / "log", "--play", play) as parent:
        wait_until(lambda: len(tree(parent.pid)) == 4, 30)
        processes = tree(parent.pid)
        if play == "serve":
            supervisor_of(parent)
        parent.send_signal(ending)
        assert_gone(processes[1:], 15)


def test_a_program_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stopped_supervisor_takes_the_server_along(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        supervisor, first, _ = tree(server.process.pid)
        supervisor.kill()
        assert_gone([supervisor, first], 5)


# --- coming back ----------------------------------------------------------------------------------


@pytest.fixture
def play(tmp_path: Path) -> Path:
    """The file that says what the stand-in plays; at first it serves."""
    path = tmp_path / "play"
    path.write_text("serve")
    return path


def kill(server: VLLMServer) -> None:
    """Kill all processes of the server, and wait until they are gone."""
    for process in tree(server.process.pid)[1:]:
        process.kill()
    server.process.wait(10)


def starts(server: VLLMServer) -> int:
    return server.log_file.read_text().count("Loading the weights")


def test_restarted_server_is_the_same_to_its_clients(
    options: Callable[..., ServerOptions],
) -> None:
    with VLLMServer(options("serve")) as server:
        url, processes = server.url, tree(server.process.pid)
        server.restart()
        assert_gone(processes, 0)
        assert server.is_healthy()
        assert server.url == url
        assert starts(server) == 2  # the log of the first is kept
        processes = tree(server.process.pid)
    assert_gone(processes, 0)
    with pytest.raises(ServerError, match="stopped"):
        server.restart()


def test_healthy_server_is_left_alone(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        Recovery(server, lambda: 0).recover()
        assert starts(server) == 1


def test_threads_wait_for_the_same_restart(
    options: Callable[..., ServerOptions], caplog: pytest.LogCaptureFixture
) -> None:
    with VLLMServer(options("serve")) as server, ThreadPoolExecutor(6) as pool:
        recovery = Recovery(server, lambda: 0)
        kill(server)
        for future in [pool.submit(recovery.recover) for _ in range(6)]:
            future.result(30)
        assert server.is_healthy()
        assert starts(server) == 2
    assert "restart 1: the vLLM server for checkpoint was ended by signal 9" in caplog.text


def test_server_that_falls_silent_is_replaced(
    options: Callable[..., ServerOptions], play: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_HANG_SECONDS", 1.0)
    with VLLMServer(options(str(play))) as server, ThreadPoolExecutor(1) as pool:
        play.write_text("ill")
        first = server.process.pid
        recovered = pool.submit(Recovery(server, lambda: 0).recover)
        wait_until(lambda: server.process.pid != first, 20)
        play.write_text("serve")
        recovered.result(20)
        assert starts(server) == 2


def test_server_that_recovers_is_not_replaced(
    options: Callable[..., ServerOptions], play: Path
) -> None:
    with VLLMServer(options(str(play))) as server, ThreadPoolExecutor(1) as pool:
        play.write_text("ill")
        recovered = pool.submit(Recovery(server, lambda: 0).recover)
        time.sleep(0.5)
        assert not recovered.done()
        play.write_text("serve")
        recovered.result(20)
        assert starts(server) == 1


def test_server_that_does_not_come_up_again_is_given_up_with_its_log(
    options: Callable[..., ServerOptions], play: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "RESTARTS", 2)
    monkeypatch.setattr(recovery_module, "_PAUSE_SECONDS", 0.0)
    with VLLMServer(options(str(play))) as server:
        play.write_text("die")
        kill(server)
        recovery = Recovery(server, lambda: 0)
        for _ in range(2):  # it stays given up
            with pytest.raises(ServerError, match=r"^given up after 2 restarts") as death:
                recovery.recover()
        assert starts(server) == 3
        assert "ended with code 3" in str(death.value)
        assert str(death.value).endswith("RuntimeError: the weights are torn")


def test_progress_pays_for_restarts(
    options: Callable[..., ServerOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "RESTARTS", 1)
    monkeypatch.setattr(recovery_module, "RESTARTS_IN_ALL", 3)
    completions = 0
    with VLLMServer(options("serve")) as server:
        recovery = Recovery(server, lambda: completions)

        def die_and_revive(*, expected: bool = False) -> None:
            kill(server)
            recovery.recover(expected=expected)

        for completions in (1, 2):  # noqa: B007 - read by the recovery
            die_and_revive()
        with pytest.raises(ServerError, match="given up after 1 restarts without an answer"):
            die_and_revive()
        recovery.recover(expected=True)
        with pytest.raises(ServerError, match="given up after 3 restarts: "):
            die_and_revive(expected=True)


@pytest.mark.parametrize(
    ("ending", "thread"),
    [
        (signal.SIGTERM, "thread"),
        (signal.SIGINT, "thread"),
        (signal.SIGKILL, "thread"),
        (signal.SIGTERM, "main"),
        (signal.SIGINT, "main"),
    ],
)
def test_nothing_outlives_the_parent_that_ends_in_a_restart(
    ending: signal.Signals, thread: str, stand_in: Path, play: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    arguments = [thread, stand_in, DEMO_MODEL, log, play]
    command = [sys.executable, "-c", REVIVING_PARENT, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: log.exists() and log.read_text().count("Loading") == 2, 30)
        wait_until(lambda: len(tree(parent.pid)) == 4, 30)
        processes = tree(parent.pid)[1:]
        parent.send_signal(ending)
        assert_gone(processes, 15)
        parent.wait(15)


def test_stop_has_the_last_word(options: Callable[..., ServerOptions], play: Path) -> None:
    server = VLLMServer(options(str(play)))
    with server, ThreadPoolExecutor(2) as pool:
        play.write_text("hang")
        kill(server)
        recovery = Recovery(server, lambda: 0)
        waiting = [pool.submit(recovery.recover) for _ in range(2)]
        wait_until(lambda: starts(server) == 2, 20)
        processes = tree(server.process.pid)
        server.stop()
        for future in waiting:
            with pytest.raises(ServerError, match="was stopped again"):
                future.result(10)
    assert_gone(processes, 0)
    assert starts(server) == 2


# --- the checkpoint's digest ----------------------------------------------------------------------


def test_digest_follows_what_decides_answers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("a model card")
    assert checkpoint_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    second = checkpoint_digest(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "generation_config.json")
    assert len({first, second, checkpoint_digest(tmp_path)}) == 3
    assert len(first) == 64


@pytest.mark.parametrize("place", [0, 1024 * 1024 - 1, 70 * 1024 * 1024 - 1])
def test_digest_of_large_weights_looks_at_both_ends(place: int, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    first = checkpoint_digest(tmp_path)
    with weights.open("r+b") as file:
        file.seek(place)
        file.write(b"x")
    assert checkpoint_digest(tmp_path) != first


def test_digest_of_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no checkpoint"):
        checkpoint_digest(tmp_path)


# --- real vLLM ------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_vllm_serves_refuses_a_second_comes_back_and_dies_whole(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with VLLMServer(ServerOptions(DEMO_MODEL, max_model_len=1024, log_file=log)) as server:
        with urlopen(f"{server.url}/v1/models", timeout=10) as reply:  # noqa: S310
            assert [model["id"] for model in json.load(reply)["data"]] == ["checkpoint"]
        port = int(server.url.rpartition(":")[2])
        began = time.monotonic()
        with pytest.raises(ServerError, match=f"port {port}"):
            VLLMServer(ServerOptions(DEMO_MODEL, port=port)).start()
        assert time.monotonic() - began < 5
        lose_its_engine(server)
        processes = tree(server.process.pid)
        assert len(processes) >= 3
        processes[1].kill()
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.wait()
        assert_gone(processes, 0)


def lose_its_engine(server: VLLMServer) -> None:
    """Kill the engine under a client's requests: none is answered wrongly, and all can go on."""
    words = {"temperature": 0.0, "max_tokens": 900, "ignore_eos": True}
    long = ChatRequest([{"role": "user", "content": "Describe the image."}], words)
    short = ChatRequest([{"role": "user", "content": "What color is it?"}], {"max_tokens": 16})
    processes = tree(server.process.pid)
    block = VLLMEndpoint(urls=[server.url], model=server.model_name)
    with ChatClient(block, max_in_flight=4) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.complete, [long] * 8)
        wait_until(lambda: client.stats.in_flight == 4, 60)
        time.sleep(1)
        [engine] = [process for process in processes if "EngineCore" in process.name()]
        engine.kill()
        outcomes = running.result(60)
        assert {getattr(outcome, "kind", None) for outcome in outcomes} == {FailureKind.CONNECTION}
        assert sum(getattr(outcome, "cuts", 0) for outcome in outcomes[:4]) == 4
        Recovery(server, lambda: client.stats.completions).recover()
        assert all(isinstance(outcome, Completion) for outcome in client.complete([short] * 8))
    assert_gone(processes, 0)


@pytest.mark.vllm
def test_vllm_ends_in_good_order_when_the_parent_is_terminated(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with start_parent(real_python(), log) as parent:
        processes = tree(supervisor_of(parent))
        parent.terminate()
        assert_gone(processes, 15)
        assert parent.wait(15) == 128 + signal.SIGTERM
    assert "Application shutdown complete" in log.read_text()


@pytest.mark.vllm
def test_vllm_is_gone_when_the_parent_is_killed_while_it_loads(tmp_path: Path) -> None:
    with start_parent(real_python(), tmp_path / "server.log") as parent:
        # parent, supervisor, API server, resource tracker, engine
        wait_until(lambda: len(tree(parent.pid)) >= 5, 120)
        processes = tree(parent.pid)[1:]
        parent.kill()
        assert_gone(processes, 15)
