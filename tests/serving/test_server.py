"""A server's whole life: found, started, watched, stopped, and never left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from prefect_imageqa.serving import interpreter
from prefect_imageqa.serving.checkpoint import checkpoint_digest
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.interpreter import VLLMPython, find_vllm_python
from prefect_imageqa.serving.launch import (
    ServerOptions,
    local_checkpoint,
    serve_command,
    serve_environment,
)
from prefect_imageqa.serving.server import VLLMServer

DEMO_MODEL = Path(interpreter.__file__).parent / "demo_model" / "checkpoint"

# Plays vLLM: what it does stands in --play. Its child leaves the session and ignores SIGTERM.
STAND_IN = """#!{python}
import http.server, json, signal, subprocess, sys, time
if sys.argv[1] == "-c":
    print(json.dumps([{has_vllm}, True]))
    sys.exit()
play = sys.argv[sys.argv.index("--play") + 1]
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
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

PARENT = """
import sys, time
from pathlib import Path
from prefect_imageqa.serving.launch import ServerOptions
from prefect_imageqa.serving.process import terminate_on_signals
from prefect_imageqa.serving.server import VLLMServer
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
    assert "prefect_imageqa.serving.cpu_env" in str(refusal.value)
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
    monkeypatch.setattr("prefect_imageqa.serving.launch.has_gpu", lambda: True)
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
    monkeypatch.setattr("prefect_imageqa.serving.server._PROGRESS_SECONDS", 1.0)
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


def test_stopped_supervisor_takes_the_server_along(options: Callable[..., ServerOptions]) -> None:
    with VLLMServer(options("serve")) as server:
        supervisor, first, _ = tree(server.process.pid)
        supervisor.kill()
        assert_gone([supervisor, first], 5)


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
def test_vllm_serves_refuses_a_second_and_dies_whole(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with VLLMServer(ServerOptions(DEMO_MODEL, max_model_len=1024, log_file=log)) as server:
        with urlopen(f"{server.url}/v1/models", timeout=10) as reply:  # noqa: S310
            assert [model["id"] for model in json.load(reply)["data"]] == ["checkpoint"]
        port = int(server.url.rpartition(":")[2])
        began = time.monotonic()
        with pytest.raises(ServerError, match=f"port {port}"):
            VLLMServer(ServerOptions(DEMO_MODEL, port=port)).start()
        assert time.monotonic() - began < 5
        processes = tree(server.process.pid)
        assert len(processes) >= 3
        processes[1].kill()
        with pytest.raises(ServerError, match="ended by signal 9"):
            server.wait()
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
