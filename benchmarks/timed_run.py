"""A `prefect-imageqa run` as a process, with the time of every line on stderr."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))

PROBLEM = re.compile(
    r"\| (WARNING|ERROR|CRITICAL) |wait|not answer|no longer|unreachable|unavailable|refused"
    r"|timed? ?out|stall|freez|froze|too many|HTTP [45]\d\d|crash|\bdown\b|\blost\b|\bslow"
    r"|disconnect|\berrors?\b|\bretr|\blimits?\b|prefect-imageqa: ",
    re.IGNORECASE,
)
"""Words of a line that names a problem; a run without faults writes none of them."""


@dataclass(frozen=True)
class Line:
    """A line on stderr, and the seconds since the run was started."""

    seconds: float
    text: str


class TimedRun:
    """A run in progress.

    Attributes:
        lines: what it has written to stderr so far.
        seconds: how long it took; set when it has ended.
        exit_code: None if it had to be killed.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.lines: list[Line] = []
        self.seconds = 0.0
        self.exit_code: int | None = None
        self._log, self._stdout = log, log.with_suffix(".json")
        self._started = time.monotonic()
        with self._stdout.open("w") as stdout:
            self._process = subprocess.Popen(
                [COMMAND, "run", *arguments, "--json"],
                env=os.environ | environment,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr
        with self._log.open("w", buffering=1) as log:
            for text in self._process.stderr:
                line = Line(self.now, text.rstrip())
                self.lines.append(line)
                log.write(f"{line.seconds:8.2f}  {line.text}\n")

    @property
    def now(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait(self, limit: float) -> dict[str, Any] | None:
        """Wait until it ends, or kill it `limit` seconds after its start.

        Returns:
            Its summary; None if it failed or was killed.
        """
        try:
            self.exit_code = self._process.wait(max(0.0, limit - self.now))
        except subprocess.TimeoutExpired:
            self.kill()
        self.seconds = self.now
        self._reader.join()
        stdout = self._stdout.read_text().splitlines()
        summary: dict[str, Any] | None = json.loads(stdout[-1]) if stdout else None
        return summary

    def kill(self) -> None:
        """End it at once; nothing happens if it has ended."""
        self._process.kill()
        self._process.wait()

    def first_problem(self, since: float) -> Line | None:
        """The first line that names a problem, at or after that second."""
        problems = (line for line in self.lines if PROBLEM.search(line.text))
        return next((line for line in problems if line.seconds >= since), None)


def stored_counts(output: Path) -> tuple[int, int]:
    """How many rows an output holds answered and quarantined, whatever became of its run."""
    done = subprocess.run(
        [COMMAND, "status", str(output), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return 0, 0  # there is no output
    stored = json.loads(done.stdout).get("stored", {}).values()
    answered = sum(parts["answered"] for parts in stored)
    return answered, sum(sum(parts["quarantined"].values()) for parts in stored)
