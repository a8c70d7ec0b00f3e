"""Whether a run is alive: its heartbeat, and on this machine its process."""

import hashlib
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

HEARTBEAT_TIMEOUT_SECONDS = 60
"""A run has a heartbeat every 10 s; one that is silent for longer than this was killed or hangs."""

ACTIVE_RUNS: set[str] = set()
"""Ids of the runs in progress in this process; not of one that could not record its end."""


def is_alive(
    run: str, machine: str, process: str, heartbeat: datetime, patience: float = 0.0
) -> bool:
    """Whether a run that has not recorded its end is alive.

    Of other machines only the heartbeat is known. On this machine its process must exist, and may
    be unable to store its heartbeat for a while.

    Args:
        run: its id.
        machine: see `this_process`.
        process: see `this_process`.
        heartbeat: time of its last heartbeat.
        patience: seconds for which it waits for a store that does not answer.
    """
    timeout: float = HEARTBEAT_TIMEOUT_SECONDS
    if machine == _machine():
        if process != _process(process):
            return False
        if process == _process(str(os.getpid())) and run not in ACTIVE_RUNS:
            return False
        timeout += patience
    # A heartbeat from the future is as invalid as an old one.
    return abs((datetime.now(UTC) - heartbeat).total_seconds()) <= timeout


def this_process() -> Mapping[str, str]:
    """Identifies this process: the fields `host`, `machine` and `process` of a `RunRecord`."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": _process(str(os.getpid())),
    }


@cache
def _machine() -> str:
    """Identifies this boot of this machine, and the PID namespace of the container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    try:
        identity = f"{boot.read_text()} {namespace.readlink()}"
    except OSError:
        # Nothing is known about other processes: none may look as if it were on this machine.
        identity = f"{socket.gethostname()} {os.getpid()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _process(name: str) -> str:
    """Identifies the process with a PID by its start time; empty if there is no such process.

    The start time is needed because PIDs are reused.

    Args:
        name: a PID, or what this function returned for it.
    """
    pid = name.partition("-")[0]
    try:
        # Field 22 of proc(5); the second field, in parentheses, may contain anything.
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return f"{pid}-{fields[19]}"
    except (OSError, ValueError, IndexError):
        return ""
