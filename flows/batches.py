"""The loop of a pass: keeps batches in flight, and finishes each as soon as it completes."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from prefect import get_run_logger

from ..serving.client.client import ChatClient
from ..tasks.concurrency import MAX_CHUNK_BYTES, Pending, chunks, memory_of
from ..tasks.records import Batch, Row
from ..tasks.storing.store import StoredBatch
from .open_pass import FIRST_ROWS, OpenPass
from .run import Run
from .task_runs import MAX_BATCHES, MAX_ROWS
from .workers.crew import Crew

MAX_EMBEDDED_BYTES = 512 << 20
"""No batch is started while rows in flight hold more than this in embedded images."""

MAX_CHUNK_ROWS = 2048
"""Rows that one task turns into prompts: each run of a task costs Prefect's server up to 30 ms. The
first chunks have as few rows as the first batches, so that the servers start early."""

POLL_SECONDS = 0.05
"""How often to check whether the servers need another batch, while none completes."""

Generate = Callable[[Batch], Pending[Any]]
Step = dict[Pending[Any], Batch]
"""What is under way of one step, with their batches."""

Store = Callable[[Batch, Pending[Any]], Pending[StoredBatch]]


def row_chunks(rows: Iterator[Row], batch_size: int) -> Iterator[list[Row]]:
    """The rows in lists, each for one task that turns them into prompts."""
    return chunks(
        rows,
        min(FIRST_ROWS, batch_size),
        lambda row: memory_of(row.record),
        max_bytes=MAX_CHUNK_BYTES // 4,
        grows_to=MAX_CHUNK_ROWS,
    )


def run_batches(
    batches: Iterator[Batch],
    generate: Generate,
    store: Store,
    current: OpenPass,
    run: Run,
    max_batches: int = MAX_BATCHES,
    asked: ChatClient | Crew | None = None,
) -> None:
    """Take all batches through generate and store, and record them in the ledger.

    A slow row delays only its own batch: while that waits, other batches use the free slots. After
    an error no further batch is started, but those in flight are finished and stored. If the run is
    stopped from outside, the replies received so far are stored.

    Args:
        batches: consumed one by one, as there is room for another.
        generate: starts the step that sends a batch to the model; does not wait for it.
        store: starts the step that parses and stores its replies; does not wait for it.
        current: the pass they belong to.
        run: the run; its circuit breaker stops it if too many rows fail.
        max_batches: limit of batches in flight.
        asked: what has room for more requests or has not; by default the client of the run.

    Raises:
        Exception: the error of the first batch that failed, or of reading the table.
    """
    asked = asked or run.client
    generating: Step = {}
    storing: Step = {}
    completed: SimpleQueue[Pending[Any]] = SimpleQueue()
    error: Exception | None = None

    def follow(future: Pending[Any], batch: Batch, step: Step) -> None:
        step[future] = batch
        future.add_done_callback(completed.put)

    try:
        # Not the loop first: until Python 3.13, a signal at its jump back would pass by `except`.
        more = True
        while True:
            # 1. Start batches as long as the servers would soon be idle without them.
            in_flight = [*generating.values(), *storing.values()]
            if more and error is None and _has_room(in_flight, current, asked, max_batches):
                try:
                    another = next(batches, None)
                except Exception as failed:
                    error, another = failed, None
                if another is not None:
                    follow(generate(another), another, generating)
                    continue
                more = False
            # 2. Take whichever task completes first. Until one does, check for room now and then.
            if not in_flight:
                break
            try:
                future = completed.get(timeout=POLL_SECONDS if more else None)
            except Empty:
                continue
            # 3. A generated batch is stored, a stored batch is recorded.
            try:
                if future in generating:
                    batch = generating.pop(future)
                    future.result()
                    follow(store(batch, future), batch, storing)
                else:
                    batch = storing.pop(future)
                    run.breaker.add(current.record(batch, future.result()))
            except Exception as failed:
                error = error or failed
                # Generating the part with replies sends no request: it only caches them.
                unfinished = not batch.has_all_replies
                if unfinished and (part := current.answered_part(batch)) is not None:
                    follow(generate(part), part, generating)
    except BaseException:
        run.stop()
        _store_replies(generating, storing, generate, store, current)
        raise
    if error is not None:
        raise error


def _has_room(
    in_flight: Collection[Batch], current: OpenPass, asked: ChatClient | Crew, max_batches: int
) -> bool:
    """Whether to start another batch: soon the servers have slots that no row is ready for."""
    if not in_flight:
        return True
    unsent = sum(max(batch.unsent, 0) for batch in in_flight)
    busy = asked.stats.in_flight + asked.stats.queued
    # A crash would lose replies that are not stored yet, so a slow store slows down generation.
    unstored = sum(len(batch.prompts) for batch in in_flight if batch.has_all_replies)
    # One batch is prepared ahead of the slots that become free.
    limit = asked.max_in_flight + current.batch_size
    embedded = sum(batch.embedded_bytes for batch in in_flight)
    rows = sum(len(batch.prompts) for batch in in_flight)
    room = len(in_flight) < max_batches and rows < MAX_ROWS and embedded < MAX_EMBEDDED_BYTES
    return room and busy + unsent < limit and unstored < limit


def _store_replies(
    generating: Step, storing: Step, generate: Generate, store: Store, current: OpenPass
) -> None:
    """Store the replies received so far without sending requests, so that the next run resumes."""
    try:
        parts = [current.answered_part(batch) for batch in generating.values()]
        generated = [(part, generate(part)) for part in parts if part is not None]
        for part, future in generated:
            with suppress(Exception):  # which storing it reports
                future.result()
            storing[store(part, future)] = part
        for future, batch in storing.items():
            current.record(batch, future.result())
    except Exception as error:  # must not hide the reason why the run is stopped
        with suppress(Exception):
            get_run_logger().warning("some replies could not be stored: %s", error)
