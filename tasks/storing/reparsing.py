"""Parses stored completions that this parser has no part of, without sending requests."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from prefect import get_run_logger, task

from ..concurrency import TASK_OPTIONS, prefetch
from ..generating.cache import read_completions
from ..object_store.store import ObjectStore
from ..parsing.parse import ParsedBatch, ParseSettings, parse_completions
from .ledger import Ledger
from .store import write_part

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

    def reparse(batch: str) -> tuple[str, ParsedBatch] | None:
        if (found := read_completions(completions, batch, logger)) is None:
            return None
        parsed = parse_completions(found, parsing)
        return write_part(output, ledger.folder, batch, parsed.rows, parsed.time), parsed

    stored = 0
    with ThreadPoolExecutor(_READERS) as pool:
        for _, done in prefetch(pool, reparse, batches, _READERS):
            if (result := done.result()) is not None:
                name, parsed = result
                ledger.add(name, parsed.rows, parsed.time)
                stored += 1
    return stored
