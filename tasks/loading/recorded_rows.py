"""Recognises the rows of a dataset when it is read again, by when it may have grown."""

import hashlib
import marshal
from array import array
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice

from ..errors import DatasetError
from ..records import Row
from .column_search import is_empty
from .dataset import Dataset

COUNTED_ROWS = 1000
"""Maximum number of rows counted behind the last one: they may embed images of megabytes."""

_PLAIN = 2
"""Version of marshal's format without references to equal objects: equal rows give equal bytes."""


class RecordedRows:
    """The rows of a dataset as they were read first, of which it still has to have every one later.

    Meanwhile rows may be appended to any of its files, also by rewriting the file. A row is
    recognised by a digest of its location and record, 8 bytes of memory each: only a digest of
    records works for every format, compressed or not. A DataFrame is not checked.

    Attributes:
        unasked: rows without a conversation, if the dataset has a column of them: they get the user
            prompt.
        new: rows that only a later reading has found, as counted up to `COUNTED_ROWS` at the end;
            known once one is finished, and kept by those that end early.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.new = self.unasked = 0
        self._dataset = dataset
        self._digests = array("q")

    @property
    def digest(self) -> bytes:
        """Digest of all rows in order, once `read` has read them; empty for a DataFrame."""
        return hashlib.sha256(self._digests).digest() if self._dataset.sources else b""

    def read(self) -> Iterator[Row]:
        """Read the rows from the start, as `Dataset.rows` does, and record them."""
        self._digests = array("q")
        self.unasked = 0
        conversation = self._dataset.columns.conversation
        for row in self._dataset.rows():
            if conversation is not None and not row.problem:
                self.unasked += is_empty(row.record.get(conversation))
            if self._dataset.sources:
                self._digests.append(_digest(row))
            yield row

    def read_again(self) -> Iterator[Row]:
        """Read the recorded rows again; each keeps its index, and new ones are skipped.

        A line that could not be read may be complete by now: it has no answer that could be wrong.

        Raises:
            DatasetError: while iterating, if a row is no longer there or has changed, or a file is
                corrupted.
        """
        if not self._dataset.sources:
            yield from self._dataset.rows()
            return
        new = 0
        # Without the limit: new rows in the first of several files must not push out later ones.
        with closing(replace(self._dataset, max_rows=None).rows()) as rows:
            for index, digest in enumerate(self._digests):
                row, skipped = self._find(digest, rows, index)
                new += skipped
                yield row if row.index == index else replace(row, index=index)
            with suppress(DatasetError):  # half written, which is for the next run to find out
                for _ in islice(rows, self._counted()):
                    new += 1
        self.new = new

    def _find(self, digest: int, rows: Iterator[Row], index: int) -> tuple[Row, int]:
        """The next row with this digest, and how many are new up to it."""
        for skipped, row in enumerate(rows):
            if digest == _digest(row):
                return row, skipped
            if digest == _bits(_where(row)):  # now the line can be read
                return row, skipped + 1
        raise DatasetError(
            f"{self._dataset.name} changed during the run: row {index} (from 0) is not what it was "
            "any more, or gone; run again"
        )

    def _counted(self) -> int:
        """How many rows to count behind the last one: those that another run would read."""
        if self._dataset.max_rows is None:
            return COUNTED_ROWS
        most = self._dataset.max_rows * self._dataset.samples
        return min(COUNTED_ROWS, most - len(self._digests))


def _digest(row: Row) -> int:
    """64 bits that differ between rows, the same in every process."""
    if row.problem:
        return _bits(_where(row))
    try:
        record = marshal.dumps(row.record, _PLAIN)  # type: ignore[arg-type]
    except ValueError:  # a value other than those of JSON and bytes, such as a UUID in Parquet
        record = repr(row.record).encode(errors="surrogatepass")
    return _bits(b"%b\n%b" % (_where(row), record))


def _where(row: Row) -> bytes:
    return row.where.encode(errors="surrogatepass")


def _bits(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)
