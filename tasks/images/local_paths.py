"""Paths of local image files, as texts: building a `Path` for each row costs more than the rest."""

import os
import re
import stat
from pathlib import Path

from ..records import ImageRef
from .file_digests import file_version

_UNTIDY = re.compile(r"//|/\.|/$|^\./")
"""What `Path` may write in another way."""


def joined(path: str, folder: str) -> str:
    """A path in a folder, without empty parts and `.`."""
    found = path if path.startswith("/") else f"{folder}/{path}"
    return str(Path(found)) if _UNTIDY.search(found) else found


def file_at(path: str) -> ImageRef | None:
    """The file at a path; None if there is none."""
    try:
        info = os.stat(path)  # noqa: PTH116 (building a Path costs more than the call)
    except (OSError, ValueError):
        return None
    return ImageRef(path, version=file_version(info)) if stat.S_ISREG(info.st_mode) else None
