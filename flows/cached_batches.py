"""Batches of earlier runs whose completions are stored, but not parsed yet."""

from prefect import get_run_logger

from ..tasks.concurrency import quote
from ..tasks.errors import ObjectCorruptedError
from ..tasks.object_store.store import ObjectStore
from ..tasks.parsing.parse import ParseSettings
from ..tasks.storing.layout import EXPORTED, PassFolder, parser_labels
from ..tasks.storing.ledger import Ledger
from ..tasks.storing.reparsing import reparse_completions


def parse_cached(
    output: ObjectStore,
    completions: ObjectStore,
    ledger: Ledger,
    parsing: ParseSettings,
    shared_by: PassFolder | None,
) -> None:
    """Parse them, and enter their rows in the ledger.

    `shared_by` is the folder of the pass, if the cache also has batches of other outputs.
    """
    if shared_by is None:
        batches = set(completions.list())
    else:
        batches = _batches_of_other_parsers(output, shared_by, ledger)
    if unparsed := sorted(batches - ledger.batches):
        output.remove(EXPORTED)  # a parser may be another one in spite of its name
        parsed = reparse_completions(
            completions, unparsed, quote(output), quote(ledger), quote(parsing)
        )
        get_run_logger().info("parsed %s cached batches that had not been parsed", parsed)


def _batches_of_other_parsers(output: ObjectStore, folder: PassFolder, ledger: Ledger) -> set[str]:
    """Keys of the batches that this output has parts of, written by other parsers."""
    batches: set[str] = set()
    names = output.list(folder.all_parts)
    for other in {folder.parts(label) for label in parser_labels(names, folder)}:
        try:
            if other != ledger.folder:
                batches |= Ledger.read(output, other).batches
        except ObjectCorruptedError as error:
            get_run_logger().warning("%s", error)  # not fatal: their rows stay pending
    return batches
