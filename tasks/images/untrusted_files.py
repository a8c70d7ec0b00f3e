"""Local files that a dataset names: only regular ones are read, and only within a limit."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..object_store.regular_files import SystemFileError, open_regular, opened_path
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
        with open_regular(path) as file:
            if root is not None and not opened_path(file.fileno()).is_relative_to(root):
                raise RowError(Kind.IMAGE_REFUSED, f"{path} is not inside the image root {root}")
            yield file
    except SystemFileError as error:
        raise RowError(Kind.IMAGE_REFUSED, f"{path} {error.strerror}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> RowError:
    kind = Kind.IMAGE_MISSING if error.errno in _PERMANENT_ERRNOS else Kind.CONNECTION
    return RowError(kind, f"{path}: {error.strerror or error}")
