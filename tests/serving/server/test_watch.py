"""A server that is kept running: restarted when it dies or hangs, left alone when it is busy."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NoReturn
from urllib.request import Request, urlopen

import psutil
import pytest
from prefect_imageqa.flows.cli.main import main
from prefect_imageqa.serving import demo_model
from prefect_imageqa.serving.errors import ServerError
from prefect_imageqa.serving.server import probe as probe_module
from prefect_imageqa.serving.server import recovery as recovery_module
from prefect_imageqa.serving.server import watch as watch_module
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.serving.server.watch import keep_running

DEMO_MODEL = Path(demo_model.__file__).parent / "checkpoint"
STUB = Path(__file__).resolve().parents[3] / "benchmarks" / "stub_server.py"
COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))

# Acts as an interpreter with vLLM, and serves the stub. With --spin, a child computes all the time.
# While there is a file of its name with the suffix .broken, it dies.
FAKE_PYTHON = f"""#!{sys.executable} -IS
import json, os, subprocess, sys
if sys.argv[1] == "-c":
    print(json.dumps([True, True]))
    sys.exit()
if os.path.exists(__file__ + ".broken"):
    sys.exit("RuntimeError: the weights are torn")
if "--spin" in sys.argv:
    subprocess.Popen([sys.executable, "-ISc", "while True: pass"])
del os.environ["PYTHONSAFEPATH"]  # the stub imports its neighbours
value = lambda name: sys.argv[sys.argv.index(name) + 1]
os.execv({sys.executable!r}, [
    {sys.executable!r}, {str(STUB)!r}, "--latency=0", "--port", value("--port"),
    "--model", value("--served-model-name"), *(["--metrics"] * ("--metrics" in sys.argv)),
])
"""

Watch = Callable[..., VLLMServer]

WAITS = {
    (watch_module, "_QUIET_SECONDS"): 0.6,
    (watch_module, "_TEST_SECONDS"): 1.0,
}
"""Until when a server hangs, with short times in seconds."""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return path


@pytest.fixture
def watch(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Watch]:
    """Starts a stub that is kept running until the test ends.

    It is waited for so long that it never looks as if it hung, only because the machine is busy.
    """
    caplog.set_level("INFO", "prefect_imageqa.serving")
    monkeypatch.setattr(watch_module, "_POLL_SECONDS", 0.1)
    for module, name in WAITS:
        monkeypatch.setattr(module, name, 60.0)
    monkeypatch.setattr(probe_module, "_SECONDS", 0.3)
    monkeypatch.setattr(probe_module, "_METRICS_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:

        def start(*flags: str, stall_timeout: float = 60) -> VLLMServer:
            options = ServerOptions(
                DEMO_MODEL, python=python, log_file=tmp_path / "log", extra_args=flags
            )
            server = stack.enter_context(VLLMServer(options))
            watching.append(pool.submit(keep_running, server, stall_timeout))
            return server

        watching: list[Future[NoReturn]] = []
        yield start
        stack.close()
        for ended in watching:
            with pytest.raises(ServerError, match="was stopped"):
                ended.result(60)


@contextmanager
def impatience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Meanwhile, a server that hangs is found out within seconds."""
    with monkeypatch.context() as patch:
        for (module, name), seconds in WAITS.items():
            patch.setattr(module, name, seconds)
        yield


def stub(server: VLLMServer) -> psutil.Process:
    return psutil.Process(server.process.pid).children()[0]


def ask(url: str, text: str = "Hello", seconds: float = 60) -> str:
    body = {"model": "checkpoint", "messages": [{"role": "user", "content": text}]}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode())  # noqa: S310
    with urlopen(request, timeout=seconds) as reply:  # noqa: S310
        return str(json.load(reply)["choices"][0]["message"]["content"])


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("signal_number", [signal.SIGUSR1, signal.SIGSTOP], ids=["engine", "all"])
def test_a_server_that_hangs_while_idle_is_restarted(
    signal_number: signal.Signals,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = watch("--metrics")
    hanging = stub(server)
    hanging.send_signal(signal_number)
    with impatience(monkeypatch):
        assert hanging.wait(60) is None
    assert re.fullmatch(
        "restart 1: the vLLM server for checkpoint is stalled: "
        r"no token for \d+ s, nor a reply to a test request",
        warnings(caplog)[0],
    )
    wait_until(server.probe.is_healthy)
    assert ask(server.url)
    assert len(warnings(caplog)) == 1


def test_a_server_that_hangs_on_a_request_is_restarted(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = watch("--metrics")
    hanging = stub(server)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.url, "STUB slow 60")
        wait_until(lambda: (counters := server.probe.counters()) and counters.running == 1)
        hanging.send_signal(signal.SIGUSR1)
        with impatience(monkeypatch), pytest.raises(OSError, match=r"closed|reset"):
            asked.result(60)
    hanging.wait(60)


def test_a_server_that_died_is_restarted(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    server = watch()
    stub(server).kill()
    wait_until(lambda: warnings(caplog) and server.probe.is_healthy())
    [warning] = warnings(caplog)
    assert warning.startswith("restart 1: the vLLM server for checkpoint was ended by signal 9")
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("flags", "text"),
    [(["--metrics"], "STUB slow 1.5"), (["--metrics"], ""), ([], "STUB slow 1.5")],
    ids=["busy", "idle", "without counters"],
)
def test_a_server_that_works_is_left_alone(
    flags: list[str],
    text: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "_QUIET_SECONDS", 0.6)
    monkeypatch.setattr(probe_module, "_SECONDS", 60.0)
    monkeypatch.setattr(probe_module, "_METRICS_SECONDS", 60.0)
    server = watch(*flags)
    working = stub(server)
    began = time.monotonic()
    if text:
        assert ask(server.url, text)
    time.sleep(max(0, began + 1.5 - time.monotonic()))
    assert working == stub(server)
    assert not warnings(caplog)


def test_a_server_that_computes_gets_more_time(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = watch("--metrics", "--spin", stall_timeout=600)
    hanging = stub(server)
    hanging.send_signal(signal.SIGUSR1)
    with impatience(monkeypatch):
        wait_until(lambda: len(warnings(caplog)) >= 2)
    computes = "vLLM computes, but gives no token"
    assert all(message.startswith(computes) for message in warnings(caplog))
    assert hanging == stub(server)


def test_a_server_that_computes_for_too_long_is_restarted(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = watch("--metrics", "--spin", stall_timeout=1)
    hanging = stub(server)
    hanging.send_signal(signal.SIGUSR1)
    with impatience(monkeypatch):
        hanging.wait(60)
    seconds = re.search(r"checkpoint is stalled: no token for (\d+) s", warnings(caplog)[-1])
    assert seconds
    assert int(seconds[1]) >= 1


# --- the command ----------------------------------------------------------------------------------


@contextmanager
def serve(python: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command; gives its process and the server's URL."""
    port = free_port()
    with subprocess.Popen(
        [COMMAND, "serve", DEMO_MODEL, f"--python={python}", f"--port={port}", "--", "--metrics"],
        env={**os.environ, "XDG_STATE_HOME": str(python.parent / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert f"at http://127.0.0.1:{port};" in process.stdout.readline()
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_the_command_restarts_and_is_stopped_even_while_it_waits(python: Path) -> None:
    with serve(python) as (process, url):
        assert process.stderr
        children = psutil.Process(process.pid).children
        for attempt in (1, 2):
            [supervisor] = children()
            supervisor.children()[0].kill()
            read_until(f"restart {attempt}", process.stderr)
            if attempt == 1:
                read_until("vLLM serves checkpoint", process.stderr)
                assert ask(url)
                (python.parent / "python.broken").touch()
        read_until("restart 3 in", process.stderr)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert "Traceback" not in process.stderr.read()


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
def test_the_command_gives_up_with_the_reason(
    python: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_the_server(_: object) -> str:
        (python.parent / "python.broken").touch()
        return "stalled"

    monkeypatch.setattr(recovery_module, "MAX_RESTARTS_WITHOUT_PROGRESS", 2)
    monkeypatch.setattr(recovery_module, "_FIRST_DELAY", 0.0)
    monkeypatch.setattr(watch_module._Watch, "wait_for_trouble", break_the_server)
    monkeypatch.setenv("XDG_STATE_HOME", str(python.parent / "state"))
    arguments = ["serve", str(DEMO_MODEL), f"--python={python}", f"--port={free_port()}"]
    monkeypatch.setattr("sys.argv", [COMMAND, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = capfd.readouterr().err
    assert "prefect-imageqa: gave up after 2 restarts without a completion: the vLLM" in error
    assert error.rstrip().endswith("RuntimeError: the weights are torn")


def read_until(text: str, lines: IO[str]) -> None:
    for line in lines:
        if text in line:
            return
    raise AssertionError(f"{text} was not printed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
