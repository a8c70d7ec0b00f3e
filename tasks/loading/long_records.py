"""The maximum size of a record, and lines read in bounded memory."""

import io
from collections.abc import Iterator

from ..records import Kind, Problem

MAX_RECORD_BYTES = 64 << 20
"""Bytes or characters of a record: enough for a few embedded images; parsing takes several times
this much memory."""

_SKIPPED_BYTES = 1 << 20


def read_lines(file: io.BufferedReader) -> Iterator[tuple[int, bytes | Problem]]:
    """Read lines with their numbers, from 1; of one that is too long, only the problem."""
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) <= MAX_RECORD_BYTES:
            yield number, line
            continue
        size = len(line)
        del line  # as large as all other memory of the reader
        yield number, too_long(f"line {number}", size + _skip_line(file))


def _skip_line(file: io.BufferedReader) -> int:
    """Skip the rest of a line; returns its size."""
    size = 0
    while part := file.readline(_SKIPPED_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def too_long(what: str, size: int) -> Problem:
    """The problem of a record of so many bytes.

    Args:
        what: the record, for the message.
        size: bytes, of which there may be more.
    """
    limit = f"{MAX_RECORD_BYTES >> 20} MB"
    reason = f"{what} has {size / (1 << 20):,.0f} MB, and a record may have {limit}"
    return Problem(Kind.BAD_ROW, f"{reason}; keep large images in files, and refer to them")
