"""Servers that the benchmarks start: the stub of vLLM, an S3 server and Prefect's server.

with StubServer("--latency=1") as stub, S3Server(folder) as s3:
use(stub.url, s3.environment)
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

START_SECONDS = 90
"""Prefect's server takes 10 to 20 s to create its database, more on a busy machine."""
STOP_SECONDS = 10

QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
"""No telemetry."""

_BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port of the loopback address on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process, which can be killed and started again on the same port.

    Attributes:
        port: where it listens.
        url: the same, as a URL.
        environment: variables that make a client use it.
        process: the running process.
    """

    _stderr: int | None = subprocess.DEVNULL

    def __init__(
        self, *command: str, port: int, path: str = "", variables: Mapping[str, str] | None = None
    ) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.environment: dict[str, str] = {}
        self._command, self._path, self._variables = command, path, variables or {}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            self._command,
            env=os.environ | self._variables,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"did not start: {' '.join(self._command)}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.url}{self._path}", timeout=1).close()  # noqa: S310 - loopback
        except HTTPError:
            return True  # an S3 server rejects requests without a key
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


class StubServer(Server):
    """The stub of vLLM, started with these flags; by default 50 ms latency and 256 slots."""

    model = "stub"
    _stderr = None  # it writes only tracebacks

    def __init__(self, *flags: str, api_key: str = "") -> None:
        port = free_port()
        command = [sys.executable, str(Path(__file__).with_name("stub_server.py"))]
        command += [f"--port={port}", f"--api-key={api_key}", *flags]
        super().__init__(*command, port=port, path="/health")
        self.api_key = api_key
        self._earlier = 0, 0

    def stats(self) -> dict[str, Any]:
        """Counts of requests and replies since it was started, and the last requests."""
        with urlopen(f"{self.url}/stats", timeout=30) as response:  # noqa: S310 - loopback
            stats: dict[str, Any] = json.load(response)
        return stats

    def freeze(self) -> None:
        """Let it accept completions, but answer none until `thaw`."""
        os.kill(self.stats()["pid"], signal.SIGUSR1)  # not to its supervisor, if it has one

    def thaw(self) -> None:
        """Let it answer all that it has accepted."""
        os.kill(self.stats()["pid"], signal.SIGUSR2)

    def counts(self) -> tuple[int, int]:
        """How many completions it was asked for, and how many it gave, in all its lives."""
        requests, answered = self._earlier
        if self.process.poll() is None:
            stats = self.stats()
            requests += stats["requests"]
            answered += stats["replies"].get("200", 0)
        return requests, answered

    def kill(self) -> None:
        """End it at once; its counts are kept."""
        if self._answers():
            self._earlier = self.counts()
        super().kill()


class S3Server(Server):
    """An S3 server (rclone) with one bucket, whose objects are the files in a folder.

    Attributes:
        uri: of the bucket.
        bucket: the folder with its objects.
    """

    uri = "s3://benchmark"

    def __init__(self, folder: Path) -> None:
        self.bucket = folder / "benchmark"
        self.bucket.mkdir(parents=True, exist_ok=True)
        port = free_port()
        rclone = shutil.which("rclone", path=f"{_BIN}:{os.environ['PATH']}")
        assert rclone, "rclone is missing; install the dev extra"
        command = [rclone, "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}"]
        super().__init__(*command, "--auth-key", "key,secret", str(folder), port=port)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": self.url,
        }


class PrefectServer(Server):
    """A Prefect server with a database of its own, in `home`."""

    def __init__(self, home: Path) -> None:
        port = free_port()
        variables = QUIET | {"PREFECT_HOME": str(home)}
        command = [str(_BIN / "prefect"), "server", "start", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--no-ui", "--no-scheduler", "--no-late-runs"]
        super().__init__(*command, port=port, path="/api/health", variables=variables)
        self.environment = variables | {"PREFECT_API_URL": f"{self.url}/api"}
