"""Stores a parsed batch as one part of the output."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from prefect import task

from ..concurrency import TASK_OPTIONS
from ..object_store.store import ObjectStore
from ..parsing.parse import QA_PAIRS, ParsedBatch
from ..records import Batch, FinishedRow
from .layout import PassFolder, part_name
from .parts import milliseconds, part_writer, rows_table


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


@dataclass(frozen=True)
class StoredBatch:
    """A finished batch.

    Attributes:
        part: name of its part.
        parsed: its rows.
    """

    part: str
    parsed: ParsedBatch


_DEFAULT_FOLDER = PassFolder().parts(QA_PAIRS.label)


@task(name="store", task_run_name="store-{batch}", **TASK_OPTIONS)
def store_batch(
    batch: Batch, parsed: ParsedBatch, store: ObjectStore, folder: str = _DEFAULT_FOLDER
) -> StoredBatch:
    """Store a parsed batch; see `write_part`."""
    part = write_part(store, folder, batch.key, parsed.rows, parsed.time)
    return StoredBatch(part, parsed)
