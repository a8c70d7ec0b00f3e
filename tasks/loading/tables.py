"""One table file, compressed or not -> its records, streamed."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DatasetError, StoreError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import GuardedFile
from ..object_store.store_errors import store_errors
from .json_formats import LocatedRecord, is_json_array, read_json_array, read_json_lines

Reader = Callable[[io.BufferedReader], Iterator[LocatedRecord]]
OpenFile = Callable[[], AbstractContextManager[io.BufferedReader]]

_S3_BUFFER_BYTES = 4 << 20
"""Bytes read per request: enough to hide its latency."""


def read_table(
    uri: str,
    label: str,
    file_format: str,
    json_columns: tuple[str, ...],
    credentials: S3Credentials | None,
) -> Iterator[LocatedRecord]:
    """Read the records of one file.

    Args:
        uri: a local path or `s3://` URI; its suffix indicates the compression.
        label: the file's name in the locations of its records.
        file_format: one of the values of `files.TABLE_FORMATS`.
        json_columns: CSV columns whose cells may hold JSON lists.
        credentials: S3 credentials.

    Raises:
        DatasetError: the file cannot be read, or not to its end.
    """
    open_file = partial(_open, uri, credentials)
    count = 0
    try:
        with open_file() as file:
            for position, record in _reader(open_file, file_format, json_columns)(file):
                yield f"{label}{position}", record
                count += 1
    except StoreError as error:
        raise DatasetError(str(error)) from error
    except (ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DatasetError(f"{uri}: cannot be read after {count} rows: {reason}") from error


def count_rows(uri: str, credentials: S3Credentials | None) -> int:
    """The number of rows of a Parquet file.

    Raises:
        DatasetError: it is not a Parquet file.
        StoreError: it cannot be opened.
    """
    from .table_formats import count_parquet

    try:
        with _open(uri, credentials) as file:
            return count_parquet(file)
    except ValueError as error:
        raise DatasetError(f"{uri}: {error}") from error


def _reader(open_file: OpenFile, file_format: str, json_columns: tuple[str, ...]) -> Reader:
    if file_format == "jsonl":
        return read_json_lines
    if file_format == "json":
        with open_file() as file:
            return read_json_array if is_json_array(file) else read_json_lines
    from .table_formats import read_csv, read_parquet

    if file_format == "parquet":
        return read_parquet
    separator = "\t" if file_format == "tsv" else ","
    return partial(read_csv, separator=separator, json_columns=json_columns)


@contextmanager
def _open(uri: str, credentials: S3Credentials | None) -> Iterator[io.BufferedReader]:
    """Open a file at its start, decompressed according to its suffix."""
    with ExitStack() as stack, store_errors(uri):
        file: Any
        if uri.startswith("s3://"):
            object_ = GuardedFile(uri, credentials)
            file = stack.enter_context(io.BufferedReader(object_, _S3_BUFFER_BYTES))
        else:
            file = stack.enter_context(Path(uri).open("rb"))
        match Path(uri.lower()).suffix:
            case ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            case ".bz2":
                file = stack.enter_context(bz2.BZ2File(file))
            case ".xz":
                file = stack.enter_context(lzma.LZMAFile(file))
            case ".zst":
                import pyarrow as pa

                file = stack.enter_context(pa.CompressedInputStream(file, "zstd"))
        yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
