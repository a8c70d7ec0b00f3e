"""The images of the rows that a report shows, as thumbnails."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DatasetError, StoreUnavailableError
from ..exporting.embedded import image_names
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase, image_refs
from ..images.thumbnails import LARGE_SIDE, SIDE, SMALL_SIDE, thumbnails
from ..images.web_addresses import display_url
from ..loading.columns import Columns, image_value
from ..records import Row, RowError

IMAGES_SECONDS = 20.0
"""Timeout for finding the image references of all rows, and again for reading those found by then.

Images that take longer, for example from a slow server, are left out.
"""

MAX_IMAGES = 4
"""Images shown per row."""

_MAX_NAME = 120
"""Characters shown of an image's name."""

_ROWS_PER_CLOCK_CHECK = 1024


@dataclass(frozen=True, slots=True)
class SampledImage:
    """An image of a sampled row.

    Attributes:
        name: its path or URL in the dataset, without secrets; or a name for embedded bytes.
        thumbnail: `data:` URI of a small JPEG file; empty if it could not be read.
        large: the same for an enlarged image.
    """

    name: str
    thumbnail: str = ""
    large: str = ""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The dataset that images are read from, as given by the caller.

    Never what an output says: whoever wrote it could have any file of this machine shown.

    Attributes:
        rows: reads the rows from the start.
        columns: which of their columns hold images.
        base: what relative image paths are resolved against.
    """

    rows: Callable[[], Iterator[Row]]
    columns: Columns
    base: ImageBase


class RowImages:
    """Thumbnails of the images of a few rows, made in the reader's threads.

    Args:
        source: where the images are.
        reader: reads them.
        images: limits on what is decoded.
    """

    def __init__(self, source: ImageSource, reader: ImageReader, images: ImageSettings) -> None:
        self._source = source
        self._reader = reader
        self._images = images
        self._names: dict[int, Sequence[str]] = {}
        self._futures: dict[int, Future[Sequence[SampledImage]]] = {}

    def watch(self, rows: Iterable[Row], wanted: Collection[int]) -> Iterator[Row]:
        """Let rows pass that are read for another purpose, and start on those at some positions."""
        for row in rows:
            if row.index in wanted and row.index not in self._names:
                self._start(row)
            yield row

    def of(self, where_by_row: Mapping[int, str | None]) -> Mapping[int, Sequence[SampledImage]]:
        """The images of rows at these positions; those that time out have only their name.

        The dataset is read for rows that have not passed. Of these a row is left out if it is not
        where it was.
        """
        self._read({row: where for row, where in where_by_row.items() if row not in self._names})
        futures = {self._futures[row]: row for row in where_by_row if row in self._futures}
        done, pending = wait(futures, IMAGES_SECONDS)
        for future in pending:
            future.cancel()
        names = {
            row: [SampledImage(_shown_name(name)) for name in self._names[row]]
            for row in futures.values()
        }
        return names | {futures[future]: future.result() for future in done}

    def _read(self, where_by_row: Mapping[int, str | None]) -> None:
        """Read the dataset up to the last of these rows, or until the deadline."""
        if not where_by_row:
            return
        deadline, last = time.monotonic() + IMAGES_SECONDS, max(where_by_row)
        with (
            suppress(DatasetError),  # moved or changed: these rows are shown without images
            closing(self._source.rows()) as rows,  # type: ignore[type-var]
        ):
            for row in rows:
                if row.index in where_by_row and where_by_row[row.index] in (None, row.where):
                    self._start(row)
                if row.index >= last or _deadline_passed(row.index, deadline):
                    return

    def _start(self, row: Row) -> None:
        columns, base = self._source.columns, self._source.base
        self._names[row.index] = names = image_names(row, columns)
        with suppress(RowError):
            value = image_value(row.record, columns)
            self._futures[row.index] = self._reader.executor.submit(
                sampled_images, value, names, self._reader, self._images, base
            )


def sampled_images(
    value: Any, names: Sequence[str], reader: ImageReader, images: ImageSettings, base: ImageBase
) -> Sequence[SampledImage]:
    """The images of an image column's value, one per name; the first of them have thumbnails."""
    shown = [SampledImage(_shown_name(name)) for name in names]
    with suppress(RowError):
        refs = image_refs(value, base)
        side, large_side = (SIDE, LARGE_SIDE) if len(refs) == 1 else (SMALL_SIDE, LARGE_SIDE // 2)
        for number, ref in enumerate(refs[: min(len(shown), MAX_IMAGES)]):
            with suppress(RowError, StoreUnavailableError):
                with reader.reading(ref) as data:
                    small, large = thumbnails(data, images, (side, large_side))
                shown[number] = replace(shown[number], thumbnail=small, large=large or small)
    return shown


def _shown_name(name: str) -> str:
    """A name for people: the query of a URL may be a secret; of a long path, the end counts."""
    if name[:8].lower().startswith(("http://", "https://")):
        name = display_url(name)
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


def _deadline_passed(number: int, deadline: float) -> bool:
    return number % _ROWS_PER_CLOCK_CHECK == 0 and time.monotonic() > deadline
