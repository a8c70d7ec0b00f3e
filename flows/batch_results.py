"""The results of batch files: which row has one, found by the row key without reading them all."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np

from ..serving.client.batch_lines import NotAResultError, read_result
from ..serving.client.bodies import reply_limit
from ..serving.printable import printable
from ..serving.types import Completion, Outcome
from ..tasks.errors import EndpointError
from ..tasks.object_store.regular_files import open_regular
from ..tasks.prompting.keys import KEY_LENGTH
from ..tasks.storing.key_index import KeyIndex, Location

_LOGGER = logging.getLogger(__name__)

NO_RESULT = "the results have no reply to this row; the next run asks for it"

_BOM = b"\xef\xbb\xbf"

_FAILED, _COMPLETED = 0, 1
_USED = 2
"""Kinds of entries; `_USED` is added once somebody has asked for it."""

_COMPLETED_RANK = 1 << 62
"""Added to the rank of a completion: it replaces a failure, in whatever order they come."""


class BatchResults:
    """The outcomes in files of results, by row key. Thread-safe.

    Of several results of one row, a completion counts before a failure, then the first. 33 bytes
    of memory each: the lines stay in their files.

    Args:
        paths: files, or folders with `*.jsonl` files.
        max_tokens: the limit of the requests, if they have one.

    Attributes:
        files: the files.
        counts: lines by what they are: "results", "duplicates", "unreadable", "unknown".

    Raises:
        EndpointError: there is no such file, or none has a result.
    """

    # With a `__dict__`, Prefect would record the index among the parameters of the run.
    __slots__ = ("_examples", "_index", "_limit", "_lock", "_max_tokens", "counts", "files")

    def __init__(self, paths: Sequence[str | Path], max_tokens: int | None = None) -> None:
        self.files = list(_files(paths))
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._max_tokens = max_tokens
        self._limit = reply_limit(max_tokens)  # a longer line is no result, as online
        self._index = KeyIndex()
        self._lock = threading.Lock()
        for number, file in enumerate(self.files):
            self._read(number, file)
        if not len(self._index):
            reasons = "; ".join(self.notes) or f"{self.files[0]} is empty"
            raise EndpointError(f"no result is about a row: {reasons}")

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return bytes.fromhex(key) in self._index

    def __len__(self) -> int:
        with self._lock:
            return len(self._index)

    def get(self, key: str) -> Outcome | None:
        """The outcome of a row; None if there is no result, or its file has changed since."""
        packed = bytes.fromhex(key)
        with self._lock:
            location = self._index.get(packed)
            if location is None:
                return None
            self._index.put(packed, location._replace(kind=location.kind | _USED))
        with _opened(self.files[location.file]) as file:
            file.seek(location.rank & ~_COMPLETED_RANK)
            line = file.readline(self._limit)
        try:
            custom_id, outcome = read_result(line.removeprefix(_BOM), self._max_tokens)
        except NotAResultError:
            return None
        return outcome if custom_id == key else None

    @property
    def unused(self) -> int:
        """Results that nobody has asked for."""
        with self._lock:
            return int(np.count_nonzero(self._index.entries()[1]["kind"] < _USED))

    @property
    def notes(self) -> list[str]:
        """What should be known about lines that are left out, with the first of each kind."""
        return [
            f"{words}: {self.counts[what]:,}, the first: {printable(example)}"
            for what, words in _WORDS.items()
            if (example := self._examples.get(what))
        ]

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Log which lines are left out, and on exit how many results were of no use."""
        for note in self.notes:
            _LOGGER.warning("%s", note)
        yield
        if unused := self.unused:
            _LOGGER.warning(
                "%s of %s results were not used: their rows are stored already, or are not of this "
                "dataset, model and parameters",
                f"{unused:,}",
                f"{len(self):,}",
            )

    def _read(self, number: int, path: Path) -> None:
        """Enter the lines of a file."""
        with _opened(path) as file:
            offset, line_number = 0, 0
            while line := file.readline(self._limit):
                line_number += 1
                where, size = f"{path}:{line_number}", len(line)
                if size == self._limit and not line.endswith(b"\n"):
                    size += _skip_line(file)
                    self._count("unreadable", f"{where} is longer than a reply may be")
                elif line.strip():
                    self._enter(line, number, offset, where)
                offset += size

    def _enter(self, line: bytes, file: int, offset: int, where: str) -> None:
        try:
            custom_id, outcome = read_result(line.removeprefix(_BOM), self._max_tokens)
        except NotAResultError as error:
            self._count("unreadable", f"{where} is {error}")
            return
        if not _is_key(custom_id):
            self._count("unknown", f"{where}, {printable(custom_id, 60)!r}")
            return
        completed = isinstance(outcome, Completion)
        key, rank = bytes.fromhex(custom_id), offset + completed * _COMPLETED_RANK
        known = self._index.get(key)
        if known is not None:
            self._count("duplicates", where)
        if known is None or (completed and known.kind == _FAILED):
            kind = _COMPLETED if completed else _FAILED
            self._index.put(key, Location(file, 0, rank, kind))
            self.counts["results"] += known is None

    def _count(self, what: str, example: str) -> None:
        self.counts[what] += 1
        self._examples.setdefault(what, example)


_WORDS = {
    "unreadable": "lines of the results that cannot be read",
    "unknown": "results with a custom_id that no run gives",
    "duplicates": "further results about a row that has one",
}


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    """All files, those of a folder in the order of their names.

    Raises:
        EndpointError: there is no such file, or a folder has none.
    """
    for given in paths:
        if "://" in str(given):
            raise EndpointError(f"{given}: results are read from local files: copy it first")
        path = Path(given)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise EndpointError(f"{path}: the folder has no *.jsonl file with results")
        yield from files


def _skip_line(file: BufferedReader) -> int:
    """Read the rest of a line; returns its bytes."""
    size = 0
    while rest := file.readline(1 << 20):
        size += len(rest)
        if rest.endswith(b"\n"):
            break
    return size


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with open_regular(str(path), 1 << 16) as file:
            yield file
    except OSError as error:
        raise EndpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _is_key(custom_id: str) -> bool:
    return len(custom_id) == KEY_LENGTH and set(custom_id) <= _HEX


_HEX = frozenset("0123456789abcdef")
