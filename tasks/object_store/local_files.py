"""Local files that appear whole or not at all."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMP_PREFIX = ".writing-"
"""Names of files that are not whole yet; a killed process can leave one behind."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path to write to; afterwards it replaces `target` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f"{TEMP_PREFIX}{uuid.uuid4().hex}")
    try:
        yield temp
        with temp.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name without its bytes
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)


def sizes_below(folder: str) -> dict[str, int]:
    """Paths and bytes of all whole files below a folder; none where there is no such folder."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    sizes = {}
    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            if not name.startswith(TEMP_PREFIX):
                with suppress(FileNotFoundError):  # another run may have removed it just now
                    info = Path(parent, name).stat()
                    if stat.S_ISREG(info.st_mode):  # to read a pipe could wait for ever
                        sizes[f"{parent}/{name}"] = info.st_size
    return sizes
