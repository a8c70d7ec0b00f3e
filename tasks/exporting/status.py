"""Where an output stands: its runs, also those that go on just now, and what is stored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..object_store.store import ObjectStore
from ..runs.records import RunRecord, last_completed, read_runs, unfinished_runs
from ..storing.layout import COMPLETIONS, KEYS, PARTS, RUNS, PassFolder, read_manifest
from ..storing.ledger import Ledger, LedgerCounts
from .export import ALWAYS_EXPORTED, QA_JSON

EXPORTS = (*ALWAYS_EXPORTED, QA_JSON)


@dataclass(frozen=True)
class Objects:
    """How many objects, and their bytes together."""

    count: int
    bytes: int


@dataclass(frozen=True)
class OutputStatus:
    """Where an output stands.

    Attributes:
        last: the last completed run.
        unfinished: the others that count, see `unfinished_runs`.
        stored: rows that are stored, by label of the parser's configuration; of those that the
            runs above have.
        unparsed: stored completions that none of these configurations has parsed.
        objects: what there is, by kind.
    """

    last: RunRecord | None
    unfinished: Sequence[RunRecord]
    stored: Mapping[str, LedgerCounts]
    unparsed: int
    objects: Mapping[str, Objects]


def output_status(store: ObjectStore) -> OutputStatus | None:
    """Tell where an output stands; None where there is none yet.

    Raises:
        StoreError: it cannot be read, is corrupted or has another layout.
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
        len(completions - parsed),
        _by_kind(sizes),
    )


def in_folder(names: Iterable[str], folder: str) -> list[str]:
    """The objects of a folder, among others."""
    return [name for name in names if name.startswith(f"{folder}/")]


def _by_kind(sizes: Mapping[str, int]) -> dict[str, Objects]:
    kinds: dict[str, list[int]] = {
        kind: [] for kind in (COMPLETIONS, PARTS, KEYS, RUNS, "exports", "other")
    }
    for name, size in sizes.items():
        first, *rest = name.split("/")
        # Of a pass the second folder says what an object is.
        kind = "exports" if name in EXPORTS else rest[0] if len(rest) > 1 else first
        kinds.get(kind, kinds["other"]).append(size)
    return {kind: Objects(len(found), sum(found)) for kind, found in kinds.items() if found}
