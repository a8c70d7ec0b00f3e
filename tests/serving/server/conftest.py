"""A stand-in for an interpreter with vLLM, and what the tests ask about the server's processes."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from prefect_imageqa.serving import demo_model
from prefect_imageqa.serving.server import recovery as recovery_module
from prefect_imageqa.serving.server import server as server_module
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.process import OwnedProcess

DEMO_MODEL = Path(demo_model.__file__).parent / "checkpoint"

# Replaces vLLM. --mode is the behaviour, or a file that contains it. The child has its own session,
# like vLLM's engine, and with --stubborn it ignores SIGTERM; with --hung, so does its parent.
STAND_IN = """#!{python} -IS
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps([{has_vllm}, True]))
    sys.exit()
import http.server, os, signal, subprocess, time
option = sys.argv[sys.argv.index("--mode") + 1]
read_mode = lambda: open(option).read() if os.path.exists(option) else option
mode = read_mode()
ignore = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(
    ["sleep", "600"],
    start_new_session=True,
    preexec_fn=ignore if "--stubborn" in sys.argv else None,
)
if "--hung" in sys.argv:
    ignore()
print("(APIServer pid=7) INFO 11-23 20:51:51 [model.py:1] Loading the weights", flush=True)
for warning in (
    "(APIServer pid=7) WARNING 11-23 20:51:51 [cpu.py:224] Triton is not installed.",
    "[transformers] Model config: pad_token_id must be `None` or an integer.",
    "W1127 07:11:49.874000 20265 torch/_library/triton.py:53] Triton not available",
    "[W1127 07:11:51.956058658 utils.cpp:68] Warning: NUMA binding: Using MEMBIND",
    "/a/dispatcher.py:138: FutureWarning: `torch.distributed.reduce_op` is deprecated",
    "  lookup(value)",
    "(APIServer pid=7) INFO 11-23 20:51:51 [api_utils.py:347]",
):
    print(warning, flush=True)
if mode == "die":
    error = "(EngineCore pid=8) ERROR 11-23 20:51:51 [core.py:1] "
    for line in ("Traceback (most recent call last):", "  File x, line 1", "    load()"):
        print(error + line)
    print(error + "\\x1b[31mRuntimeError: the weights are\\x1b[0m torn", flush=True)
    sys.exit(3)
if mode == "hang":
    time.sleep(600)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if read_mode() == "unhealthy" else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, has_vllm=True))
    path.chmod(0o755)
    return path


@pytest.fixture
def options(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ServerOptions]:
    monkeypatch.setattr(server_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(recovery_module, "_POLL_SECONDS", 0.05)

    def make(mode: str, *extra_args: str, startup_timeout: float = 120) -> ServerOptions:
        return ServerOptions(
            DEMO_MODEL,
            python=stand_in,
            extra_args=("--mode", mode, *extra_args),
            startup_timeout=startup_timeout,
            log_file=tmp_path / "logs" / "server.log",
        )

    return make


@pytest.fixture
def graceful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has a minute to shut down: longer than any test waits for one that it kills."""
    process = partial(OwnedProcess, grace=60.0)
    monkeypatch.setattr(server_module, "OwnedProcess", process)


@pytest.fixture
def mode(tmp_path: Path) -> Path:
    """The file that controls the stand-in; at first it serves."""
    path = tmp_path / "mode"
    path.write_text("serve")
    return path
