"""A dataset URI or a pandas DataFrame -> rows, lazily."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from ..concurrency import TASK_OPTIONS
from ..errors import DatasetError, StoreError
from ..images.references import ImageBase
from ..naming import short_name
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import open_filesystem, store_errors
from ..records import Kind, Problem, Row
from .columns import Columns
from .files import DatasetFiles, file_version, find_files
from .json_formats import LocatedRecord, is_json_array, read_json_array, read_json_lines

if TYPE_CHECKING:
    import pandas as pd

_PEEK_ROWS = 100
"""Rows among which the image column must appear."""

_COUNTED_FILES = 64
"""Parquet files whose footers are read for a row count; more would take too long."""

_ASKED_AT_ONCE = 16
"""Files whose version is asked for at the same time: on S3 each is a round trip."""

_OTHER_COLUMN = "take another output column"

Reader = Callable[[io.BufferedReader], Iterator[LocatedRecord]]
Opened = Callable[[], AbstractContextManager[io.BufferedReader]]


@dataclass(frozen=True)
class Dataset:
    """A table that is read anew, row by row, on every pass.

    Attributes:
        name: short, for people: "capsbench.json".
        columns: of the first readable record; records of JSON files may have others.
        count: rows, where that is known without reading them.
        base: what the relative image paths of its rows are tried against.
        folder: the local folder or `s3://` URI whose files are its data, where the source is a
            folder or a glob; None for one file and for a DataFrame.
        max_rows: only so many of its first rows are read.
        reserved: a column that no row may have: the one that gets the answers.
    """

    name: str
    columns: tuple[str, ...]
    count: int | None
    base: ImageBase
    folder: str | None
    _read: Callable[[], Iterator[LocatedRecord]]
    _tables: tuple[str, ...] = ()
    _credentials: S3Credentials | None = field(default=None, repr=False)
    max_rows: int | None = None
    reserved: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Path or URI of the file or folder that it was read from; none for a DataFrame."""
        return (self.folder,) if self.folder is not None else self._tables[:1]

    def version(self) -> tuple[str, ...]:
        """What tells the dataset's files from what they were or will be at another time.

        One text a table; none for a DataFrame and for a folder of images.

        Raises:
            DatasetError: a file's store cannot be asked.
        """
        try:
            with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
                return tuple(
                    pool.map(partial(file_version, credentials=self._credentials), self._tables)
                )
        except StoreError as error:
            raise DatasetError(str(error)) from error

    def rows(self) -> Generator[Row, None, None]:
        """Read all rows from the first; memory does not grow with their number.

        Raises:
            DatasetError: on the way, where a file is broken in a way that costs more than a row.
        """
        for index, (where, record) in enumerate(islice(self._read(), self.max_rows)):
            if isinstance(record, Problem):
                yield Row(index, {}, where, record)
            elif self.reserved in record:
                message = f"the row has a column {self.reserved!r} already: {_OTHER_COLUMN}"
                yield Row(index, record, where, Problem(Kind.BAD_ROW, message))
            else:
                yield Row(index, record, where)


def load_run_name(parameters: dict[str, Any]) -> str:
    """Name of the task run that finds a dataset: `load-capsbench.json`."""
    return f"load-{short_name(parameters['dataset'])}"


@task(name="load", task_run_name=load_run_name, **TASK_OPTIONS)  # type: ignore[arg-type] # takes parameters
def load_dataset(
    dataset: "str | Path | pd.DataFrame",
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    output: str = "",
    image_root: str | None = None,
    max_rows: int | None = None,
    credentials: S3Credentials | None = None,
) -> Dataset:
    """Find a dataset and check that it can be used; its rows are read later, lazily.

    Args:
        dataset: see `open_dataset`.
        columns: which are read, and the one that gets the answers.
        output: where these go: not among the dataset's own files.
        image_root: the only folder its images may come from.
        max_rows: only so many of its first rows are read.
        credentials: who to be on S3; by default the environment says.

    Raises:
        DatasetError: as `open_dataset` does, and where it has the column for the answers already.
    """
    found = open_dataset(dataset, columns, image_root=image_root, credentials=credentials)
    if columns.output in found.columns:
        raise DatasetError(f"{found.name} has a column {columns.output!r}: {_OTHER_COLUMN}")
    if output and found.folder is not None:
        # An output among the data would be data to the next run.
        place = output if "://" in output else str(Path(output).expanduser().absolute())
        if f"{place.rstrip('/')}/".startswith(f"{found.folder.rstrip('/')}/"):
            raise DatasetError(
                f"the output {output} lies in the dataset's folder {found.folder}: choose another"
            )
    count = found.count if max_rows is None or found.count is None else min(found.count, max_rows)
    return replace(
        found,
        count=count,
        max_rows=max_rows,
        reserved=columns.output,
    )


def open_dataset(
    source: "str | Path | pd.DataFrame",
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    *,
    image_root: str | None = None,
    credentials: S3Credentials | None = None,
    require_images: bool = True,
) -> Dataset:
    """Find a dataset and check that it can be used, by its first rows.

    Args:
        source: a JSON array, JSON lines, CSV, TSV or Parquet file, a folder of images or of
            Parquet files, a glob of either, local or `s3://`; or a pandas DataFrame.
        columns: for a folder of images, that of the images gets the path within the folder. In
            CSV files, it and that of conversations may hold JSON lists.
        image_root: the only folder its images may come from.
        credentials: who to be on S3; by default the environment says.
        require_images: whether the column of the images must be there, if it is named.

    Raises:
        DatasetError: there is no such dataset, it is empty or of an unknown format, its first
            rows cannot be read, or it has no image column.
    """
    try:
        root = _check_image_root(image_root)
        if isinstance(source, str | Path):
            found = find_files(str(source), credentials)
            dataset = _open_files(found, columns, root, credentials)
        else:
            dataset = _open_frame(source, root)
    except StoreError as error:
        raise DatasetError(str(error)) from error
    wanted = columns.image if require_images else None
    names = _first_columns(dataset, wanted)
    if wanted is not None and wanted not in names:
        there = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise DatasetError(f"{dataset.name}: no column {columns.image!r}; its columns are: {there}")
    return replace(dataset, columns=names)


def _first_columns(dataset: Dataset, wanted: str | None) -> tuple[str, ...]:
    """The columns of the first records, read until the wanted one has appeared."""
    columns: dict[str, None] = {}
    problem = None
    seen = 0
    with closing(dataset.rows()) as rows:
        for row in islice(rows, _PEEK_ROWS):
            seen += 1
            problem = problem or row.problem
            columns.update(dict.fromkeys(row.record))
            if row.record and (wanted is None or wanted in columns):
                break
    if not seen:
        raise DatasetError(f"{dataset.name}: has no rows")
    if not columns and problem:
        reason = f"none of the first {seen} rows can be read: {problem.message}"
        raise DatasetError(f"{dataset.name}: {reason}")
    return tuple(columns)


def _check_image_root(image_root: str | None) -> str | None:
    if not image_root:
        return None
    _, path = open_filesystem(image_root)
    if image_root.lower().startswith("s3://"):
        return f"s3://{path}"
    if not Path(path).is_dir():
        raise DatasetError(f"{image_root}: the image root is not a folder")
    return path


def _open_frame(frame: "pd.DataFrame", image_root: str | None) -> Dataset:
    from .table_formats import read_frame, find_duplicate

    twin = find_duplicate(map(str, frame.columns))
    if twin is not None:
        raise DatasetError(f"the DataFrame has two columns named {twin!r}; rename one")

    def read() -> Iterator[LocatedRecord]:
        for place, record in read_frame(frame):
            yield f"DataFrame{place}", record

    return Dataset("DataFrame", (), len(frame), ImageBase(None, image_root), None, read)


def _open_files(
    found: DatasetFiles,
    columns: Columns,
    image_root: str | None,
    credentials: S3Credentials | None,
) -> Dataset:
    base = ImageBase(found.folder, image_root)
    image = columns.image or "image"  # a table that is asked about without images may have some
    folder = found.folder if found.searched else None
    if found.format == "images":
        if image_root is not None:
            raise DatasetError(f"{found.name}: a folder of images takes no image root")

        def read_names() -> Iterator[LocatedRecord]:
            return ((label, {image: label}) for label in found.labels)

        return Dataset(found.name, (), len(found.files), base, folder, read_names)

    json_columns = (image, columns.conversation)
    count = None
    if found.format == "parquet" and len(found.files) <= _COUNTED_FILES:
        count = sum(_count_parquet(file, credentials) for file in found.files)

    def read() -> Iterator[LocatedRecord]:
        for file, label in zip(found.files, found.labels, strict=True):
            opened = partial(_opened, file, credentials)
            yield from _read_file(file, label, opened, found.format, json_columns)

    return Dataset(found.name, (), count, base, folder, read, found.files, credentials)


def _read_file(
    uri: str, label: str, opened: Opened, form: str, json_columns: tuple[str, ...]
) -> Iterator[LocatedRecord]:
    count = 0
    try:
        with opened() as file:
            for place, record in _reader(opened, form, json_columns)(file):
                yield f"{label}{place}", record
                count += 1
    except StoreError as error:
        raise DatasetError(str(error)) from error
    except (ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DatasetError(f"{uri}: cannot be read after {count} rows: {reason}") from error


def _count_parquet(uri: str, credentials: S3Credentials | None) -> int:
    from .table_formats import count_parquet

    try:
        with _opened(uri, credentials) as file:
            return count_parquet(file)
    except ValueError as error:
        raise DatasetError(f"{uri}: {error}") from error


def _reader(opened: Opened, form: str, json_columns: tuple[str, ...]) -> Reader:
    if form == "jsonl":
        return read_json_lines
    if form == "json":
        with opened() as file:
            return read_json_array if is_json_array(file) else read_json_lines
    from .table_formats import read_csv, read_parquet

    if form == "parquet":
        return read_parquet
    separator = "\t" if form == "tsv" else ","
    return partial(read_csv, separator=separator, json_columns=json_columns)


@contextmanager
def _opened(uri: str, credentials: S3Credentials | None) -> Iterator[io.BufferedReader]:
    """Open a file for reading from its start, decompressed as its name says."""
    with ExitStack() as stack, store_errors(uri):
        filesystem, path = open_filesystem(uri, credentials)
        file: Any
        if uri.startswith("s3://"):
            file = io.BufferedReader(stack.enter_context(filesystem.open(path, "rb")))
        else:
            file = stack.enter_context(Path(path).open("rb"))
        match Path(path.lower()).suffix:
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
