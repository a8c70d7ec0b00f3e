"""A folder of OpenAI batch files: requests that a server answers offline."""

from collections.abc import Iterator
from pathlib import Path

import orjson

from ..errors import StoreError
from ..object_store.local_files import TEMP_PREFIX, atomic_write

MAX_ROWS = 50_000
MAX_BYTES = 200_000_000
"""Limits of the format for one file."""

DEFAULT_ROWS = 10_000
"""vLLM reads a file whole, and writes its results when all of them are there."""

_MARKER = "batch.json"
"""Says that the folder is ours: only then are its files replaced."""

_KIND = "prefect-imageqa batch requests"

_FILES = "requests-*.jsonl"


def write_request_files(folder: Path, lines: Iterator[bytes], max_rows: int) -> dict[str, int]:
    """Write the lines to `requests-00001.jsonl` and so on, in place of those of an earlier export.

    Args:
        folder: created if missing.
        lines: consumed one by one.
        max_rows: most lines of a file; it has fewer if it would get larger than `MAX_BYTES`.

    Returns:
        The number of lines of each file.

    Raises:
        StoreError: the folder has other files, or cannot be written.
    """
    check_request_folder(folder)
    files: dict[str, int] = {}
    try:
        _mark(folder, files, complete=False)
        for old in (*folder.glob(_FILES), *folder.glob(f"{TEMP_PREFIX}*")):
            old.unlink()
        line = next(lines, None)
        while line is not None:
            name, rows, size = f"requests-{len(files) + 1:05}.jsonl", 0, 0
            with atomic_write(folder / name) as temp, temp.open("wb") as file:
                while line is not None and rows < max_rows and size + len(line) < MAX_BYTES:
                    file.write(line + b"\n")
                    rows += 1
                    size += len(line) + 1
                    line = next(lines, None)
            files[name] = rows
        _mark(folder, files, complete=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return files


def check_request_folder(folder: Path) -> None:
    """Refuse a folder with files that an export has not written.

    Raises:
        StoreError: there is such a file, or it cannot be read.
    """
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return
        marker = folder / _MARKER
        known = orjson.loads(marker.read_bytes()) if marker.is_file() else {}
    except ValueError:
        known = {}
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror or error}") from error
    if not isinstance(known, dict) or known.get("kind") != _KIND:
        raise StoreError(
            f"{folder}: already exists, and was not written by batch-export: choose another folder"
        )


def _mark(folder: Path, files: dict[str, int], *, complete: bool) -> None:
    marker = {"kind": _KIND, "complete": complete, "requests": sum(files.values()), "files": files}
    with atomic_write(folder / _MARKER) as temp:
        temp.write_bytes(orjson.dumps(marker, option=orjson.OPT_INDENT_2))
