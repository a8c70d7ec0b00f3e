"""Engine processes: the workers are processes on the machine of the run."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import Signals

from ...serving.printable import printable
from ...tasks.runs.workers import Workers
from .job import WorkerJob

_MODULE = f"{__package__}.process"
_MAX_LINE = 300
_MAX_LOG_BYTES = 4096


@contextmanager
def open_processes(workers: Workers) -> Iterator["Processes"]:  # noqa: ARG001
    """Open the engine; there is nothing to be opened."""
    yield Processes()


class Processes:
    """Starts workers as processes, which end with this one."""

    def start(self, job: WorkerJob) -> "ProcessWorker":
        """Start a worker."""
        return ProcessWorker(job)


class ProcessWorker:
    """A worker in a process of its own. It ends when the pipe to its input is closed."""

    note = ""

    def __init__(self, job: WorkerJob) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker is freed
        # By its input, and not as an argument: others can read the arguments of a process.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            process_group=0,  # Ctrl-C is for the run, which tells its workers to end
        )
        assert self._process.stdin  # noqa: S101 - a pipe
        with suppress(BrokenPipeError):  # why it has ended, its log tells
            self._process.stdin.write(job.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def ended(self) -> str | None:
        """Why it has ended; None while it works."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"its process was ended by {Signals(-code).name}"
        return self._last_line() if code else "it has ended"

    def stop(self) -> None:
        """Kill its process."""
        self._process.kill()
        self._process.wait()

    def _last_line(self) -> str:
        self._log.seek(max(self._log.seek(0, 2) - _MAX_LOG_BYTES, 0))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1], _MAX_LINE) if lines else "its process has failed"
