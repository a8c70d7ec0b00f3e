"""Local files that a dataset names: only regular ones are read, and only within a limit."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ..records import Kind, RowError

_PERMANENT_ERRNOS = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EPERM,
}
"""Errors of a local file that a retry cannot fix; others, e.g. of a network disk, are transient."""

_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys")
"""Their files look regular; some have no end, and none is an image."""

_CHUNK_BYTES = 2**20


def stat_local(path: str) -> os.stat_result:
    """Size and times of a file.

    Raises:
        RowError: as for `open_local`.
    """
    try:
        return os.stat(path)  # noqa: PTH116 (building a Path costs more than the call)
    except OSError as error:
        raise _unreadable(path, error) from None


def hash_file(file: io.BufferedReader, max_bytes: int) -> str | None:
    """SHA-256 of a file; None if it goes on after `max_bytes`."""
    digest, left = hashlib.sha256(), max_bytes
    while chunk := file.read(min(_CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            return None
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def open_local(path: str, root: Path | None) -> Iterator[io.BufferedReader]:
    """Open a regular file; a pipe or device in its place must not block or yield endless data.

    Args:
        path: the file.
        root: the only folder that it may be in, after all links, if given.

    Raises:
        RowError: image_missing, image_refused or, if a retry may help, connection.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise RowError(Kind.IMAGE_MISSING, f"{path}: is not a regular file")
            opened = Path(f"/proc/self/fd/{file.fileno()}").readlink()
            if info.st_dev in _pseudo_devices() or str(opened).startswith("/sys/"):
                raise RowError(Kind.IMAGE_REFUSED, f"{path} is a file of the operating system")
            if root is not None and not opened.is_relative_to(root):
                raise RowError(Kind.IMAGE_REFUSED, f"{path} is not inside the image root {root}")
            yield file
    except OSError as error:
        raise _unreadable(path, error) from None


@cache
def _pseudo_devices() -> frozenset[int]:
    """The devices of pseudo file systems, which may be mounted at other paths too."""
    return frozenset(os.stat(path).st_dev for path in _PSEUDO_FILE_SYSTEMS if Path(path).exists())  # noqa: PTH116


def _unreadable(path: str, error: OSError) -> RowError:
    kind = Kind.IMAGE_MISSING if error.errno in _PERMANENT_ERRNOS else Kind.CONNECTION
    return RowError(kind, f"{path}: {error.strerror or error}")
