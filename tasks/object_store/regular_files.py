"""Opens local files that others have named: only regular ones, which have an end."""

import errno
import io
import os
import stat
from functools import cache
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""A pipe or device in the place of a file must not block."""

_PSEUDO_FILE_SYSTEMS = ("/proc", "/sys")
"""Their files look regular; some have no end, and none holds a user's data."""

_CHUNK_BYTES = 2**20

_real_devices: set[int] = set()
"""File systems that are known to be none of those below `_PSEUDO_FILE_SYSTEMS`."""


class SystemFileError(OSError):
    """A file that the operating system makes up."""


class OutsideRootError(OSError):
    """A file that is not in the folder that files may come from."""


def open_regular(path: str, buffer_bytes: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
    """Open a regular file; a pipe or device in its place must not block or yield endless data.

    Raises:
        SystemFileError: it is in a pseudo file system.
        OSError: it is no regular file, or cannot be opened.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        _check_regular(descriptor, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return io.BufferedReader(io.FileIO(descriptor), buffer_bytes)


def read_regular(
    path: str, limit: int, root: str | None = None
) -> tuple[bytes | None, os.stat_result]:
    """Read a regular file.

    Args:
        path: the file.
        limit: bytes; a file of more is not read.
        root: the only folder that it may be in, if given, both after all links.

    Returns:
        The content, None if it has more bytes than the limit; and its state before it was read.

    Raises:
        SystemFileError: it is in a pseudo file system.
        OutsideRootError: it is not in the root.
        OSError: it is no regular file, or cannot be read.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        info = os.fstat(descriptor)
        _check_regular(descriptor, info)
        if root is not None and not is_inside(_opened_path(descriptor), root):
            raise OutsideRootError(errno.EPERM, f"is not inside {root}")
        return _read(descriptor, info.st_size, limit), info
    finally:
        os.close(descriptor)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is in a folder, or is that folder; both absolute and without `..`."""
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _read(descriptor: int, size: int, limit: int) -> bytes | None:
    """The content; None if it has more than `limit` bytes, whatever size was stated."""
    if size > limit:
        return None
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    left = limit - len(data)
    while left >= 0 and (data := os.read(descriptor, min(_CHUNK_BYTES, left + 1))):
        parts.append(data)
        left -= len(data)
    return b"".join(parts) if left >= 0 else None


def _check_regular(descriptor: int, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.ENXIO, "is not a regular file")
    if info.st_dev in _real_devices:
        return
    devices = _pseudo_devices()  # none but on Linux, where alone a descriptor has a path too
    if devices:
        if info.st_dev in devices or is_inside(_opened_path(descriptor), "/sys"):
            raise SystemFileError(errno.EINVAL, "is a file of the operating system")
        _real_devices.add(info.st_dev)


def _opened_path(descriptor: int) -> str:
    """Where an open file is, after all links."""
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (a Path costs more)


@cache
def _pseudo_devices() -> frozenset[int]:
    """The devices of pseudo file systems, which may be mounted at other paths too."""
    return frozenset(os.stat(path).st_dev for path in _PSEUDO_FILE_SYSTEMS if Path(path).exists())  # noqa: PTH116
