"""CSV, Parquet and DataFrames -> records of plain Python values, streamed.

Imports pandas and pyarrow: import this module only if a dataset is in one of these formats.
"""

import datetime
import decimal
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..records import Record
from .json_formats import LocatedRecord, parse_json

_CSV_ROWS = 1000
"""Rows per chunk."""

_PARQUET_ROWS = 16
"""Rows per decoded batch: few, because each may embed images of several megabytes."""

_PARQUET_BUFFER = 1 << 20
"""Bytes read ahead per column."""


def to_python(value: Any) -> Any:
    """Convert a numpy, pandas or Arrow value to plain Python; missing values become None."""
    if value is None or isinstance(value, str | bytes | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, Mapping):
        return {str(key): to_python(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [to_python(child) for child in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_python(value.tolist())
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return to_python(float(value))
    return value


def find_duplicate(names: Iterable[str]) -> str | None:
    """A column name that appears twice: a record, keyed by name, would lose one of the columns."""
    counts = Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)


def read_frame(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a DataFrame; its index is ignored."""
    names = [str(name) for name in frame.columns]
    for number, values in enumerate(frame.itertuples(index=False, name=None)):
        yield f"[{number}]", dict(zip(names, map(to_python, values), strict=True))


def read_csv(
    file: io.BufferedReader, *, separator: str = ",", json_columns: tuple[str, ...] = ()
) -> Iterator[LocatedRecord]:
    """Read UTF-8 text with a header line; cells remain text, and only empty ones are missing.

    Cells of `json_columns` that hold a JSON list are parsed.

    Raises:
        ValueError: a line does not match the header, or a quote is never closed.
    """
    try:
        chunks = pd.read_csv(
            file,
            sep=separator,
            chunksize=_CSV_ROWS,
            keep_default_na=False,
            na_values=[""],
            dtype=str,
        )
    except pd.errors.EmptyDataError:
        return
    number = 0
    for chunk in chunks:
        if not isinstance(chunk.index, pd.RangeIndex):
            raise ValueError("the first line names fewer columns than the next lines have")
        for _, record in read_frame(chunk):
            yield f"[{number}]", _with_json(record, json_columns)
            number += 1


def _with_json(record: dict[str, Any], columns: tuple[str, ...]) -> Record:
    for name in columns:
        cell = record.get(name)
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                record[name] = parse_json(cell.encode())
            except ValueError:
                continue  # plain text that begins with a bracket
    return record


def read_parquet(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read a Parquet file in small batches; memory is bounded by its page size, not its length.

    Raises:
        ValueError: it is not a Parquet file, or it is corrupted.
    """
    number = 0
    try:
        # With pre_buffer, pyarrow keeps all row groups read so far in memory.
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER)
        if (duplicate := find_duplicate(table.schema_arrow.names)) is not None:
            raise ValueError(f"two columns are named {duplicate!r}; rename one")
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
            for row in range(batch.num_rows):
                yield f"[{number}]", to_python(batch.slice(row, 1).to_pylist()[0])
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).split("\n")[0]) from None
    except OverflowError as error:
        raise ValueError(f"row {number} has a date or time out of range: {error}") from None
    except KeyError as error:
        raise ValueError(f"row {number} has a time in an unknown time zone: {error}") from None


def count_parquet(file: io.BufferedReader) -> int:
    """The number of rows according to the file's footer."""
    try:
        return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).split("\n")[0]) from None
