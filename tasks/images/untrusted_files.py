"""Local files that a dataset names: only regular ones are read, and only within a limit."""

import errno
import os

from ..object_store.regular_files import OutsideRootError, SystemFileError, read_regular
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


def stat_local(path: str) -> os.stat_result:
    """Size and times of a file.

    Raises:
        RowError: as for `read_local`.
    """
    try:
        return os.stat(path)  # noqa: PTH116 (building a Path costs more than the call)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_local(path: str, limit: int, root: str | None) -> tuple[bytes | None, os.stat_result]:
    """Read a regular file; a pipe or device in its place must not block or yield endless data.

    Args:
        path: the file.
        limit: bytes; a file of more is not read.
        root: the only folder that it may be in, if given, both after all links.

    Returns:
        The content, None if it has more bytes than the limit; and its state before it was read.

    Raises:
        RowError: image_missing, image_refused or, if a retry may help, connection.
    """
    try:
        return read_regular(path, limit, root)
    except SystemFileError as error:
        raise RowError(Kind.IMAGE_REFUSED, f"{path} {error.strerror}") from None
    except OutsideRootError:
        message = f"{path} is not inside the image root {root}"
        raise RowError(Kind.IMAGE_REFUSED, message) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> RowError:
    kind = Kind.IMAGE_MISSING if error.errno in _PERMANENT_ERRNOS else Kind.CONNECTION
    return RowError(kind, f"{path}: {error.strerror or error}")
