"""Which objects of an output no configuration needs any more, and their removal.

A row that several configurations share keeps its objects as long as one of these is kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..serving.types import Completion
from .batch_cache import check_completions
from .completions import CompletionsDamagedError
from .errors import StoreError
from .key_index import PLACE, Array, KeyIndex, pack_keys
from .ledger import Ledger
from .object_store import ObjectStore
from .outputs import (
    ALIVE_SECONDS,
    Run,
    in_folder,
    last_completed,
    read_runs,
    require_output,
    unfinished_runs,
)
from .result_records import RecordDamagedError, RecordRefusedError
from .steps import READERS, ahead
from .stored_rows import StoredRows
from .storing import COMPLETIONS, KEYS, PARTS, QUARANTINE, RUNS, batch_of, read_keys, write_run


@dataclass(frozen=True)
class Unused:
    """What may go from an output.

    Attributes:
        objects: names and bytes, in the order in which they are to be removed.
        unreadable: damaged completions, left because nobody can tell whose they are.
        dropped: ids of unfinished runs whose rows go.
    """

    objects: Mapping[str, int]
    unreadable: Sequence[str]
    dropped: Sequence[str]


def find_unused(store: ObjectStore, keep: int = 1, *, force: bool = False) -> Unused:
    """Find the objects that none of the configurations needs which were completed last.

    Args:
        store: the output.
        keep: how many configurations are kept, at least 1.
        force: whether also rows may go that belong to runs which were not completed.

    Raises:
        StoreError: a run is going on, a run was not completed, none ever was, or the output
            cannot be read.
    """
    last = last_completed(store, require_output(store))
    runs = read_runs(store)
    dropped = [run.run for run in _refuse_unfinished(store, runs, force=force)]
    sizes = store.sizes()  # before the ledger: what comes later is not looked at
    names = [name for name in in_folder(sizes, KEYS) if name.count("/") == 2]
    kept = kept_configurations(runs, {name.split("/")[1] for name in names}, keep, last)
    if not kept:
        raise StoreError(f"{store.uri}: no run has been completed here: there is nothing to keep")
    index = KeyIndex()
    for name in names:
        if name.split("/")[1] in kept:
            keys = read_keys(store, name.removeprefix(f"{KEYS}/"))
            index.extend([(keys, np.zeros(len(keys), PLACE))])
    needed: set[str] = set()
    for label in {run.parser for run in runs if run.configuration in kept}:
        needed.update(_needed(store, label, index))
    unused, unreadable = _unused_completions(store, in_folder(sizes, COMPLETIONS), index)
    for folder in (QUARANTINE, PARTS):
        own = (name for name in in_folder(sizes, folder) if batch_of(name) is not None)
        unused += [name for name in own if name not in needed]
    unused += [name for name in names if name.split("/")[1] not in kept]
    return Unused({name: sizes[name] for name in unused}, unreadable, dropped)


def remove_unused(store: ObjectStore, unused: Unused) -> None:
    """Remove what was found.

    Completions go first: without their parts the next run would parse them once more. Quarantined
    rows go before parts: without its answer a row would count as failed, and not be asked again.

    Raises:
        StoreError: a run has begun meanwhile, or an object cannot be removed.
    """
    _refuse_unfinished(store, read_runs(store), force=True)
    with ThreadPoolExecutor(READERS) as pool:
        for folder in (COMPLETIONS, QUARANTINE, PARTS, KEYS):
            list(pool.map(store.remove, in_folder(unused.objects, folder)))
    for run in unused.dropped:
        write_run(store, run, {**orjson.loads(store.read(f"{RUNS}/{run}.json")), "dropped": True})
    if store.is_local:
        for parent in {Path(store.uri_of(name)).parent for name in unused.objects}:
            with suppress(OSError):  # others are in it
                parent.rmdir()


def kept_configurations(
    runs: Sequence[Run], known: set[str], keep: int, last: Run | None
) -> set[str]:
    """The configurations that were completed last, of those whose row keys are known.

    Args:
        runs: all runs.
        known: configurations that may be chosen.
        keep: how many.
        last: the run that the exports are of; it decides between two of the same second.
    """
    ends = {
        run.configuration: (run.updated, last is not None and run.run == last.run)
        for run in sorted(runs, key=lambda run: run.updated)
        if run.is_completed and run.configuration in known
    }
    return set(sorted(ends, key=lambda configuration: ends[configuration])[-keep:])


def _refuse_unfinished(store: ObjectStore, runs: Sequence[Run], *, force: bool) -> Sequence[Run]:
    """Raise where a run goes on, or is unfinished without `force`; gives those that are."""
    unfinished = unfinished_runs(runs)
    for run in unfinished:
        if run.is_going:
            raise StoreError(
                f"{store.uri}: a run on {run.dataset} is going on (last sign of life "
                f"{run.silent_seconds:.0f} s ago); wait until it is done, or, if it was killed, "
                f"for {ALIVE_SECONDS} s"
            )
    if unfinished and not force:
        run = unfinished[-1]
        raise StoreError(
            f"{store.uri}: the run on {run.dataset} of {run.started:%Y-%m-%d %H:%M} did not "
            "complete; finish it first with the same command: its rows are not known yet "
            "(--force drops them)"
        )
    return unfinished


def _needed(store: ObjectStore, label: str, kept: KeyIndex) -> Iterator[str]:
    """Objects that hold what counts for rows that are kept, under a configuration of the parser."""
    ledger = Ledger.read(store, label)
    stored: StoredRows[Any]
    for stored in (ledger.answers, ledger.failures):
        keys, places = stored.index.entries()
        for number in np.unique(places["file"][kept.find(keys).known]).tolist():
            yield stored.names[number]


def _unused_completions(
    store: ObjectStore, names: Iterable[str], kept: KeyIndex
) -> tuple[list[str], list[str]]:
    """Completions without a row that is kept, and those that cannot be read."""

    def read(name: str) -> Array | None:
        try:
            return _asked_keys(name.removeprefix(f"{COMPLETIONS}/"), store.read(name))
        except (CompletionsDamagedError, RecordDamagedError, RecordRefusedError):
            return None

    unused, unreadable = [], []
    with ThreadPoolExecutor(READERS) as pool:
        for name, keys in ahead(pool, read, names, 2 * READERS):
            if (found := keys.result()) is None:
                unreadable.append(name)
            elif not kept.find(found).known.any():
                unused.append(name)
    return unused, unreadable


def _asked_keys(batch: str, record: bytes) -> Array:
    """The rows of stored completions for which a request was sent, if there was any.

    The others, such as those without an image, are the same in every configuration, and cost
    nothing.
    """
    replies = check_completions(batch, record).replies
    asked = [
        stored.key
        for stored in replies
        if isinstance(stored.reply, Completion) or stored.reply.attempts > 0
    ]
    return pack_keys(asked or [stored.key for stored in replies])
