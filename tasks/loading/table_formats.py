"""Parquet, Arrow and DataFrames -> records of plain Python values, streamed.

Imports pandas and pyarrow: import this module only if a dataset is in one of these formats.
"""

import datetime
import decimal
import io
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ...serving.printable import printable
from ..records import Kind, Problem, Record
from .csv_format import find_duplicate
from .json_formats import LocatedRecord
from .long_records import MAX_RECORD_BYTES, too_long

_PARQUET_ROWS = 4
"""Rows per decoded batch: few, because each may embed images of several megabytes, and a file of a
few kilobytes may have the same large value in every row."""

_SMALL_ROWS, _SMALL_BATCH = 64, 1 << 20
"""Rows that are converted at once, if they have no more than this many bytes."""

_PARQUET_BUFFER = 1 << 20
"""Bytes read ahead per column."""

_ARROW_FILE, _ARROW_FILE_HEAD = b"ARROW1", 8
_IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


def to_python(value: Any) -> Any:
    """Convert a numpy, pandas or Arrow value to plain Python; missing values become None.

    Numbers that are the bytes of an image become bytes.
    """
    if value is None or isinstance(value, str | bytes | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, Mapping):
        return {str(key): to_python(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        image = _image_bytes(value)
        return image or [to_python(child) for child in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_python(value.tolist())
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return to_python(float(value))
    return value


def read_frame(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a DataFrame; its index is ignored."""
    names = [str(name) for name in frame.columns]
    for number, values in enumerate(frame.itertuples(index=False, name=None)):
        yield f"[{number}]", dict(zip(names, map(to_python, values), strict=True))


def read_parquet(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read a Parquet file in small batches; memory is bounded by its page size, not its length.

    Raises:
        ValueError: it is not a Parquet file, it is corrupted, or its rows are too large.
    """
    with _arrow_errors():
        # With pre_buffer, pyarrow keeps all row groups read so far in memory.
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
        rows = _batch_rows(table.metadata)
        yield from _records(
            table.schema_arrow, table.iter_batches(batch_size=rows, use_threads=False)
        )


def read_arrow(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read an Arrow file or stream, as `save_to_disk` of Hugging Face's `datasets` writes it.

    One of its batches at a time is in memory.

    Raises:
        ValueError: it is none, or it is corrupted.
    """
    if file.peek(len(_ARROW_FILE))[: len(_ARROW_FILE)] == _ARROW_FILE:
        file.read(_ARROW_FILE_HEAD)  # a stream follows
    with _arrow_errors(), pa.ipc.open_stream(file) as stream:
        yield from _records(stream.schema, stream)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """The number of rows to decode at once, so that they take little memory."""
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)  # its columns may crash the process, if it is broken
        size = group.total_byte_size // max(1, group.num_rows)
        if size > MAX_RECORD_BYTES:
            raise ValueError(too_long(f"on average, a row of row group {number}", size).message)
        largest = max(largest, size)
    return max(1, min(_PARQUET_ROWS, MAX_RECORD_BYTES // largest))


def _records(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[LocatedRecord]:
    if (duplicate := find_duplicate(schema.names)) is not None:
        raise ValueError(f"two columns are named {duplicate!r}; rename one")
    number = 0
    for batch in batches:
        batch.validate(full=True)  # reading a broken one may crash the process
        for start in range(0, batch.num_rows, _SMALL_ROWS):
            for record in _rows(batch.slice(start, _SMALL_ROWS), number):
                yield f"[{number}]", record
                number += 1


def _rows(batch: pa.RecordBatch, first: int) -> Iterator[Record | Problem]:
    if batch.nbytes <= _SMALL_BATCH:
        with suppress(OverflowError, ValueError, KeyError):  # of one of them
            return iter([to_python(row) for row in batch.to_pylist()])
    return _single_rows(batch, first)


def _single_rows(batch: pa.RecordBatch, first: int) -> Iterator[Record | Problem]:
    is_large = batch.nbytes > MAX_RECORD_BYTES
    for number, index in enumerate(range(batch.num_rows), first):
        row = batch.slice(index, 1)
        size = _size(row) if is_large else 0
        if size > MAX_RECORD_BYTES:
            yield too_long(f"row {number} (from 0)", size)
        else:
            yield _record(row, number)


def _size(row: pa.RecordBatch) -> int:
    """Bytes of a row; those of a dictionary belong to all rows."""
    columns = (column for column in row.columns if not pa.types.is_dictionary(column.type))
    return sum(column.nbytes for column in columns)


def _record(row: pa.RecordBatch, number: int) -> Record | Problem:
    try:
        record: dict[str, Any] = to_python(row.to_pylist()[0])
    except (OverflowError, ValueError) as error:
        reason = f"a date, time or text out of range: {error}"
        return Problem(Kind.BAD_ROW, f"row {number} (from 0) has {printable(reason, 200)}")
    except KeyError as error:
        reason = f"a time in an unknown time zone: {error}"
        return Problem(Kind.BAD_ROW, f"row {number} (from 0) has {printable(reason, 200)}")
    return record


def _image_bytes(value: Sequence[Any]) -> bytes:
    """The image that some writers store as a list of numbers, also signed ones; else nothing."""
    head = value[:4]
    if not all(type(number) is int for number in head):
        return b""
    if not bytes(number & 0xFF for number in head).startswith(_IMAGE_STARTS):
        return b""
    try:
        return bytes(value) if min(value) >= 0 else np.array(value, np.int8).tobytes()
    except (TypeError, ValueError, OverflowError):  # not all are bytes
        return b""


@contextmanager
def _arrow_errors() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = str(error).split("\n")[0] or "a part of it claims more memory than there is"
        raise ValueError(reason) from None


def count_parquet(file: io.BufferedReader) -> int:
    """The number of rows according to the file's footer."""
    with _arrow_errors():
        return int(pq.ParquetFile(file).metadata.num_rows)
