"""An engine in a process of its own, so that whatever happens there does not end the run.

Ray ends the process that is connected to a cluster when the cluster is lost, waits for some
addresses without end, and replaces signal handlers; Dask imports the caller's script again in
each of its processes. The two processes talk through files in a folder that only they can read.
"""

import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import orjson

from ...serving.printable import printable
from ...serving.server.process import OwnedProcess
from ...tasks.errors import ImageQAError
from ...tasks.runs.workers import Workers
from .job import WorkerJob

SETTINGS, STATES, FAILURE = "workers.json", "states.json", "failure"
"""Files: what the engine is to do, note and end of each worker, and why the engine has failed."""
JOBS, STOPS = ".job", ".stop"
"""Endings of files, each named for a worker: it is to be started, or to be ended."""

POLL_SECONDS = 0.2
OPEN_SECONDS = 90.0
"""How long a cluster may take to start or to answer. On a busy machine, Ray needs 30 s."""

_MODULE = f"{__package__}.engine_host"
_MAX_LINE = 300
_LOG_PREFIX = re.compile(r"^\[[^\]]*\] [\w.]+:\d+: ")  # Ray's: time, process, file and line


_PACKAGES = {"ray": "ray", "dask": "distributed"}


@contextmanager
def host_engine(workers: Workers) -> Iterator["HostedEngine"]:
    """Run engine ray or dask in a process of its own; does not wait until it is open.

    That process and all that it has started end with the block, and no later than this process.

    Raises:
        ImageQAError: its package is not installed.
    """
    package = _PACKAGES[workers.engine]
    if find_spec(package) is None:
        raise ImageQAError(
            f"{package} is not installed: pip install 'prefect-imageqa[{workers.engine}]'"
        )
    with tempfile.TemporaryDirectory(prefix="imageqa-", ignore_cleanup_errors=True) as folder:
        engine = HostedEngine(workers, Path(folder))
        try:
            yield engine
        finally:
            engine.close()


class HostedEngine:
    """Starts workers through an engine in another process.

    Args:
        workers: what the run is told.
        folder: an empty folder for the messages.
    """

    def __init__(self, workers: Workers, folder: Path) -> None:
        name, address = workers.engine.capitalize(), printable(workers.engine_address or "")
        self.cluster = f"the {name} cluster at {address}" if address else f"a local {name} cluster"
        self._is_local = not address
        self._folder = folder
        (folder / SETTINGS).write_text(workers.model_dump_json())
        command = [sys.executable, "-m", _MODULE, str(folder)]
        self._process = OwnedProcess(command, _environment(workers), folder / "log")
        self._opened = time.monotonic()
        self._read = float("-inf")
        self._failure = ""
        self._states: dict[str, tuple[str, str | None]] | None = None

    def start(self, job: WorkerJob) -> "HostedWorker":
        """Start a worker as soon as the engine is open.

        Raises:
            ImageQAError: the engine has failed.
        """
        self.states()
        self._write(f"{job.worker}{JOBS}", job.model_dump_json())
        return HostedWorker(self, job.worker)

    def stop(self, worker: str) -> None:
        """End a worker now."""
        self._write(f"{worker}{STOPS}", "")

    def close(self) -> None:
        """End the process and all that it has started: a local cluster needs no farewell."""
        self._process.stop(kill=self._is_local)

    def states(self) -> dict[str, tuple[str, str | None]] | None:
        """Note and end of each worker; None while the engine is not open yet.

        Raises:
            ImageQAError: the engine could not be opened, or has failed since.
        """
        if not self._failure and time.monotonic() - self._read > POLL_SECONDS:
            self._look()
        if self._failure:
            raise ImageQAError(self._failure)
        return self._states

    def _look(self) -> None:
        self._read = time.monotonic()
        has_ended = self._process.exit_code is not None
        if (path := self._folder / STATES).exists():
            self._states = orjson.loads(path.read_bytes())
        elif self._read - self._opened > OPEN_SECONDS and not has_ended:
            self._failure = f"{self.cluster} did not answer within {OPEN_SECONDS:.0f} s"
            self._process.stop(kill=True)
        if has_ended:
            self._failure = self._last_words()

    def _last_words(self) -> str:
        if (path := self._folder / FAILURE).exists():
            return path.read_text()
        last = _LOG_PREFIX.sub("", printable(self._process.log_tail(1), _MAX_LINE))
        return f"the connection to {self.cluster} was lost: {last or 'its process was killed'}"

    def _write(self, name: str, text: str) -> None:
        """Write a file that appears whole."""
        written = self._folder / f"{name}.new"
        written.write_text(text)
        written.replace(self._folder / name)


def _environment(workers: Workers) -> dict[str, str]:
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    if workers.engine == "ray" and not workers.engine_address:
        # Without a token, who reaches a port of a local Ray cluster could run code in it; without
        # ours, Ray would save one in the home folder.
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # or under uv it would copy the folder
    return environment


class HostedWorker:
    """A worker that was started through another process."""

    def __init__(self, engine: HostedEngine, name: str) -> None:
        self._engine = engine
        self._name = name

    @property
    def note(self) -> str:
        """What it waits for before it works."""
        states = self._engine.states()
        if states is None:
            return f"waits for {self._engine.cluster}"
        return states.get(self._name, ("", None))[0]

    @property
    def ended(self) -> str | None:
        """Why it has ended; None while it works or may still start.

        Raises:
            ImageQAError: the engine has failed.
        """
        return (self._engine.states() or {}).get(self._name, ("", None))[1]

    def stop(self) -> None:
        """End it now."""
        self._engine.stop(self._name)
