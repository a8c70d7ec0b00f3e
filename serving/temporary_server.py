"""A Prefect server for one run of a command, started before Prefect is imported.

Prefect starts one of its own if none is configured, but only when the flow is called. Started
first, the server comes up while the command imports what it needs and checks its arguments. This
module imports only the standard library.
"""

import atexit
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path

from .errors import ImageQAError
from .printable import printable

STARTUP_SECONDS = 120
"""The first start, on an empty database, takes about 20 seconds: as long as Prefect allows."""

QUIET_SECONDS = 5.0
"""How long the start may take without a word; as a rule it takes less."""

STOP_SECONDS = 5.0
"""How long the server may take to end, as Prefect's own."""

_LOGGER = logging.getLogger("prefect_imageqa.serving")

_HOST = "127.0.0.1"
_PROGRAM = "prefect_imageqa.serving.serve_prefect"

_CHOICE = re.compile(
    r"PREFECT_(API|CLOUD|PROFILE|TEST|UNIT_TEST|SERVER_(API|ALLOW|EPHEMERAL_ENABLED))",
    re.IGNORECASE,
)
"""Settings that may say which server is used, or how it is reached."""

_ERROR = re.compile(r"[\w.]+(Error|Exception): .")
_LOGIN = re.compile(r"[^\s'\"]+@")
_LINE_CHARACTERS = 300

_EPHEMERAL = "PREFECT_SERVER_EPHEMERAL_ENABLED"

_SERVER = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What Prefect sets for a temporary server."""


class TemporaryServer:
    """A Prefect server on this machine that ends with this process, even if it is killed.

    Raises:
        OSError: no port or no process can be had.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        self._is_up = False
        self._owner = os.getpid()
        # Handed over as it is, the port cannot be taken by another process, and requests before
        # the server is up wait in line.
        with socket.create_server((_HOST, 0), backlog=100) as listener:
            self.url = f"http://{_HOST}:{listener.getsockname()[1]}/api"
            arguments = [str(listener.fileno()), str(self._owner), str(os.dup(2))]
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", _PROGRAM, *arguments],
                    env={**os.environ, **_SERVER},
                    pass_fds=(listener.fileno(), int(arguments[2])),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    start_new_session=True,  # Ctrl-C ends the run, which then ends its server
                )
            finally:
                os.close(int(arguments[2]))
        atexit.register(self.stop)

    def wait(self, seconds: int = STARTUP_SECONDS) -> None:
        """Wait until the server answers, for so many seconds.

        Raises:
            ImageQAError: it does not start.
        """
        if self._is_up:
            return
        problem = self._health(QUIET_SECONDS)
        if problem is None:
            _LOGGER.warning("Prefect's temporary server is starting: waiting, up to %d s", seconds)
            problem = self._health(seconds)
        if problem is None:
            problem = f"no answer for {seconds} s"
        if problem:
            self._log.seek(0)
            said = last_error(self._log.read().decode(errors="replace"))
            raise ImageQAError(
                f"Prefect's temporary server does not start ({problem}): {said}: "
                "`prefect server start` shows more; PREFECT_API_URL can name a running server"
            )
        self._is_up = True

    def _health(self, seconds: float) -> str | None:
        """What is wrong with the server, if anything; None if it does not answer in time."""
        import http.client  # not before the server is started

        address = self.url.removeprefix("http://").partition("/")[0]
        connection = http.client.HTTPConnection(address, timeout=seconds)
        try:
            connection.request("GET", "/api/health")
            status = connection.getresponse().status
        except TimeoutError:
            return None
        except (OSError, http.client.HTTPException):
            return f"exit code {self._exit_code()}"
        finally:
            connection.close()
        return "" if status == http.client.OK else f"HTTP {status}"

    def stop(self) -> None:
        """End the server, and wait until it has ended."""
        atexit.unregister(self.stop)
        if self._owner != os.getpid():  # a fork of the owner must not end the owner's server
            return
        self._process.terminate()
        with suppress(KeyboardInterrupt):  # a second Ctrl-C: the server ends without our waiting
            if self._exit_code() is None and self._is_up:
                self._process.kill()
                self._process.wait()
        # One that is still starting may be changing the schema of its database. It ends after that.
        self._log.close()

    def _exit_code(self) -> int | None:
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return None


def last_error(log: str) -> str:
    """What a server says in its log: its last error, or its last line; without secrets."""
    lines = log.splitlines()
    said = [line for line in lines if _ERROR.match(line)] or [*filter(str.strip, lines)]
    # What is before an "@" may be the user and password of a database.
    return printable(_LOGIN.sub("", said[-1]), _LINE_CHARACTERS) if said else "it says nothing"


_started: TemporaryServer | None = None


def start_early() -> None:
    """Start a server if Prefect would: none is configured.

    Everything in this process, and in the processes that it starts, then uses that server.
    """
    global _started
    if "prefect" in sys.modules or may_be_configured():
        return
    try:
        _started = TemporaryServer()
    except OSError:  # Prefect will try it again, and say why it fails
        return
    os.environ["PREFECT_API_URL"] = _started.url
    # The server has no UI: without this, Prefect logs links to it.
    os.environ.setdefault("PREFECT_UI_URL", "")


def is_temporary(url: str | None) -> bool:
    """Whether a Prefect API is that of a temporary server: the one started here, or Prefect's."""
    return not url or (_started is not None and url == _started.url)


def wait_until_up(seconds: int = STARTUP_SECONDS) -> None:
    """Wait until the server that was started early answers; without one, do nothing.

    Raises:
        ImageQAError: it does not start.
    """
    if _started is not None:
        _started.wait(seconds)


def may_be_configured() -> bool:
    """Whether a server may be configured, in the active profile or elsewhere, or none allowed."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
    try:
        profiles = tomllib.loads((home.expanduser() / "profiles.toml").read_text("utf-8"))
        settings = dict(profiles.get("profiles", {}).get(profiles.get("active"), {}))
    except FileNotFoundError:
        settings = {}
    except (OSError, RuntimeError, ValueError, AttributeError, TypeError):
        return True
    if str(settings.get(_EPHEMERAL)).lower() == "true":  # as in the profile that Prefect creates
        del settings[_EPHEMERAL]
    return any(map(_CHOICE.match, (*os.environ, *settings))) or _has_project_settings()


def _has_project_settings() -> bool:
    """Whether a file in the working directory may have settings of Prefect."""
    files = {".env": "prefect_", "prefect.toml": "", "pyproject.toml": "tool.prefect"}
    return any(_mentions(Path(name), word) for name, word in files.items())


def _mentions(file: Path, word: str) -> bool:
    try:
        # Not of a pipe: reading would wait for its writer. Prefect does not read one, either.
        return file.is_file() and word in file.read_text("utf-8").lower()
    except (OSError, ValueError):
        return True
