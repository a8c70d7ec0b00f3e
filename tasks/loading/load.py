"""Finds a dataset, a URI or a pandas DataFrame, and checks that it can be used."""

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from ..concurrency import MAX_CHUNK_BYTES, TASK_OPTIONS, memory_of
from ..errors import DatasetError, StoreError
from ..images.references import ImageBase
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import open_filesystem
from ..records import Problem
from ..run_names import short_name
from .column_search import ColumnFinder
from .columns import AUTO, Columns, quoted, shown_names
from .dataset import Dataset
from .files import DatasetFiles, find_files
from .json_formats import LocatedRecord
from .tables import count_rows, read_table

if TYPE_CHECKING:
    import pandas as pd

_FREE = frozenset({"json", "jsonl", "webdataset"})
"""Formats in which later records may have other columns than the first one."""

_COUNTED_FILES = 64
"""Maximum number of Parquet files whose footers are read for a row count: more take too long."""


def load_run_name(parameters: dict[str, Any]) -> str:
    """Name of the task run that loads a dataset: `load-capsbench.json`."""
    return f"load-{short_name(parameters['dataset'])}"


@task(name="load", task_run_name=load_run_name, **TASK_OPTIONS)  # type: ignore[arg-type] # takes parameters
def load_dataset(
    dataset: "str | Path | pd.DataFrame",
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    output: str = "",
    image_root: str | None = None,
    max_rows: int | None = None,
    credentials: S3Credentials | None = None,
    samples: int = 1,
    used: Collection[str] | None = None,
) -> Dataset:
    """Find a dataset and check that it can be used; its rows are read later, lazily.

    Args:
        dataset: see `open_dataset`.
        columns: which columns are read and written.
        output: path or URI of the output, which must not be inside the dataset's folder.
        image_root: the only folder its images may come from.
        max_rows: limit of the records read, from the first.
        credentials: S3 credentials; by default those of the environment.
        samples: how many rows each record gives.
        used: the columns that the style uses besides the images; in files of JSON, a few rows may
            lack them. None if it asks the rows' conversations; otherwise only images are read from
            these.

    Raises:
        DatasetError: as `open_dataset` does; or the output column exists already, a column of
            conversations or answers is named but not read, a column is needed but not there, or the
            output is inside the dataset's folder.
    """
    if used is not None:
        _check_no_questions(columns)
    open_with = partial(
        open_dataset, dataset, image_root=image_root, credentials=credentials, used=used
    )
    table = open_with(columns)
    if used is not None and not table.columns.has_embedded_images:
        table = open_with(columns.model_copy(update={"conversation": None}))
    if missing := sorted(set(used or ()) - set(table.names)):
        raise DatasetError(
            f"{table.name} has no column {quoted(missing[0])}, which the style uses; the columns "
            f"are: {shown_names(table.names)}"
        )
    if columns.output in table.names:
        raise DatasetError(
            f"{table.name} already has a column {columns.output!r}; choose another output column"
        )
    if output and table.folder is not None:
        _check_outside(output, table.folder)
    count = table.count if max_rows is None or table.count is None else min(table.count, max_rows)
    return replace(
        table,
        count=None if count is None else count * samples,
        max_rows=max_rows,
        reserved=columns.output,
        samples=samples,
    )


def _check_no_questions(columns: Columns) -> None:
    """Raise if columns are given by name that only a style of the rows' own questions reads."""
    if columns.conversation not in (AUTO, None):
        raise DatasetError(
            f"the conversation column {columns.conversation!r} is not asked by this style: leave "
            "it out, or use style chat"
        )
    if columns.answer is not None:
        raise DatasetError(
            f"the answers in column {quoted(columns.answer)} are to the rows' own questions, which "
            "this style does not ask: leave the column out, or use style chat"
        )


def _check_outside(output: str, folder: str) -> None:
    """Raise if the output is inside the dataset's folder: the next run would take it for data."""
    location = output if "://" in output else str(Path(output).expanduser().absolute())
    if f"{location.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/"):
        raise DatasetError(
            f"the output {output} is inside the dataset's folder {folder}; choose another output"
        )


def open_dataset(
    source: "str | Path | pd.DataFrame",
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    *,
    image_root: str | None = None,
    credentials: S3Credentials | None = None,
    require_images: bool = True,
    used: Collection[str] | None = None,
) -> Dataset:
    """Find a dataset and check, by its first rows, that it can be used.

    Args:
        source: a JSON, CSV, Parquet, Arrow or WebDataset file, a folder of images or of such
            files, or a glob, local or `s3://`; or a pandas DataFrame.
        columns: for a folder of images, the image column gets the path within the folder.
        image_root: the only folder its images may come from.
        credentials: S3 credentials; by default those of the environment.
        require_images: whether the image column must exist, if one is set.
        used: as for `load_dataset`.

    Raises:
        DatasetError: there is no such dataset, it is empty or of an unknown format, its first
            rows cannot be read, it has no image column, or not one that is given by name.
    """
    try:
        root = _check_image_root(image_root)
        if isinstance(source, str | Path):
            files = find_files(str(source), credentials)
            dataset, free = _open_files(files, columns, root, credentials), files.format in _FREE
        elif hasattr(source, "itertuples"):
            dataset, free = _open_frame(source, columns, root), False
        else:
            raise DatasetError(
                f"a {type(source).__name__} is not read directly: give a path or a DataFrame, such "
                "as that of to_pandas(), or of pandas.DataFrame(rows); of a DatasetDict, one split"
            )
    except StoreError as error:
        raise DatasetError(str(error)) from error
    return _find_columns(dataset, free, require_images, used)


def _find_columns(
    dataset: Dataset, format_is_free: bool, require_images: bool, used: Collection[str] | None
) -> Dataset:
    """Find the columns that are not given by name, in the first rows, and check the others."""
    finder = ColumnFinder(dataset.columns, format_is_free)
    problem: Problem | None = None
    rows = size = 0
    with closing(dataset.records()) as records:
        for _, record in records:
            rows += 1
            if isinstance(record, Problem):
                problem = problem or record
            else:
                finder.add(record)
                size += memory_of(record)
            if finder.is_done(rows) or size >= MAX_CHUNK_BYTES:
                break
    if not rows:
        raise DatasetError(f"{dataset.name}: has no rows")
    if not finder.names and problem:
        reason = f"none of the first {rows} rows can be read: {problem.message}"
        raise DatasetError(f"{dataset.name}: {reason}")
    columns = finder.found(dataset.name, rows, require_images=require_images)
    return replace(
        dataset,
        names=tuple(finder.names),
        columns=columns,
        count=None if finder.has_questions else dataset.count,
        notes=(*dataset.notes, finder.note(columns, used)),
        given=dataset.columns,
    )


def _check_image_root(image_root: str | None) -> str | None:
    if not image_root:
        return None
    _, path = open_filesystem(image_root)
    if image_root.lower().startswith("s3://"):
        return f"s3://{path}"
    if not Path(path).is_dir():
        raise DatasetError(f"{image_root}: the image root is not a folder")
    return path


def _open_frame(frame: "pd.DataFrame", columns: Columns, image_root: str | None) -> Dataset:
    from .csv_format import find_duplicate
    from .table_formats import read_frame

    duplicate = find_duplicate(map(str, frame.columns))
    if duplicate is not None:
        raise DatasetError(f"the DataFrame has two columns named {duplicate!r}; rename one")

    def read() -> Iterator[LocatedRecord]:
        for position, record in read_frame(frame):
            yield f"DataFrame{position}", record

    return Dataset(
        name="DataFrame",
        names=(),
        columns=columns,
        count=len(frame),
        base=ImageBase(None, image_root),
        folder=None,
        sources=(),
        _read=read,
    )


def _open_files(
    files: DatasetFiles,
    columns: Columns,
    image_root: str | None,
    credentials: S3Credentials | None,
) -> Dataset:
    count: int | None = None
    if files.format == "images":
        if image_root is not None:
            raise DatasetError(f"{files.name}: a folder of images takes no image root")
        count = len(files.files)
        image_column = "image" if columns.image in (None, AUTO) else columns.image

        def read() -> Iterator[LocatedRecord]:
            return ((label, {image_column: label}) for label in files.labels)

    else:
        if files.format == "parquet" and len(files.files) <= _COUNTED_FILES:
            count = sum(count_rows(file, credentials) for file in files.files)

        def read() -> Iterator[LocatedRecord]:
            for file, label in zip(files.files, files.labels, strict=True):
                yield from read_table(file, label, files.format, credentials)

    return Dataset(
        name=files.name,
        names=(),
        columns=columns,
        count=count,
        base=ImageBase(files.folder, image_root),
        folder=files.folder if files.searched else None,
        sources=(files.folder,) if files.searched else files.files,
        _read=read,
        notes=files.notes,
    )
