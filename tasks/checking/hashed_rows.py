"""The images of rows, read and hashed once each, within the limits that a run has on images."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeAlias

from ...serving.printable import printable
from ..concurrency import prefetch
from ..errors import DatasetError
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase
from ..loading.columns import Columns, read_value
from ..loading.conversations import read_conversation
from ..object_store.store import ObjectStore
from ..prompting.row_images import row_images
from ..records import ImageRef, Kind, Row, RowError
from .check import CheckedPair
from .image_hashes import Array, hash_image
from .known_hashes import DATASET_HASHES, KnownHashes

_AHEAD = 32
"""Rows whose images are read ahead, each by a thread."""

_MAX_SHOWN = 500
"""Characters of a message about a row."""

_LOGGER = logging.getLogger("prefect_imageqa.checking")


@dataclass(frozen=True)
class ImageSource:
    """Rows, and how their images are read.

    Attributes:
        rows: reads the rows from the start.
        columns: which of their columns hold images.
        base: what relative image paths are resolved against.
        reader: reads the images.
        limits: on what is decoded.
    """

    rows: Callable[[], Iterable[Row]]
    columns: Columns
    base: ImageBase
    reader: ImageReader
    limits: ImageSettings


@dataclass(frozen=True)
class HashedRows:
    """The images of some rows.

    Attributes:
        hashes: an array of `image_hashes.HASH`: those of the rows' images, among others.
        images: for each row the numbers of its images in that array; None if one of them cannot be
            read.
    """

    hashes: Array
    images: Sequence[tuple[int, ...] | None]


HashRows: TypeAlias = Callable[[Sequence[int]], HashedRows]
"""Hashes the images of the rows at these positions of the dataset, in ascending order."""


def first_rows(pairs: Iterable[CheckedPair]) -> dict[str, int]:
    """The first row with each digest of images that pairs are about, in ascending order."""
    rows: dict[str, int] = {}
    for checked in pairs:
        if checked.images:
            rows.setdefault(checked.images, checked.row)
    return rows


def row_hasher(source: ImageSource, store: ObjectStore) -> HashRows:
    """Hashes the images of a dataset's rows; the hashes are remembered in its output.

    Args:
        source: the dataset of the output.
        store: the output.
    """

    def hash_rows(wanted: Sequence[int]) -> HashedRows:
        known, unreadable = KnownHashes.read(store, DATASET_HASHES), Unreadable()
        images: list[tuple[int, ...] | None] = []
        try:
            positions = frozenset(wanted)
            rows = (row for row in source.rows() if row.index in positions)
            for row, found in hashed(islice(rows, len(wanted)), source, known):
                if isinstance(found, RowError):
                    unreadable.add(row, found)
                images.append(None if isinstance(found, RowError) else found)
        finally:
            known.save()
        unreadable.warn("the dataset")
        if len(images) < len(wanted):
            raise DatasetError("the dataset has fewer rows than the pairs are about: run again")
        return HashedRows(known.hashes, images)

    return hash_rows


@dataclass
class Unreadable:
    """Rows whose images cannot be read.

    Attributes:
        count: how many.
        first: the place of the first one, and what is wrong with it.
    """

    count: int = 0
    first: str = ""

    def add(self, row: Row, error: RowError) -> None:
        """Count a row."""
        self.count += 1
        self.first = self.first or printable(f"{row.where}: {error}", _MAX_SHOWN)

    def warn(self, name: str) -> None:
        """Log a warning, if there are any."""
        if self.count:
            _LOGGER.warning(
                "%s has %s rows with images that cannot be read, so copies of them are not found; "
                "the first, %s",
                name,
                f"{self.count:,}",
                self.first,
            )


def hashed(
    rows: Iterable[Row], source: ImageSource, known: KnownHashes
) -> Iterator[tuple[Row, tuple[int, ...] | RowError]]:
    """Rows with the numbers of their images; or with why one of them cannot be read.

    Args:
        rows: some of the source's.
        source: how images are read.
        known: the hashes so far, to which new ones are added.

    Raises:
        StoreUnavailableError: the images' S3 server did not answer for as long as a run waits.
    """
    hash_row = partial(_hash_row, source=source, known=known)
    for row, future in prefetch(source.reader.executor, hash_row, rows, _AHEAD):
        try:
            found = future.result()
        except RowError as error:
            yield row, error
        else:
            yield row, tuple(known.add(identity, record) for identity, record in found)


def _hash_row(row: Row, source: ImageSource, known: KnownHashes) -> list[tuple[str, bytes]]:
    """The images of a row, each with its identity and its hash; without one if it is known."""
    refs = _refs(row, source)
    source.reader.preload_digests(refs)
    found = []
    for ref in refs:
        identity, record = source.reader.identify(ref), b""
        if known.number(identity) is None:
            with source.reader.reading(ref) as data:
                record = hash_image(data, source.limits)
        found.append((identity, record))
    return found


def _refs(row: Row, source: ImageSource) -> tuple[ImageRef, ...]:
    columns = source.columns
    if row.problem:
        raise RowError(row.problem.kind, row.problem.message)
    turns = read_conversation(read_value(row.record, columns.conversation))
    try:
        return row_images(row.record, turns, columns, source.base, source.limits.max_images)
    except RowError as error:
        if error.problem.kind is Kind.NO_IMAGE:
            return ()
        raise
