"""The process of a `TemporaryServer`: Prefect's API on a socket that it inherits.

`python -m prefect_imageqa.serving.serve_prefect SOCKET PARENT_PID STDERR`
"""

import ctypes
import fcntl
import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main(listener: int, parent: int, stderr: int) -> None:
    """Serve until SIGTERM, or until the parent ends.

    Args:
        listener: file descriptor of a socket that is bound already.
        parent: process id of our parent.
        stderr: file descriptor that is used as stderr once the server is up; until then the parent
            reads why it does not start.
    """
    _end_with(parent)
    gc.disable()  # the modules stay: looking for garbage among them is an eighth of the start
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_HOME, temporary_settings

    from .ephemeral_server import SERVER_DEFAULTS

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # Several servers that bring the schema of one database up to date at once would fail.
            lock = _lock(PREFECT_HOME.value())
            await super().startup(sockets)
            if lock is not None:
                os.close(lock)
            os.dup2(stderr, 1)
            os.dup2(stderr, 2)
            gc.freeze()
            gc.enable()

    gc.freeze()  # `create_app` looks for garbage, too
    with temporary_settings(set_defaults=SERVER_DEFAULTS):
        config = uvicorn.Config(create_app(final=True), log_level="error", lifespan="on")
        Server(config).run([socket.socket(fileno=listener)])


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed; None if it, or its file system, allows none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _end_with(parent: int) -> None:
    """Have this process end when its parent does, even if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
