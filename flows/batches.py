"""The loop of a pass: batches in flight, finished in the order in which they complete."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture

from ..serving.client.client import ChatClient
from ..tasks.errors import EndpointError, ImageQAError, ServerError
from ..tasks.records import Batch
from ..tasks.storing.store import StoredBatch
from .open_pass import OpenPass
from .run import Run

MAX_BATCHES = 64
"""Batches in flight at most. One that only waits, for a slow row say, holds its rows in memory."""

MAX_EMBEDDED_BYTES = 512 << 20
"""Of images that the rows of these batches hold themselves: no further batch is started over it."""

PREFETCHED_PROMPTS = 2
"""Pieces of the table that are prompted while earlier ones are asked."""

LOOK_SECONDS = 0.05
"""Between two looks whether the servers have nothing to do, while no batch completes."""

Generate = Callable[[Batch], PrefectFuture[Any]]
Step = dict[PrefectFuture[Any], Batch]
"""What is under way, and of which batch."""

Store = Callable[[Batch, PrefectFuture[Any]], PrefectFuture[StoredBatch]]


def run_batches(
    batches: Iterator[Batch],
    generate: Generate,
    store: Store,
    asked: OpenPass,
    run: Run,
    at_once: int = MAX_BATCHES,
) -> None:
    """Finish all batches: generate, store and enter each of them.

    A slow row holds nothing but its own batch: while that only waits, others take the free slots.
    When one fails no further one is started, but those in flight are finished and stored. When the
    run is stopped from outside, the replies that have come are stored.

    Args:
        batches: taken one by one, as there is room for them.
        generate: starts to ask about a batch; does not wait.
        store: starts to parse and store the replies; does not wait.
        asked: the pass that they are of.
        run: what all passes share; its breaker stops a run in which too much fails.
        at_once: batches in flight at most.

    Raises:
        ImageQAError: what the first batch that failed says, or the table that they come from.
    """
    generating: Step = {}
    storing: Step = {}
    completed: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    error: ImageQAError | None = None
    upcoming = True

    def follow(future: PrefectFuture[Any], batch: Batch, step: Step) -> None:
        step[future] = batch
        future.add_done_callback(completed.put)

    try:
        while True:
            # 1. Start batches as long as the servers would have nothing to do without them.
            in_flight = [*generating.values(), *storing.values()]
            if upcoming and error is None and _has_room(in_flight, asked, run.client, at_once):
                try:
                    another = next(batches, None)
                except ImageQAError as failed:
                    error, another = failed, None
                if another is not None:
                    follow(generate(another), another, generating)
                    continue
                upcoming = False
            # 2. Take whichever completes first; there may be room for another before one does.
            if not in_flight:
                break
            try:
                future = completed.get(timeout=LOOK_SECONDS if upcoming else None)
            except Empty:
                continue
            # 3. Store what was generated; enter what was stored.
            try:
                if future in generating:
                    batch = generating.pop(future)
                    future.result()
                    follow(store(batch, future), batch, storing)
                else:
                    batch = storing.pop(future)
                    run.breaker.add(asked.enter(batch, future.result()))
            except ImageQAError as failed:
                error = error or failed
                lost = isinstance(failed, EndpointError | ServerError)
                if lost and (saved := asked.answered_part(batch)) is not None:
                    follow(generate(saved), saved, generating)
    except BaseException:
        run.client.stop()
        _save(generating, storing, generate, store, asked)
        raise
    if error is not None:
        raise error


def _has_room(
    in_flight: Collection[Batch], asked: OpenPass, client: ChatClient, at_once: int
) -> bool:
    """Whether another batch should be started: the servers soon have slots that none can fill."""
    if not in_flight:
        return True
    unsent = sum(max(batch.unsent, 0) for batch in in_flight)
    busy = client.stats.in_flight + client.stats.queued
    # Replies that are not stored yet would be lost in a crash: a slow store slows the asking.
    unstored = sum(len(batch.prompts) for batch in in_flight if batch.is_answered)
    # One batch is made ready ahead of the slots that become free.
    most = client.max_in_flight + asked.batch_size
    embedded = sum(batch.embedded_bytes for batch in in_flight)
    room = len(in_flight) < at_once and embedded < MAX_EMBEDDED_BYTES
    return room and busy + unsent < most and unstored < most


def _save(
    generating: Step, storing: Step, generate: Generate, store: Store, asked: OpenPass
) -> None:
    """Store what has been answered, and ask nothing more: the next run goes on from there."""
    try:
        answered = [asked.answered_part(batch) for batch in generating.values()]
        saved = [(batch, generate(batch)) for batch in answered if batch is not None]
        for batch, future in saved:
            future.wait()
            storing[store(batch, future)] = batch
        for future, batch in storing.items():
            asked.enter(batch, future.result())
    except Exception as error:  # why the run is stopped is more important
        with suppress(Exception):
            get_run_logger().warning("some replies could not be stored: %s", error)
