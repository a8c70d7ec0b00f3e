"""Run a command and ensure that none of its processes outlives the parent.

This file is run by path in its own interpreter, so it uses only the standard library:
`python supervisor.py PARENT_PID GRACE_SECONDS COMMAND...`. A vLLM server is several processes, and
killing the first leaves the others with the model in memory. The supervisor ends the entire tree
when its parent ends (even by SIGKILL), on a stop signal, or when the command ends. On `KILL_NOW` it
gives the command no time to shut down: one that hangs would only waste it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

KILL_NOW = signal.SIGUSR1

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_POLL_SECONDS = 0.5
_LEFTOVER_SECONDS = 2.0  # until SIGKILL of leftover processes: they release shared memory here


def main(parent: int, grace: float, command: list[str]) -> int:
    """Run `command` until it ends, a stop signal arrives or the process `parent` has ended.

    There are `grace` seconds between SIGTERM and SIGKILL.

    Returns:
        The command's exit code as in a shell: 128 + signal number if a signal ended it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Descendants whose parent dies become our children, so that none can escape.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    awaited = _STOP_SIGNALS | {KILL_NOW, signal.SIGCHLD}
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)

    def prepare_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # in case the supervisor itself is killed
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    child = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=prepare_child,
    )
    while child.poll() is None and os.getppid() == parent:
        received = signal.sigtimedwait(awaited, _POLL_SECONDS)
        if received and received.si_signo != signal.SIGCHLD:
            grace = 0.0 if received.si_signo == KILL_NOW else grace
            break
    # The server's first process shuts the others down cleanly, so only it gets the signal at first.
    # A process stopped by SIGSTOP would neither handle it nor obey the first.
    if child.poll() is None:
        child.terminate()
        _signal_descendants(signal.SIGCONT)
        _wait(child, grace)
    _end_descendants()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_descendants() -> None:
    """End all descendants of this process: SIGTERM, two seconds, SIGKILL."""
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    _signal_descendants(signal.SIGTERM)
    _signal_descendants(signal.SIGCONT)
    while _children_left():
        if time.monotonic() > deadline:
            # Repeated, because a process may have started another one in between.
            _signal_descendants(signal.SIGKILL)
        time.sleep(0.05)


def _children_left() -> bool:
    """Reap the children that have ended; return whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _signal_descendants(signal_number: int) -> None:
    for process in descendants(os.getpid()):
        try:
            os.kill(process, signal_number)
        except ProcessLookupError:
            continue


def descendants(root: int) -> list[int]:
    """The process ids of all descendants of a process, parents before their children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent ...; the name may contain anything, even brackets.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it has ended in the meantime
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found[1:]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
