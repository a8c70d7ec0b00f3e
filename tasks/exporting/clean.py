"""Which objects of an output no configuration needs any more, and their removal.

A row that several configurations share keeps its objects as long as one of these is kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..concurrency import STORE_THREADS, prefetch
from ..errors import ObjectCorruptedError, RecordCorruptedError, RecordRefusedError, StoreError
from ..generating.cache import check_completions
from ..generating.completions import Completions
from ..object_store.store import ObjectStore
from ..runs.records import (
    ALIVE_SECONDS,
    RunRecord,
    last_completed,
    read_run,
    read_runs,
    unfinished_runs,
)
from ..storing.key_index import LOCATION, Array, KeyIndex, pack_keys
from ..storing.layout import PassFolder, batch_of, parser_labels, run_name
from ..storing.ledger import Ledger
from ..storing.parts import ANSWERED_NUMBER
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows
from .status import in_folder


@dataclass(frozen=True)
class Unused:
    """What may go from an output.

    Attributes:
        objects: names and bytes, in the order in which they are to be removed.
        unreadable: corrupted completions, left because nobody can tell whose they are.
        dropped: ids of unfinished runs whose rows go.
    """

    objects: Mapping[str, int]
    unreadable: Sequence[str]
    dropped: Sequence[str]


def find_unused(store: ObjectStore, keep: int = 1, *, force: bool = False) -> Unused:
    """Find the objects that none of the configurations needs which were completed last.

    At least one is to be kept. With `force` also rows may go of runs that were not completed.

    Raises:
        StoreError: a run is going on, a run was not completed, none ever was, or the output
            cannot be read.
    """
    last = last_completed(store)
    runs = read_runs(store)
    dropped = [run.run for run in _refuse_unfinished(store, runs, force=force)]
    folder = PassFolder()
    sizes = store.sizes()  # before the ledger: what comes later is not looked at
    # By configuration, which is the folder that they are in.
    names = [name for name in in_folder(sizes, folder.keys) if name.count("/") == 3]
    key_names = {name: name.split("/")[2] for name in names}
    kept = kept_configurations(runs, set(key_names.values()), keep, last)
    if not kept:
        raise StoreError(f"{store.uri}: no run has been completed here: there is nothing to keep")
    index = KeyIndex()
    for name, configuration in key_names.items():
        if configuration in kept:
            keys = read_keys(store, name)
            index.extend([(keys, np.zeros(len(keys), LOCATION))])
    needed, ages = set[str](), dict[str, int]()
    parsers = {run.parser for run in runs if run.configuration in kept}
    for label in parsers | parser_labels(store, folder):
        try:
            stored = Ledger.read(store, folder.parts(label)).rows
        except ObjectCorruptedError:
            if label in parsers:
                raise
            continue  # nobody needs it, nor reads it as it is
        ages.update(_ages(stored))
        if label in parsers:
            needed.update(_needed(stored, index))
    unused, unreadable = _unused_completions(store, sizes, folder, index)
    parts = [name for name in in_folder(sizes, folder.all_parts) if batch_of(name) is not None]
    unneeded = (name for name in parts if name not in needed)
    unused += sorted(unneeded, key=lambda name: (ages.get(name, 0), name))
    unused += [name for name, configuration in key_names.items() if configuration not in kept]
    return Unused({name: sizes[name] for name in unused}, unreadable, dropped)


def remove_unused(store: ObjectStore, unused: Unused) -> None:
    """Remove what was found.

    Completions go first: without their parts the next run would parse them once more. Of parts the
    oldest go first: without its later answer a row would count as failed, and not be asked again.

    Raises:
        StoreError: a run has begun meanwhile, or an object cannot be removed.
    """
    _refuse_unfinished(store, read_runs(store), force=True)
    folder = PassFolder()
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        list(pool.map(store.remove, in_folder(unused.objects, folder.completions)))
        for part in in_folder(unused.objects, folder.all_parts):
            store.remove(part)
        list(pool.map(store.remove, in_folder(unused.objects, folder.keys)))
    for run in unused.dropped:
        record = read_run(store, run_name(run))
        record.model_copy(update={"dropped": True}).write(store)
    if store.is_local:
        for parent in {Path(store.uri_of(name)).parent for name in unused.objects}:
            with suppress(OSError):  # others are in it
                parent.rmdir()


def kept_configurations(
    runs: Sequence[RunRecord], known: set[str], keep: int, last: RunRecord | None
) -> set[str]:
    """The configurations that were completed last, of those whose row keys are known.

    The run that the exports are of is the last also among those of the same second.
    """
    ends = {
        run.configuration: (run.updated, last is not None and run.run == last.run)
        for run in sorted(runs, key=lambda run: run.updated)
        if run.is_completed and run.configuration in known
    }
    return set(sorted(ends, key=lambda configuration: ends[configuration])[-keep:])


def _refuse_unfinished(
    store: ObjectStore, runs: Sequence[RunRecord], *, force: bool
) -> Sequence[RunRecord]:
    """Raise where a run goes on, or is unfinished without `force`; gives those that are."""
    unfinished = unfinished_runs(runs)
    for run in unfinished:
        if run.is_live:
            raise StoreError(
                f"{store.uri}: a run on {run.dataset} is going on (last heartbeat "
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


def _ages(stored: StoredRows) -> Iterator[tuple[str, int]]:
    """Parts by when the last of their answers that count was given."""
    _, places = stored.index.entries()
    answers = places[places["kind"] == ANSWERED_NUMBER]
    ages = np.zeros(len(stored.names), np.int64)
    np.maximum.at(ages, answers["file"], answers["rank"])
    return zip(stored.names, ages.tolist(), strict=True)


def _needed(stored: StoredRows, kept: KeyIndex) -> Iterator[str]:
    """Parts that hold what counts for rows that are kept."""
    keys, places = stored.index.entries()
    for number in np.unique(places["file"][kept.find(keys).known]).tolist():
        yield stored.names[number]


def _unused_completions(
    store: ObjectStore, names: Iterable[str], folder: PassFolder, kept: KeyIndex
) -> tuple[list[str], list[str]]:
    """Completions without a row that is kept, and those that cannot be read."""

    def read(name: str) -> Array | None:
        try:
            return _asked_keys(check_completions(name, store.read(name)))
        except (RecordCorruptedError, RecordRefusedError):
            return None

    unused, unreadable = [], []
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        for name, keys in prefetch(
            pool, read, in_folder(names, folder.completions), 2 * STORE_THREADS
        ):
            if (found := keys.result()) is None:
                unreadable.append(name)
            elif not kept.find(found).known.any():
                unused.append(name)
    return unused, unreadable


def _asked_keys(stored: Completions) -> Array:
    """The rows of stored completions for which a request was sent, if there was any.

    The others, such as those without an image, are the same in every configuration, and cost
    nothing.
    """
    asked = [reply.key for reply in stored.replies if reply.reply.attempts > 0]
    return pack_keys(asked or [reply.key for reply in stored.replies])
