"""Stores the rows of a batch, parsed from its completions, as one part of the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from prefect import task

from ..concurrency import TASK_OPTIONS
from ..generating.completions import Completions
from ..object_store.store import ObjectStore
from ..parsing.parse import QA_PAIRS, ParseSettings, parse_completions
from ..records import Answered, Batch, FinishedRow
from .layout import PassFolder, part_name
from .parts import (
    milliseconds,
    open_part,
    part_writer,
    reported_corruption,
    rows_of,
    rows_table,
)


def write_part(
    store: ObjectStore,
    folder: str,
    batch_key: str,
    rows: Sequence[FinishedRow],
    written: float | None = None,
) -> str:
    """Store the answered and quarantined rows of a finished batch as one part.

    Args:
        store: the output.
        folder: folder of the parts.
        batch_key: key of the batch.
        rows: the rows; no key may occur twice.
        written: seconds since 1970 (UTC), by default now. Of two stored answers to a row, the one
            written later counts.

    Returns:
        The name of the part.
    """
    sink = BytesIO()
    with part_writer(sink) as writer:
        writer.write_table(rows_table(rows, milliseconds(written)))
    data = sink.getvalue()
    name = part_name(folder, batch_key, data)
    store.write(name, data)
    return name


def read_part(store: ObjectStore, name: str) -> list[FinishedRow]:
    """The rows of a part, in order.

    Raises:
        ObjectCorruptedError: it is corrupted.
        StoreError: it cannot be read.
    """
    with reported_corruption(store, name):
        part = open_part(BytesIO(store.read(name)))
        return list(rows_of(part.read(use_threads=False)))


@dataclass(frozen=True)
class StoredBatch:
    """A finished batch.

    Attributes:
        part: name of its part.
        rows: its rows in order, answered or quarantined.
        time: when the last of their replies was received, in seconds since 1970 (UTC).
    """

    part: str
    rows: Sequence[FinishedRow]
    time: float

    @property
    def answered(self) -> list[Answered]:
        """The answered rows."""
        return [row for row in self.rows if isinstance(row, Answered)]


def store_completions(
    completions: Completions,
    batch_key: str,
    parsing: ParseSettings,
    store: ObjectStore,
    folder: str,
) -> StoredBatch:
    """Parse the replies to a batch, and store its rows as one part in a folder of the output."""
    rows = parse_completions(completions, parsing)
    part = write_part(store, folder, batch_key, rows, completions.time)
    return StoredBatch(part, rows, completions.time)


@task(name="parse-and-store", task_run_name="parse-and-store-{batch}", **TASK_OPTIONS)
def parse_and_store(
    batch: Batch,
    completions: Completions | Mapping[str, Any],
    store: ObjectStore,
    parsing: ParseSettings = QA_PAIRS,
    folder: str = "",
) -> StoredBatch:
    """Parse the result of `generate_batch`, and store the rows of the batch as one part.

    Args:
        batch: the batch.
        completions: its completions, which are plain JSON if they were stored.
        store: the output.
        parsing: how they are parsed.
        folder: folder of the parts; by default that of the main pass and this parser.

    Raises:
        RecordCorruptedError: `completions` is something else.
        StoreError: the output cannot be written.
    """
    folder = folder or PassFolder().parts(parsing.label)
    return store_completions(Completions.load(completions), batch.key, parsing, store, folder)
