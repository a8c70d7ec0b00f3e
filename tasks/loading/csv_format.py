"""CSV -> records of text cells, streamed; a broken line costs its row."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator

from ..records import Kind, Problem, Record
from .csv_dialects import CsvDialect, trim
from .json_formats import LocatedRecord
from .long_records import MAX_RECORD_BYTES, too_long

_MAX_LINES = 10_000
"""Lines of one row: if there are more, a quote was surely never closed."""

_MAX_CELLS = 1_000_000
"""Delimiters of one row."""

_SKIPPED_CHARACTERS = 1 << 20

_OPEN_QUOTE = "a quote is not closed, or not written twice within a cell in quotes"


def find_duplicate(names: Iterable[str]) -> str | None:
    """A column name that appears twice: a record, keyed by name, would lose one of the columns."""
    counts = Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)


def read_csv(file: io.BufferedReader, dialect: CsvDialect) -> Iterator[LocatedRecord]:
    """Read a table with a header line; cells remain text, and only empty ones are missing.

    Raises:
        ValueError: the header is broken or names a column twice, or UTF-16 text is broken.
    """
    # A byte that is not of the encoding becomes a surrogate, and costs only its row.
    errors = "strict" if dialect.encoding in {"utf-16", "utf-32"} else "surrogateescape"
    with io.TextIOWrapper(file, dialect.encoding, errors, newline="") as text:
        rows = _Rows(text, dialect)
        header = next(rows, None)
        if header is None:
            return
        names = _names(header)
        for number, cells in enumerate(rows):
            if isinstance(cells, Problem):
                yield f"[{number}]", cells
            else:
                yield f"[{number}]", _record(names, cells, rows.line)


def _names(header: list[str] | Problem) -> list[str]:
    if isinstance(header, Problem):
        raise ValueError(f"the header is broken: {header.message}")
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    if (duplicate := find_duplicate(names)) is not None:
        raise ValueError(f"two columns are named {duplicate!r}; rename one")
    return names


def _record(names: list[str], cells: list[str], line: int) -> Record | Problem:
    count, width = len(cells), len(names)
    if count != width and len(trim(cells, width)) != width:
        remedy = "put a cell that has a delimiter in quotes" if count > width else "is it cut off?"
        message = f"line {line} has {count} cells, and the header names {width} columns; {remedy}"
        return Problem(Kind.BAD_ROW, message)
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


class _BrokenRowError(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Lines:
    """The lines of a text, of which those of the current row can be read again.

    Attributes:
        number: of the last line, from 1.
        is_encoded: whether all bytes of the current row are of the encoding.
    """

    def __init__(self, text: io.TextIOWrapper, delimiter: str) -> None:
        self.number = 0
        self.is_encoded = True
        self._text = text
        self._delimiter = delimiter
        self._delimiters = 0
        self._taken: list[str] = []
        self._size = 0
        self._again: list[str | Problem] = []  # the next one last

    def start_row(self) -> None:
        """The next line is the first one of a row."""
        self.is_encoded = True
        self._taken.clear()
        self._size = self._delimiters = 0

    def break_row(self) -> None:
        """The next line is the second one of the current row."""
        again = self._taken[1:]
        self.number -= len(again)
        self._again.extend(reversed(again))

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._read()
        if not line:
            raise StopIteration  # csv takes it for the end of a row, and may ask again
        first = self.number + 1 - len(self._taken)
        if isinstance(line, Problem) and not self._taken:
            self.number += 1
            raise _BrokenRowError(line)
        if (
            isinstance(line, Problem)
            or len(self._taken) == _MAX_LINES
            or self._size + len(line) > MAX_RECORD_BYTES
        ):
            self._again.append(line)
            raise _BrokenRowError(Problem(Kind.BAD_ROW, f"line {first}: {_OPEN_QUOTE}"))
        self.number += 1
        self._taken.append(line)
        self._size += len(line)
        self._delimiters += line.count(self._delimiter)
        if self._delimiters > _MAX_CELLS:
            message = f"line {first} has more than {_MAX_CELLS:,} cells"
            raise _BrokenRowError(Problem(Kind.BAD_ROW, message))
        if not line.isascii():
            self.is_encoded = self.is_encoded and _is_encodable(line)
        return line

    def _read(self) -> str | Problem:
        line = self._text.readline(MAX_RECORD_BYTES + 1)
        if len(line) <= MAX_RECORD_BYTES:
            return line
        size = len(line)
        del line  # as large as all other memory of the reader
        while part := self._text.readline(_SKIPPED_CHARACTERS):
            size += len(part)
            if part.endswith("\n"):
                break
        return too_long(f"line {self.number + 1}", size)


class _Rows:
    """The rows of a CSV file as lists of cells, or what is wrong with one.

    A broken row ends with its first line: otherwise, a quote that is never closed would take the
    rows up to the next quote for its own.

    Attributes:
        line: number of the first line of the last row, from 1.
    """

    def __init__(self, text: io.TextIOWrapper, dialect: CsvDialect) -> None:
        self.line = 0
        self._encoding = dialect.encoding
        self._lines = _Lines(text, dialect.delimiter)
        for _ in range(dialect.skipped):
            next(self._lines)
        self._reader = csv.reader(self._lines, delimiter=dialect.delimiter, strict=True)

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> list[str] | Problem:
        cells: list[str] = []
        while not cells:  # a blank line has none
            self._lines.start_row()
            self.line = self._lines.number + 1
            try:
                cells = next(self._reader)
            except csv.Error:
                self._lines.break_row()
                return Problem(Kind.BAD_ROW, f"line {self.line}: {_OPEN_QUOTE}")
            except _BrokenRowError as error:
                self._lines.break_row()
                return error.problem
        if not self._lines.is_encoded:
            message = f"line {self.line} is not {self._encoding} text; save the file as UTF-8"
            return Problem(Kind.BAD_ROW, message)
        return cells


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
