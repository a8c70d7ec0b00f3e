"""Benchmark sets that training data must not contain: their images and questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...serving.printable import printable
from ..errors import DatasetError
from ..images.file_digests import FileDigests
from ..images.prepare import ImageSettings
from ..images.reader import ImageReader
from ..loading.columns import Columns, read_value, shown_names
from ..loading.conversations import IMAGE_PLACEHOLDER, read_conversation
from ..loading.dataset import Dataset
from ..loading.load import open_dataset
from ..object_store.credentials import S3Credentials
from ..object_store.store import ObjectStore
from ..records import Row, RowError
from .hashed_rows import ImageSource, Unreadable, hashed
from .image_hashes import HASH, Array
from .known_hashes import BENCHMARK_HASHES, KnownHashes
from .texts import form_digest

_MAX_PLACE = 200
"""Characters of a place."""

_MAX_LINES = 20
"""Lines of a question that are read; it may be followed by options and instructions."""


@dataclass(frozen=True)
class Benchmarks:
    """What benchmark sets have.

    Attributes:
        hashes: an array of `image_hashes.HASH`, of their images among others.
        places: where each image is, such as "mmbench.parquet:17", by its number in that array.
        asked: number of an image with the digest of a question about it, see `form_digest`.
        questions: the benchmark that asks a question, by this digest.
    """

    hashes: Array
    places: dict[int, str] = field(default_factory=dict)
    asked: set[tuple[int, int]] = field(default_factory=set)
    questions: dict[int, str] = field(default_factory=dict)


def read_benchmarks(
    sources: Sequence[str],
    limits: ImageSettings,
    store: ObjectStore,
    credentials: S3Credentials | None = None,
) -> Benchmarks:
    """Read the images and questions of benchmark sets.

    Images are embedded, or come from the folder or bucket of their benchmark, or from the web.

    Args:
        sources: path or URI of each, a folder of images or a table with images.
        limits: on their images.
        store: the output, which remembers the hashes of their images.
        credentials: S3 credentials; by default those of the environment.

    Raises:
        DatasetError: a benchmark cannot be read, or has no image that can be read.
        StoreError: the output cannot be read or written.
    """
    tables = [open_benchmark(source, credentials) for source in sources]
    known = KnownHashes.read(store, BENCHMARK_HASHES)
    found = Benchmarks(np.empty(0, HASH))
    try:
        for table in tables:
            _read(table, limits, credentials, known, found)
    finally:
        known.save()
    return replace(found, hashes=known.hashes)


def open_benchmark(source: str, credentials: S3Credentials | None = None) -> Dataset:
    """Find a benchmark set and its columns.

    Raises:
        DatasetError: it cannot be read, or has no images.
    """
    try:
        table = open_dataset(source, Columns(), credentials=credentials, require_images=False)
    except DatasetError as error:
        raise DatasetError(f"benchmark {error}") from None
    if table.columns.image is None:
        raise DatasetError(
            f"benchmark {source}: has no column of images; its columns are: "
            f"{shown_names(table.names)}"
        )
    return replace(table, base=replace(table.base, is_confined=True))


def _read(
    table: Dataset,
    limits: ImageSettings,
    credentials: S3Credentials | None,
    known: KnownHashes,
    found: Benchmarks,
) -> None:
    """Add what a benchmark has to what was found in others."""
    unreadable, images_read = Unreadable(), 0
    with ImageReader(
        limits.max_file_bytes,
        credentials=credentials,
        digests=FileDigests(),
        root=table.base.folder,
    ) as reader:
        source = ImageSource(table.rows, table.columns, table.base, reader, limits)
        for row, images in hashed(table.rows(), source, known):
            forms = set(_forms(row, table.columns))
            for form in forms:
                found.questions.setdefault(form, table.name)
            if isinstance(images, RowError):
                unreadable.add(row, images)
                continue
            images_read += len(images)
            for image in images:
                found.places.setdefault(image, _place(table.name, row.where))
                found.asked.update((image, form) for form in forms)
    if not images_read:
        raise DatasetError(
            f"benchmark {table.name}: none of its rows has an image that can be read"
            + (f"; the first, {unreadable.first}" if unreadable.count else "")
        )
    unreadable.warn(f"benchmark {table.name}")


def _forms(row: Row, columns: Columns) -> Iterator[int]:
    """Digests of the questions of a row, also without the lines before and after each of them."""
    try:
        turns = read_conversation(read_value(row.record, columns.conversation))
    except RowError:
        return
    for turn in turns:
        if turn.role == "user" and (text := turn.text.replace(IMAGE_PLACEHOLDER, " ").strip()):
            yield form_digest(text)
            lines = text.split("\n", _MAX_LINES)[:_MAX_LINES]
            yield from (form_digest(line) for line in lines if line.rstrip().endswith("?"))


def _place(name: str, where: str) -> str:
    """Where an image is: the file of a row, or its benchmark's folder with the file in it."""
    return printable(where if where.startswith(name) else f"{name}/{where}", _MAX_PLACE)
