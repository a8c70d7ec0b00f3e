"""Finds the objects of an output that no configuration needs any more, and removes them.

The objects of a row that several configurations share stay as long as one of these stays.
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
from ..parsing.parse import ANSWER
from ..runs.heartbeat import HEARTBEAT_TIMEOUT_SECONDS
from ..runs.run_record import RunRecord, last_completed, read_run, read_runs, unfinished_runs
from ..storing.key_index import LOCATION, Array, KeyIndex, pack_keys
from ..storing.layout import (
    ANSWERS,
    PAIRS,
    PassFolder,
    batch_of,
    check_folders,
    parser_labels,
    run_name,
)
from ..storing.ledger import Ledger
from ..storing.parts import ANSWERED_NUMBER
from ..storing.row_keys import read_keys
from ..storing.stored_rows import StoredRows
from .output_status import in_folder


@dataclass(frozen=True)
class UnusedObjects:
    """The objects of an output that can be removed.

    Attributes:
        objects: their names and sizes, in the order in which they must be removed.
        unreadable: corrupted completions, which are not removed because it is unknown which
            configuration they belong to.
        dropped: ids of the unfinished runs whose rows are removed.
    """

    objects: Mapping[str, int]
    unreadable: Sequence[str]
    dropped: Sequence[str]


def find_unused(store: ObjectStore, keep: int = 1, *, force: bool = False) -> UnusedObjects:
    """Find the objects that none of the configurations to keep needs.

    Args:
        store: the output.
        keep: how many configurations to keep, the last completed ones; at least 1.
        force: whether rows of runs that did not complete may be removed as well.

    Raises:
        StoreError: a run is in progress, a run did not complete, no run has completed yet, or the
            output cannot be read.
    """
    last = last_completed(store)
    runs = read_runs(store)
    dropped = [run.run for run in _refuse_unfinished(store, runs, force=force)]
    sizes = store.sizes()  # before reading the ledger: newer objects are not considered
    known = set(_configurations(sizes, PassFolder(PAIRS)).values())
    kept = kept_configurations(runs, known, keep, last)
    if not kept:
        raise StoreError(f"{store.uri}: no run has completed here, so there is nothing to keep")
    parsers = {run.parser for run in runs if run.configuration in kept}
    objects, unreadable = list[str](), list[str]()
    needed = {PassFolder(PAIRS): parsers, PassFolder(ANSWERS): {ANSWER.label}}
    # A check is always read in one way, but in which one depends on its settings.
    needed |= {folder: parser_labels(sizes, folder) for folder in check_folders(sizes)}
    for folder, labels in needed.items():
        unused, corrupted = _unused_of(store, sizes, folder, kept, labels)
        objects += unused
        unreadable += corrupted
    return UnusedObjects({name: sizes[name] for name in objects}, unreadable, dropped)


def _configurations(names: Iterable[str], folder: PassFolder) -> dict[str, str]:
    """The configuration of each object with row keys: it is a folder."""
    found = (name.removeprefix(f"{folder.keys}/") for name in in_folder(names, folder.keys))
    steps = (name.split("/") for name in found)
    return {f"{folder.keys}/{'/'.join(each)}": each[0] for each in steps if len(each) == 2}


def _unused_of(
    store: ObjectStore,
    sizes: Mapping[str, int],
    folder: PassFolder,
    kept: set[str],
    parsers: set[str],
) -> tuple[list[str], list[str]]:
    """The unused objects of a pass, and its completions that cannot be read.

    Args:
        store: the output.
        sizes: its objects.
        folder: those of the pass.
        kept: the configurations to keep.
        parsers: labels of their parsers.
    """
    key_names = _configurations(sizes, folder)
    index = KeyIndex()
    for name, configuration in key_names.items():
        if configuration in kept:
            keys = read_keys(store, name)
            index.extend([(keys, np.zeros(len(keys), LOCATION))])
    needed, ages = set[str](), dict[str, int]()
    for label in parsers | parser_labels(sizes, folder):
        try:
            stored = Ledger.read(store, folder.parts(label)).rows
        except ObjectCorruptedError:
            if label in parsers:
                raise
            continue  # no configuration to keep needs it
        ages.update(_ages(stored))
        if label in parsers:
            needed.update(_needed(stored, index))
    unused, unreadable = _unused_completions(store, sizes, folder, index)
    parts = [name for name in in_folder(sizes, folder.all_parts) if batch_of(name) is not None]
    unneeded = (name for name in parts if name not in needed)
    unused += sorted(unneeded, key=lambda name: (ages.get(name, 0), name))
    unused += [name for name, configuration in key_names.items() if configuration not in kept]
    return unused, unreadable


def remove_unused(store: ObjectStore, unused: UnusedObjects) -> None:
    """Remove the objects that `find_unused` found.

    The order matters if the removal is interrupted. Completions go before their parts, or the next
    run would parse them again. Parts with older answers go before newer ones, or a row whose later
    answer is removed first would count as failed, and not be retried.

    Raises:
        StoreError: a run has started meanwhile, or an object cannot be removed.
    """
    _refuse_unfinished(store, read_runs(store), force=True)
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        folders = (PassFolder(PAIRS), PassFolder(ANSWERS), *check_folders(unused.objects))
        for folder in folders:
            list(pool.map(store.remove, in_folder(unused.objects, folder.completions)))
            for part in in_folder(unused.objects, folder.all_parts):
                store.remove(part)
            list(pool.map(store.remove, in_folder(unused.objects, folder.keys)))
    for run in unused.dropped:
        record = read_run(store, run_name(run))
        record.model_copy(update={"dropped": True}).write(store)
    if store.is_local:
        for parent in {Path(store.uri_of(name)).parent for name in unused.objects}:
            with suppress(OSError):  # the folder is not empty
                parent.rmdir()


def kept_configurations(
    runs: Sequence[RunRecord], known: set[str], keep: int, last: RunRecord | None
) -> set[str]:
    """The last completed configurations, of those whose row keys are stored.

    Args:
        runs: all runs.
        known: configurations whose row keys are stored.
        keep: how many to return.
        last: the run that the exports are of; it counts as the last of several that ended in the
            same second.
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
    """Raise if a run is in progress, or unfinished without `force`; returns unfinished runs."""
    unfinished = unfinished_runs(runs)
    for run in unfinished:
        if run.is_live:
            raise StoreError(
                f"{store.uri}: a run on {run.dataset} is in progress (last heartbeat "
                f"{run.heartbeat_age:.0f} s ago): wait until it is done, or, if it was killed, "
                f"for {HEARTBEAT_TIMEOUT_SECONDS} s"
            )
    if unfinished and not force:
        run = unfinished[-1]
        raise StoreError(
            f"{store.uri}: the run on {run.dataset} of {run.started:%Y-%m-%d %H:%M} did not "
            "complete, so its rows are not known yet: run the same command again to finish it, or "
            "drop its rows with --force"
        )
    return unfinished


def _ages(stored: StoredRows) -> Iterator[tuple[str, int]]:
    """For each part, the rank of its newest answer that counts; 0 if it has none."""
    _, locations = stored.index.entries()
    answers = locations[locations["kind"] == ANSWERED_NUMBER]
    ages = np.zeros(len(stored.names), np.int64)
    np.maximum.at(ages, answers["file"], answers["rank"])
    return zip(stored.names, ages.tolist(), strict=True)


def _needed(stored: StoredRows, kept: KeyIndex) -> Iterator[str]:
    """The parts that hold the valid copy of a row to keep."""
    keys, locations = stored.index.entries()
    for number in np.unique(locations["file"][kept.find(keys).known]).tolist():
        yield stored.names[number]


def _unused_completions(
    store: ObjectStore, names: Iterable[str], folder: PassFolder, kept: KeyIndex
) -> tuple[list[str], list[str]]:
    """Completions without a row to keep, and completions that cannot be read."""

    def read(name: str) -> Array | None:
        try:
            return _sent_keys(check_completions(name, store.read(name)))
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


def _sent_keys(stored: Completions) -> Array:
    """Keys of the rows for which a request was sent; of all rows if none was.

    The other rows, such as those without an image, have the same key in every configuration, and
    cost nothing.
    """
    sent = [reply.key for reply in stored.replies if reply.reply.attempts > 0]
    return pack_keys(sent or [reply.key for reply in stored.replies])
