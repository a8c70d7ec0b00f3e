"""One table file, compressed or not -> its records, streamed."""

import bz2
import gzip
import io
import lzma
import posixpath
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ...serving.printable import printable
from ..errors import DatasetError, StoreError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import GuardedFile
from ..object_store.regular_files import open_regular
from ..object_store.store_errors import store_errors
from ..records import Problem
from .csv_dialects import SAMPLE_BYTES, CsvDialect, recognise
from .csv_format import read_csv
from .image_folders import from_dataset_folder, is_metadata
from .json_formats import LocatedRecord, batch_note, read_json_array, read_json_lines
from .json_kinds import is_json_array
from .vlmevalkit import ask_choices, share_images
from .webdataset import read_webdataset

Reader = Callable[[io.BufferedReader], Iterator[LocatedRecord]]
OpenFile = Callable[[], AbstractContextManager[io.BufferedReader]]

DELIMITERS = {"csv": ",", "tsv": "\t"}
"""The usual delimiter of a format; another one is recognised."""

_UNREADABLE = (ValueError, EOFError, zlib.error, lzma.LZMAError)

_BUFFER_BYTES = 256 << 10

_S3_BUFFER_BYTES = 4 << 20
"""Bytes read per request: enough to hide its latency."""


def read_table(
    uri: str,
    label: str,
    file_format: str,
    credentials: S3Credentials | None,
) -> Iterator[LocatedRecord]:
    """Read the records of one file.

    Args:
        uri: a local path or `s3://` URI; its suffix indicates the compression.
        label: its path within the dataset's folder, for the locations of its records.
        file_format: one of the values of `files.TABLE_FORMATS`.
        credentials: S3 credentials.

    Raises:
        DatasetError: the file cannot be read, or not to its end.
    """
    open_file = partial(_open, uri, credentials)
    # The metadata of a folder of images within the dataset's folder.
    folder = posixpath.dirname(label) if is_metadata(label, file_format) else ""
    count = 0
    try:
        with open_file() as file:
            for position, record in _reader(open_file, file_format)(file):
                if folder and not isinstance(record, Problem):
                    record = from_dataset_folder(record, folder)
                yield f"{label}{position}", record
                count += 1
    except StoreError as error:
        raise DatasetError(str(error)) from error
    except _UNREADABLE as error:
        reason = printable(str(error).strip().split("\n")[0], 500)
        where = f" after {count} rows" if count else ""
        raise DatasetError(f"{uri}: cannot be read{where}: {reason}") from error


def start_note(uri: str, file_format: str, credentials: S3Credentials | None) -> str:
    """What is unusual about a file, by its start; empty also if that cannot be read."""
    open_file = partial(_open, uri, credentials)
    try:
        if file_format in DELIMITERS:
            return _dialect(open_file, file_format).note(DELIMITERS[file_format])
        if file_format == "jsonl":
            with open_file() as file:
                return batch_note(file)
    except (StoreError, *_UNREADABLE):  # the reader says why
        pass
    return ""


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


def _reader(open_file: OpenFile, file_format: str) -> Reader:
    if file_format == "jsonl":
        return read_json_lines
    if file_format == "json":
        return read_json_array if is_json_array(open_file) else read_json_lines
    if file_format in DELIMITERS:
        dialect = _dialect(open_file, file_format)
        return lambda file: ask_choices(share_images(read_csv(file, dialect)))
    if file_format == "webdataset":
        return read_webdataset
    from .table_formats import read_arrow, read_parquet

    return read_arrow if file_format == "arrow" else read_parquet


def _dialect(open_file: OpenFile, file_format: str) -> CsvDialect:
    with open_file() as file:
        return recognise(file.read(SAMPLE_BYTES), DELIMITERS[file_format])


@contextmanager
def _open(uri: str, credentials: S3Credentials | None) -> Iterator[io.BufferedReader]:
    """Open a file at its start, decompressed according to its suffix."""
    with ExitStack() as stack, store_errors(uri):
        file: Any
        if uri.startswith("s3://"):
            object_ = GuardedFile(uri, credentials)
            file = stack.enter_context(io.BufferedReader(object_, _S3_BUFFER_BYTES))
        else:
            file = stack.enter_context(open_regular(uri, _BUFFER_BYTES))
        match Path(uri.lower()).suffix:
            case ".gz" | ".tgz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            case ".bz2":
                file = stack.enter_context(bz2.BZ2File(file))
            case ".xz":
                file = stack.enter_context(lzma.LZMAFile(file))
            case ".zst":
                import pyarrow as pa

                file = stack.enter_context(pa.CompressedInputStream(file, "zstd"))
        if not isinstance(file, io.BufferedReader):
            file = io.BufferedReader(file, _BUFFER_BYTES)
        yield file
