"""Stored completions that were never parsed, or by another parser: parse them, ask nothing."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from prefect import get_run_logger, task

from ..concurrency import TASK_OPTIONS, prefetch
from ..generating.cache import read_completions
from ..object_store.store import ObjectStore
from ..parsing.parse import ParsedBatch, ParseSettings, parse_completions
from .ledger import Ledger
from .store import write_part

_READ_AT_ONCE = 8


@task(name="adopt", **TASK_OPTIONS)
def reparse_completions(
    completions: ObjectStore,
    batches: Iterable[str],
    output: ObjectStore,
    ledger: Ledger,
    parsing: ParseSettings,
) -> int:
    """Parse and store batches whose completions are stored; returns how many.

    A run that was killed leaves completions without a part; a parser that has changed finds only
    parts of the old one. A corrupted object is skipped with a warning: its rows are asked again.
    """
    logger = get_run_logger()  # the threads below have none

    def adopt(batch: str) -> tuple[str, ParsedBatch] | None:
        if (found := read_completions(completions, batch, logger)) is None:
            return None
        parsed = parse_completions(found, parsing)
        return write_part(output, ledger.folder, batch, parsed.rows, parsed.time), parsed

    stored = 0
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for _, done in prefetch(pool, adopt, batches, _READ_AT_ONCE):
            if (adopted := done.result()) is not None:
                name, parsed = adopted
                ledger.add(name, parsed.rows, parsed.time)
                stored += 1
    return stored
