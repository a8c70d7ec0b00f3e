"""Stored completions that were never parsed, or by another parser: parse them, ask nothing."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from prefect import get_run_logger, task

from .batch_cache import check_completions
from .errors import ObjectMissingError, RecordDamagedError, RecordRefusedError
from .ledger import Ledger
from .object_store import ObjectStore
from .parsing import ParsedBatch, ParseSettings, parse_completions
from .steps import STEP, ahead
from .storing import write_part

_READ_AT_ONCE = 8


@task(name="adopt", **STEP)
def adopt_completions(
    completions: ObjectStore,
    batches: Iterable[str],
    output: ObjectStore,
    ledger: Ledger,
    parsing: ParseSettings,
) -> int:
    """Parse and store batches whose completions are stored, and enter them in the ledger.

    A run that was killed leaves completions without a part; a parser that has changed finds only
    parts of the old one. A damaged object is passed over with a warning: its rows are asked again.

    Returns:
        How many batches were stored.

    Raises:
        StoreError: the completions cannot be read, or the output cannot be written.
    """
    logger = get_run_logger()  # the threads below have none

    def adopt(batch: str) -> tuple[str, ParsedBatch] | None:
        try:
            found = check_completions(batch, completions.read(batch))
        except ObjectMissingError:
            return None  # cleaned away meanwhile
        except (RecordRefusedError, RecordDamagedError) as error:
            where = completions.uri_of(batch)
            logger.warning("%s: %s; its rows are asked again", where, error)
            return None
        parsed = parse_completions(found, parsing)
        return write_part(output, ledger.folder, batch, parsed.rows, parsed.time), parsed

    stored = 0
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for _, done in ahead(pool, adopt, batches, _READ_AT_ONCE):
            if (adopted := done.result()) is not None:
                name, parsed = adopted
                ledger.add(name, parsed.rows, parsed.time)
                stored += 1
    return stored
