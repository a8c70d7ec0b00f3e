"""Parses stored completions that this parser has no part of, without sending requests."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from prefect import get_run_logger, task

from ..concurrency import TASK_OPTIONS, prefetch
from ..generating.cache import read_completions
from ..object_store.store import ObjectStore
from ..parsing.parse import ParseSettings
from .ledger import Ledger
from .store import StoredBatch, store_completions

_READERS = 8


@task(name="reparse", **TASK_OPTIONS)
def reparse_completions(
    completions: ObjectStore,
    batches: Iterable[str],
    output: ObjectStore,
    ledger: Ledger,
    parsing: ParseSettings,
) -> int:
    """Parse batches whose completions are stored, and store the parts; returns how many.

    Completions have no part after a run that was killed, or if the parser has changed. A corrupted
    object is skipped with a warning: its rows are sent to the model again.
    """
    logger = get_run_logger()  # not available in the threads below

    def reparse(batch: str) -> StoredBatch | None:
        if (found := read_completions(completions, batch, logger)) is None:
            return None
        return store_completions(found, batch, parsing, output, ledger.folder)

    count = 0
    with ThreadPoolExecutor(_READERS) as pool:
        for _, done in prefetch(pool, reparse, batches, _READERS):
            if (stored := done.result()) is not None:
                ledger.add(stored.part, stored.rows, stored.time)
                count += 1
    return count
