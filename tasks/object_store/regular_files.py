"""Opens local files that others have named: only regular ones, which have an end."""

import errno
import io
import os
import stat
from functools import cache
from pathlib import Path

_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys")
"""Their files look regular; some have no end, and none holds a user's data."""


class SystemFileError(OSError):
    """A file that the operating system makes up."""


def open_regular(path: str, buffer_bytes: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Open a regular file; a pipe or device in its place must not block or yield endless data.

    Raises:
        SystemFileError: it is in a pseudo file system.
        OSError: it is no regular file, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return io.BufferedReader(io.FileIO(descriptor), buffer_bytes)


def _check_regular(descriptor: int) -> None:
    info = os.fstat(descriptor)
    if stat.S_ISDIR(info.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.ENXIO, "is not a regular file")
    devices = _pseudo_devices()  # none but on Linux, where alone a descriptor has a path too
    if devices and (info.st_dev in devices or str(opened_path(descriptor)).startswith("/sys/")):
        raise SystemFileError(errno.EINVAL, "is a file of the operating system")


def opened_path(descriptor: int) -> Path:
    """Where an open file is, after all links."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@cache
def _pseudo_devices() -> frozenset[int]:
    """The devices of pseudo file systems, which may be mounted at other paths too."""
    return frozenset(os.stat(path).st_dev for path in _PSEUDO_FILE_SYSTEMS if Path(path).exists())  # noqa: PTH116
