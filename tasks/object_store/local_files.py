"""Atomic writes and listings of local files."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMP_PREFIX = ".writing-"
"""Prefix of files that are still incomplete; a killed process can leave one behind."""


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it replaces `target` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f"{TEMP_PREFIX}{uuid.uuid4().hex}")
    try:
        yield temp
        with temp.open("rb") as file:
            os.fsync(file.fileno())  # or a power failure could leave the new name without its bytes
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)


def file_sizes(folder: str, *, deep: bool) -> dict[str, int]:
    """Paths and sizes of all complete files in a folder; empty if the folder does not exist.

    If `deep`, also of those in its folders.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    sizes = {}
    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            if not name.startswith(TEMP_PREFIX):
                with suppress(FileNotFoundError):  # another run may have just removed it
                    info = Path(parent, name).stat()
                    if stat.S_ISREG(info.st_mode):  # reading a pipe could block forever
                        sizes[f"{parent}/{name}"] = info.st_size
        if not deep:
            break
    return sizes


def remove_file(file: Path, above: Path) -> None:
    """Remove a file, if it is there, and folders around it that are empty then, but not `above`."""
    file.unlink(missing_ok=True)
    with suppress(OSError):
        while (file := file.parent) != above:
            file.rmdir()
