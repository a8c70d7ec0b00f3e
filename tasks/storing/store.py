"""A parsed batch -> one part in the output."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from prefect import task

from ..concurrency import TASK_OPTIONS
from ..object_store.store import ObjectStore
from ..parsing.parse import ParsedBatch
from ..records import Batch, FinishedRow
from .layout import PARTS, part_name
from .parts import milliseconds, part_writer, rows_table


def write_part(
    store: ObjectStore,
    folder: str,
    batch_key: str,
    rows: Sequence[FinishedRow],
    written: float | None = None,
) -> str:
    """Store the answered and failed rows of a finished batch as one object; returns its name.

    No key stands there twice. Of two answers to one row the later counts, by when they were
    written, in seconds since 1970 (UTC), by default now.
    """
    sink = BytesIO()
    with part_writer(sink) as writer:
        writer.write_table(rows_table(rows, milliseconds(written)))
    data = sink.getvalue()
    name = part_name(folder, batch_key, data)
    store.write(name, data)
    return name


@dataclass(frozen=True)
class StoredBatch:
    """A batch that is finished.

    Attributes:
        part: name of its part.
        parsed: its rows.
    """

    part: str
    parsed: ParsedBatch


@task(name="store", task_run_name="store-{batch}", **TASK_OPTIONS)
def store_batch(
    batch: Batch, parsed: ParsedBatch, store: ObjectStore, folder: str = PARTS
) -> StoredBatch:
    """Store a parsed batch; see `write_part`."""
    part = write_part(store, folder, batch.key, parsed.rows, parsed.time)
    return StoredBatch(part, parsed)
