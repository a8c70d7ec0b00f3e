"""Run a command and measure all the processes that it starts: CPU, memory, time on the wall.

`measure` starts this module as a process, to which also the processes return that a command leaves
behind: what they used counts, and none of them outlives the measurement.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.25
"""Between two looks at the memory of the tree."""
LEFT_SECONDS = 60
"""How long processes may outlive the command; then the measurement fails."""


@dataclass(frozen=True)
class Measured:
    """What a command used.

    Attributes:
        wall: seconds from its start until it ended.
        cpu: seconds of CPU, user and system, of all its processes.
        peak_mib: most memory (VmHWM) of its largest process.
        tree_mib: most memory of all its processes together, sampled; 0 if not asked for.
        stdout: what it wrote.
    """

    wall: float
    cpu: float
    peak_mib: float
    tree_mib: float
    stdout: str


def measure(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    tree: bool = False,
    cores: int = 0,
) -> Measured:
    """Run a command.

    Args:
        command: what to run.
        environment: all its variables.
        log: file for its stderr.
        tree: also sample the memory of all its processes.
        cores: give it only so many cores; 0 for all.

    Raises:
        RuntimeError: it failed.
    """
    task = json.dumps({"command": list(command), "tree": tree, "cores": cores})
    with log.open("w") as stderr:
        done = subprocess.run(
            [sys.executable, __file__, task],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Measured(**json.loads(done.stdout))


class _TreeMemory(threading.Thread):
    """Samples the memory of all processes under this one; `most` is in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._ended.wait(SAMPLE_SECONDS):
            used = 0
            for process in me.children(recursive=True):
                try:
                    used += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, used / 2**20)

    def end(self) -> None:
        self._ended.set()
        self.join()


def main() -> None:
    """Run the command in the first argument, and print what it used as JSON."""
    task = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    if task["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["cores"]])
    memory = _TreeMemory()
    if task["tree"]:
        memory.start()
    started = time.perf_counter()
    done = subprocess.run(task["command"], stdout=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - started
    if task["tree"]:
        memory.end()
    if done.returncode:
        sys.exit(done.returncode)
    signal.alarm(LEFT_SECONDS)
    try:
        while True:
            os.wait()  # for those that it has left behind
    except ChildProcessError:
        pass
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(json.dumps(asdict(Measured(wall, cpu, peak, memory.most, done.stdout))))


if __name__ == "__main__":
    main()
