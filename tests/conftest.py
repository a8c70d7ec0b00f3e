"""What the tests of several rooms share."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from fault_proxy import FaultProxy
from prefect.testing.utilities import prefect_test_harness
from servers import StubServer

if TYPE_CHECKING:
    from prefect_imageqa.tasks.runs.run_record import RunRecord

os.environ.update(PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1")

BUCKET = "imageqa-tests"

# A shell that starts pytest with `&` has it ignore Ctrl-C, and programs under test inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server died"
        try:
            urlopen(url, timeout=1)  # noqa: S310
        except HTTPError:
            return  # it answers; that it wants a key is as it should be
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not start")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server with one bucket; gives the bucket's URI and sets the AWS environment."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / BUCKET).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone is missing; install the dev extra"
    command = [rclone, "serve", "s3", "--config", "", "--addr", address]
    server = subprocess.Popen(
        [*command, "--auth-key", "test-key,test-secret", str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_up(server, f"http://{address}")
        with pytest.MonkeyPatch.context() as environment:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
                environment.delenv(name, raising=False)
            environment.setenv("AWS_ACCESS_KEY_ID", "test-key")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
            environment.setenv("AWS_ENDPOINT_URL", f"http://{address}")
            yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture
def s3_proxy(s3: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, without rules as yet; for `ObjectStore(endpoint_url=...)`."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname
    assert server.port
    with FaultProxy(server.hostname, server.port) as proxy:
        yield proxy


StartStub = Callable[..., StubServer]


@pytest.fixture(scope="session")
def start_stub() -> Iterator[StartStub]:
    """Starts stubs of vLLM: `start_stub(latency=0.0, slots=256, api_key="", model="stub")`.

    Further flags of the stub come first: `start_stub("--respawn=0.5", "--poison=MARK")`.
    """
    with ExitStack() as running:

        def start(
            *flags: str,
            latency: float = 0.0,
            slots: int = 256,
            api_key: str = "",
            model: str = "stub",
        ) -> StubServer:
            options = [f"--latency={latency}", f"--slots={slots}", f"--model={model}"]
            return running.enter_context(StubServer(*options, *flags, api_key=api_key))

        yield start


@pytest.fixture(scope="session")
def stub(start_stub: StartStub) -> StubServer:
    """A stub of vLLM that answers at once."""
    return start_stub()


@pytest.fixture(scope="session")
def keyed_stub(start_stub: StartStub) -> StubServer:
    """A stub of vLLM that wants an API key."""
    return start_stub(api_key="stub-api-key-5f2c")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with an empty database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def temporary_servers() -> Callable[[int], set[int]]:
    """Finds the temporary Prefect servers that a process has started and that still run."""

    def find(owner: int) -> set[int]:
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if b"prefect_imageqa.serving.serve_prefect" in words and b"%d" % owner in words:
                found.add(int(folder.name))
        return found

    return find


@pytest.fixture(scope="session")
def record_of() -> "Callable[..., RunRecord]":
    """Makes the record of a run on another machine: `record_of(state="running", ago=5)`.

    Its last heartbeat was `ago` seconds ago. `parameters` overrides its parameters, other names
    override its fields.
    """
    from prefect_imageqa.tasks.loading.columns import Columns
    from prefect_imageqa.tasks.runs.exports import Exports
    from prefect_imageqa.tasks.runs.parameters import (
        Asking,
        Caching,
        Images,
        Limits,
        Parsing,
        RunParameters,
        Sampling,
    )
    from prefect_imageqa.tasks.runs.run_record import RunRecord

    def make(
        ago: float = 300, parameters: dict[str, Any] | None = None, **changed: Any
    ) -> "RunRecord":
        then = datetime.now(UTC) - timedelta(seconds=ago)
        defaults: dict[str, Any] = {
            "dataset": "/data/d.json",
            "style": "chat",
            "pairs_per_image": None,
            "max_rows": None,
            "system_prompt": "",
            "user_prompt": "",
            "model": None,
            "model_revision": "",
            "asking": Asking(),
            "sampling": Sampling(),
            "limits": Limits(),
            "columns": Columns(),
            "parsing": Parsing(),
            "caching": Caching(),
            "images": Images(),
            "exports": Exports(),
        }
        fields: dict[str, Any] = {
            "run": "0197-run",
            "state": "completed",
            "dataset": "d.json",
            "model": "m",
            "model_revision": "",
            "user_prompt": "Please.",
            "parser": "qa_pairs-v1",
            "configuration": "c",
            "keys": "pairs/keys/c/d",
            "host": "elsewhere",
            "machine": "0" * 16,
            "process": "7-7",
            "queued": then,
            "started": then,
            "updated": then,
            "versions": {},
            "parameters": RunParameters(**defaults | (parameters or {})),
        }
        return RunRecord.model_validate(fields | changed)

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests on a real vLLM: they take longest."""
    items.sort(key=lambda item: "vllm" not in item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one worker, and all tests on a real vLLM to the same one.

    So the fixtures of a file are made once, and only one vLLM server runs at a time.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "vllm" if "vllm" in nodeid else str(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Scheduling(config, log)
