"""The status of an output: its runs, including those in progress, and what is stored."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import ObjectMissingError
from ..object_store.store import ObjectStore
from ..runs.run_record import RunRecord, last_completed, read_runs, unfinished_runs
from ..storing.key_index import KEY
from ..storing.layout import (
    ALL_PAIRS,
    ANSWERED_PAIRS,
    CHECKS,
    COMPLETIONS,
    FILTERED,
    JUDGED,
    KEYS,
    PARTS,
    RUNS,
    PassFolder,
    read_manifest,
)
from ..storing.ledger import Ledger, LedgerCounts
from ..storing.row_keys import read_keys
from .export import ALWAYS_EXPORTED
from .qa_json import QA_JSON
from .trainers.export_record import EXPORT

EXPORTS = (*ALWAYS_EXPORTED, QA_JSON, FILTERED)


@dataclass(frozen=True)
class Objects:
    """Number of objects, and their total size."""

    count: int
    bytes: int


@dataclass(frozen=True)
class OutputStatus:
    """The status of an output.

    Attributes:
        last: the last completed run.
        unfinished: runs in progress or not completed, see `unfinished_runs`.
        stored: counts of the stored rows by parser label, for the parsers of the runs above.
        others: the same without the rows of the last completed run: rows of other datasets, or of
            other models, prompts and settings.
        unparsed: number of stored completions that none of these parsers has parsed.
        objects: objects by kind.
    """

    last: RunRecord | None
    unfinished: Sequence[RunRecord]
    stored: Mapping[str, LedgerCounts]
    others: Mapping[str, LedgerCounts]
    unparsed: int
    objects: Mapping[str, Objects]


def output_status(store: ObjectStore) -> OutputStatus | None:
    """Read the status of an output; None if there is no output yet.

    Raises:
        StoreError: the output cannot be read, is corrupted or has another layout.
    """
    if read_manifest(store) is None:
        return None
    last = last_completed(store)
    unfinished = unfinished_runs(read_runs(store))
    labels = dict.fromkeys(run.parser for run in [*unfinished, *([last] if last else [])])
    folder = PassFolder()
    ledgers = {label: Ledger.read(store, folder.parts(label)) for label in labels}
    sizes = store.sizes()
    parsed: set[str] = set().union(*(ledger.batches for ledger in ledgers.values()))
    stored = in_folder(sizes, folder.completions)
    completions = {name.removeprefix(f"{folder.completions}/") for name in stored}
    return OutputStatus(
        last,
        unfinished,
        {label: ledger.counts() for label, ledger in ledgers.items()},
        {label: _others(store, ledger, last, label) for label, ledger in ledgers.items()},
        len(completions - parsed),
        _by_kind(sizes),
    )


def _others(
    store: ObjectStore, ledger: Ledger, last: RunRecord | None, parser: str
) -> LedgerCounts:
    """Counts of the rows that are not of the last completed run."""
    keys = np.empty(0, KEY)
    if last is not None and last.parser == parser:
        with suppress(ObjectMissingError):  # `verify` reports that
            keys = np.unique(read_keys(store, last.keys))
    return ledger.counts_without(keys)


def in_folder(names: Iterable[str], folder: str) -> list[str]:
    """Of these object names, those in a folder."""
    return [name for name in names if name.startswith(f"{folder}/")]


def _by_kind(sizes: Mapping[str, int]) -> dict[str, Objects]:
    kinds: dict[str, list[int]] = {
        kind: [] for kind in (COMPLETIONS, PARTS, KEYS, RUNS, "exports", "other")
    }
    for name, size in sizes.items():
        first, *rest = name.split("/")
        if first == CHECKS and len(rest) > 1:
            rest.pop(0)
        # Objects of a pass are in <pass>/<kind>/.
        is_export = name in (*EXPORTS, ANSWERED_PAIRS, ALL_PAIRS, JUDGED) or first == EXPORT
        kind = "exports" if is_export else rest[0] if len(rest) > 1 else first
        kinds.get(kind, kinds["other"]).append(size)
    return {kind: Objects(len(group), sum(group)) for kind, group in kinds.items() if group}
