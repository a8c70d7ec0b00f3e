"""A process tree that this process owns: it has a log file and ends with its owner."""

import atexit
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..errors import ServerError
from .supervisor import KILL_NOW

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_TAIL_BYTES = 64 * 1024
_LINE_CHARACTERS = 300
_CONTROL_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\t]")
_ROUTINE = re.compile(
    r"^(\([^)]*\) )?(INFO\b|DEBUG\b|WARNING\b|\[transformers\]|[IW]\d{4} )"
    r"|Warning: |^\s+warnings\.warn\(|it/s\]$"
)
_WARNING = re.compile(
    r"^(\([^)]*\) )?(WARNING\b|ERROR\b|\[transformers\]|\[?[IWE]\d{4} |\s)|Warning: "
)
"""Lines that tell nothing about how far a start is: warnings and the code they quote."""
_PREFIX = re.compile(
    r"^(\([^)]*pid=\d+\) )?([A-Z]+ \d\d-\d\d [\d:]+ |[A-Z]+: +)?(\[[\w.]+:\d+\]( |$))?"
)
_FRAME = re.compile(r"^(\s|Traceback|$)")


class OwnedProcess:
    """A command and all its descendants, ended together and no later than this process.

    A small supervisor process in between (see `supervisor.py`) ends the tree even if this process
    is killed with SIGKILL.

    Args:
        command: program and arguments.
        environment: the command's complete environment.
        log_file: receives its output; replaced if it exists, its folder is created.
        grace: seconds between SIGTERM and SIGKILL.
        append: add to the log file instead of replacing it.

    Raises:
        ServerError: The log file cannot be written.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_file: Path,
        grace: float = 10.0,
        append: bool = False,
    ) -> None:
        self.log_file = log_file
        self._grace = grace
        self._owner = os.getpid()
        supervisor = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(self._owner), str(grace)]
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            log = log_file.open("ab" if append else "wb")
        except OSError as error:
            raise ServerError(
                f"{log_file}: the server's log cannot be written ({error.strerror}); "
                "choose another log_file"
            ) from error
        with log:
            self._log_start = log.tell()
            self._supervisor = subprocess.Popen(  # noqa: S603
                [*supervisor, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Not signalled by a Ctrl-C in the terminal: we decide when the server ends.
                start_new_session=True,
            )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Process id of the supervisor, an ancestor of the command and all it starts."""
        return self._supervisor.pid

    @property
    def exit_code(self) -> int | None:
        """The command's exit code (128 + signal number for a signal), or None while it runs."""
        return self._supervisor.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait up to `seconds` until the tree has ended; return `exit_code`."""
        try:
            return self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, kill: bool = False) -> None:
        """End the tree and wait until it has ended.

        Args:
            kill: do not wait for a shutdown of its own, because it hangs: SIGKILL for the command
                at once, and for its descendants after two seconds.
        """
        atexit.unregister(self.stop)
        if self._owner != os.getpid():  # a fork of the owner must not end the owner's server
            return
        if self.exit_code is None:
            self._supervisor.send_signal(KILL_NOW if kill else signal.SIGTERM)
            self._supervisor.send_signal(signal.SIGCONT)  # in case it was stopped, too
            # After the grace period, the supervisor needs only seconds to kill; now it is stuck.
            if self.wait(self._grace + 10) is None:
                self._supervisor.kill()
                self._supervisor.wait()

    def last_line(self) -> str:
        """The last line of the log that tells of progress, without its timestamp; "" if none."""
        lines = reversed(_read_tail(self.log_file, self._log_start))
        texts = (_PREFIX.sub("", line).strip() for line in lines if not _WARNING.search(line))
        return next(filter(None, texts), "")

    def log_tail(self, count: int = 15) -> str:
        """The last lines of the log that show why it ended; if there are none, its last lines.

        Routine lines and traceback frames are omitted: three processes each report the same
        failure with a page of them, and the cause would be lost.
        """
        lines = _read_tail(self.log_file, self._log_start)
        messages = [_PREFIX.sub("", line) for line in lines if not _ROUTINE.search(line)]
        errors = list(dict.fromkeys(line for line in messages if not _FRAME.match(line)))
        return "\n".join((errors or lines)[-count:])


def _read_tail(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as log:
            log.seek(max(start, path.stat().st_size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:  # someone has deleted the log; the server still runs
        return []
    # Progress bars overwrite their line with \r; use only the last state.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    clean = [_CONTROL_SEQUENCES.sub("", line)[:_LINE_CHARACTERS].rstrip() for line in lines]
    return [line for line in clean if line]


@contextmanager
def terminate_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit inside the block, so that `with` blocks unwind.

    Only for the main thread of a program: a library must not change signal handlers. Under `nohup`,
    SIGHUP stays ignored.
    """

    def exit_on_signal(signal_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal_number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, exit_on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
