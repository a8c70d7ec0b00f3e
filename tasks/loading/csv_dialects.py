"""How a CSV file is written: its encoding and its delimiter, recognised by its start."""

import codecs
import csv
import io
import re
from dataclasses import dataclass

from .long_records import MAX_RECORD_BYTES

SAMPLE_BYTES = 1 << 20

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_SAMPLE_ROWS = 200
_AGREEING = 0.8
"""Share of the rows that must have as many cells as the header."""

_HIGH = re.compile(rb"[\x80-\xff]+")
_NOT_WESTERN = re.compile(
    rb"[\x81\x8d\x8f\x90\x9d]"  # not in cp1252
    rb"|[A-Za-z][\x80\x82-\x84\x86-\x90\x95\x98\x99\x9b\xa1-\xac\xae-\xb3\xb5\xb6\xb8-\xbf\xd7\xf7][a-z]"
)
"""Bytes that text in cp1252 does not have: a sign or an accented capital within a word."""

_MULTIBYTE = re.compile(
    rb"[\xc3-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)

csv.field_size_limit(MAX_RECORD_BYTES)  # of the process; by default 128 kB, less than an image

_EXCEL = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How to read a CSV file.

    Attributes:
        encoding: Python's name of it.
        delimiter: one character.
        skipped: number of lines before the header.
    """

    encoding: str = "utf-8"
    delimiter: str = ","
    skipped: int = 0

    def note(self, usual: str) -> str:
        """What is other than in a UTF-8 file with the usual delimiter; may be empty."""
        parts = []
        if self.encoding not in {"utf-8", "utf-8-sig"}:
            parts.append(f"encoding {self.encoding}")
        if self.delimiter != usual:
            parts.append(f"delimiter {_DELIMITERS.get(self.delimiter, repr(self.delimiter))}")
        return "read with " + " and ".join(parts) if parts else ""


def recognise(sample: bytes, usual: str) -> CsvDialect:
    """Recognise a dialect by the first `SAMPLE_BYTES` of a file.

    Args:
        sample: the start of the file, or all of it.
        usual: the delimiter that files of this name have.

    Raises:
        ValueError: the encoding is not supported, or the header does not fit the rows.
    """
    encoding = _encoding(sample)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample)
    is_all = len(sample) < SAMPLE_BYTES
    if match := _EXCEL.match(text):
        return CsvDialect(encoding, match[1], skipped=1)
    tables = {mark: _rows(text, mark, is_all) for mark in (usual, *_DELIMITERS)}
    best = next((mark for mark, rows in tables.items() if _agree(rows)), usual)
    rows = tables[best]
    if len(rows) > 1 and all(len(row) > len(rows[0]) for row in rows[1:]):
        raise ValueError(
            f"the first line names fewer columns ({len(rows[0])}) than the next lines have cells "
            f"({len(rows[1])}, by {_DELIMITERS[best]}); it must name each column"
        )
    return CsvDialect(encoding, best)


def _encoding(sample: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its start
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample[:1000]:
        raise ValueError(
            "it is no text, or in an encoding such as UTF-16 or UTF-32; save it as UTF-8"
        )
    broken = codecs.getincrementaldecoder("utf-8")("replace").decode(sample).count("\ufffd")
    if 4 * broken <= len(_MULTIBYTE.findall(sample)):  # a few lines may be broken
        return "utf-8"
    # In Western languages, letters other than a to z rarely follow each other, as in "Größe".
    runs = _HIGH.findall(sample)
    if _NOT_WESTERN.search(sample) or len(b"".join(runs)) > 2 * len(runs):
        raise ValueError(
            "it is not UTF-8, and does not look like cp1252 (Western Windows); convert it: "
            "iconv -f ENCODING -t UTF-8"
        )
    return "cp1252"


def _rows(text: str, delimiter: str, is_all: bool) -> list[list[str]]:
    """The first rows that are not blank."""
    rows: list[list[str]] = []
    lines = io.StringIO(text, newline="")
    try:
        for row in csv.reader(lines, delimiter=delimiter):
            if row:
                rows.append(trim(row, len(rows[0])) if rows else row)
            if len(rows) > _SAMPLE_ROWS:
                return rows
    except csv.Error:
        pass
    return rows if is_all or len(rows) < 2 else rows[:-1]  # the last one may be cut off


def _agree(rows: list[list[str]]) -> bool:
    """Whether most rows have as many cells as the header, which must have several."""
    if not rows or len(rows[0]) < 2:
        return False
    return sum(len(row) == len(rows[0]) for row in rows) >= _AGREEING * len(rows)


def trim(row: list[str], width: int) -> list[str]:
    """Without the empty cells behind the last column that some programs write."""
    while len(row) > width and not row[-1]:
        row.pop()
    return row
