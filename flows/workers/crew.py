"""The workers of a run: gives them batches, and takes what becomes of those."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import Self

from ...serving.client.auto_limit import first_limit
from ...serving.client.stats import ClientStats
from ...tasks.errors import EndpointError, ImageQAError, StoreError
from ...tasks.records import Batch
from ...tasks.runs.workers import Workers
from ...tasks.storing.layout import WORKERS
from .channel import Channel, remove_messages
from .engine import Engine, OpenEngine, open_engine
from .job import WorkerJob
from .member import GivenBatch, Member, add_counts
from .messages import BatchResult, HandedBatch, Work
from .worker import STATUS_SECONDS, poll_seconds

MAX_LOSSES = 3
"""How often a batch is given to another worker; and how often workers that have finished no batch
are replaced, one after the other."""

END_SECONDS = 12.0
"""How long workers may take to store what is in flight, before they are ended."""

_LOGGER = logging.getLogger("prefect_imageqa.workers")


class Crew:
    """Hands the batches of a run to its workers; for `run_batches` it looks like a client.

    The workers are started with the first batch.

    Args:
        workers: how many there are, and what starts them.
        job: what each of them is told, but for its name.
        channel: to them.
        counted: where their counts are added.
        batch_size: rows per batch at most.
        open_engine: opens what starts them.

    Attributes:
        stats: what they have in flight, and their counts.
        notes: what a user should know now.
    """

    def __init__(
        self,
        workers: Workers,
        job: WorkerJob,
        channel: Channel,
        counted: ClientStats,
        batch_size: int,
        open_engine: OpenEngine = open_engine,
    ) -> None:
        self.stats = ClientStats()
        self.notes: Sequence[str] = ()
        self._settings = workers
        self._job = job
        self._channel = channel
        self._counted = counted
        self._batch_size = batch_size
        self._open_engine = open_engine
        self._workers: list[Member] = []
        self._names, self._numbers = count(1), count(1)
        self._changed = threading.Condition()
        self._error: ImageQAError | None = None
        self._ended = threading.Event()
        # In the context of the flow run: a work pool needs it.
        watch = partial(copy_context().run, self._watch)
        self._thread = threading.Thread(target=watch, name="workers", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def max_in_flight(self) -> int:
        """How many requests all of them may have in flight, and rows that they have ahead."""
        ahead = (self._settings.workers - 1) * self._batch_size
        limits = [each.status.max_in_flight for each in self._workers if each.status]
        unknown = self._settings.workers - len(limits)
        return ahead + sum(limits) + unknown * first_limit(self._settings.workers)

    def stop(self) -> None:
        """Tell all workers to end: those who wait for them get an `EndpointError`."""
        self._fail(EndpointError("the run has been stopped"))
        self._ended.set()

    def answer(self, batch: Batch, work: Work) -> BatchResult:
        """Have a batch answered, parsed and stored; waits for that.

        Raises:
            ImageQAError: the error that ended the batch; or the workers were lost.
        """
        message = HandedBatch.of(batch, work)
        with self._changed:
            if self._error is None and self._thread.ident is None:
                self._thread.start()
        for _ in range(1 + MAX_LOSSES):
            batch.unsent = len(batch.prompts)
            given = GivenBatch(next(self._numbers), batch)
            worker = self._assign(given)
            name, has_images = worker.folder.batch(given.number), batch.embedded_bytes > 0
            self._channel.write(name, message, is_dense=has_images)
            result = given.result.result()
            if result is not None:
                result.check()
                return result
        raise ImageQAError(
            f"batch {batch} was lost with {1 + MAX_LOSSES} workers: look into their logs"
        )

    def _assign(self, given: GivenBatch) -> Member:
        """Wait until a worker has room for a batch, and give it to the one that has most."""
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                free = [each for each in self._workers if each.room(self._batch_size) > 0]
                if free:
                    worker = max(free, key=lambda each: each.room(self._batch_size))
                    worker.batches[given.number] = given
                    return worker
                self._changed.wait()

    def _fail(self, error: ImageQAError) -> None:
        """Give no more batches to workers, and let nobody wait for one; the first reason counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    # Everything below runs in the thread of the crew.

    def _watch(self) -> None:
        """Start the workers, follow them until the run ends, and see to it that they end.

        Whatever happens, no batch is waited for afterwards.
        """
        with self._failing(), self._open_engine(self._settings) as engine:
            with self._failing():
                self._follow_all(engine)
            self._end()
        self._fail(ImageQAError("the workers have ended"))
        for worker in self._workers:
            _give_back(worker)
        self.notes, self.stats.in_flight, self.stats.queued = (), 0, 0
        with suppress(StoreError):
            remove_messages(self._channel.store, self._job.crew)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn any error into that of the crew."""
        try:
            yield
        except ImageQAError as error:
            self._fail(error)
        except BaseException as error:  # of an engine, such as a cancelled call
            _LOGGER.debug("the workers cannot be followed", exc_info=True)
            self._fail(ImageQAError(f"{self._settings.engine}: {type(error).__name__}: {error}"))

    def _follow_all(self, engine: Engine) -> None:
        for _ in range(self._settings.workers):
            self._start(engine, losses=0)
        pause, last = poll_seconds(self._channel), time.monotonic()
        while not self._ended.wait(pause):
            names = set(self._channel.store.list(f"{WORKERS}/{self._job.crew}"))
            now = time.monotonic()
            # Of the time in which the output could not be read, hardly any counts.
            passed, last = min(now - last, 2 * STATUS_SECONDS), now
            for worker in list(self._workers):
                self._read(worker, names)
                if (reason := worker.why_lost(passed)) is not None:
                    self._replace(worker, reason, engine)
                else:
                    self._take_back(worker)
            self._sum_up()

    def _start(self, engine: Engine, losses: int) -> None:
        # A server that was up when the run started is waited for.
        limits = self._job.limits.model_copy(update={"wait": losses > 0})
        own = {"worker": str(next(self._names)), "limits": limits}
        job = self._job.model_copy(update=own)
        worker = Member(job.folder, engine.start(job), losses)
        with self._changed:
            self._workers.append(worker)

    def _read(self, worker: Member, names: set[str]) -> None:
        """Read what a worker has written."""
        if worker.folder.status in names and (status := worker.read_status(self._channel)):
            with self._changed:
                counts = worker.hear(status)
                self._changed.notify_all()
            for stats in (self.stats, self._counted):
                add_counts(stats, counts)
            if counts.completions:
                self._counted.last_completion = time.monotonic()
        for number, result in worker.results(names, self._channel):
            with self._changed:
                worker.losses = 0
                given = worker.batches.pop(number, None)
                self._changed.notify_all()
            if given is not None:
                given.batch.unsent = 0
                given.result.set_result(result)

    def _take_back(self, worker: Member) -> None:
        """Give batches that a worker does not have, although it was given them, to others."""
        with self._changed:
            lost = list(worker.take_back())
            self._changed.notify_all()
        for given in lost:
            _LOGGER.warning(
                "batch %s is given to a worker again: somebody else has removed objects in %s",
                given.batch,
                self._channel.store.uri_of(worker.folder.name),
            )
            worker.clear(given.number, self._channel)
            given.result.set_result(None)

    def _replace(self, worker: Member, reason: str, engine: Engine) -> None:
        """Give the batches of a lost worker to others, and start another one in its place.

        Raises:
            ImageQAError: too many were lost.
        """
        if worker.is_working:  # but silent
            worker.started.stop()
        # What it has written before it ended.
        self._read(worker, set(self._channel.store.list(worker.folder.name)))
        is_first = worker.losses == 0
        has_worked = any(each.status for each in self._workers)
        if worker.losses >= MAX_LOSSES or not (is_first or has_worked):
            raise ImageQAError(f"{worker} of {self._settings.engine} is lost: {reason}")
        _LOGGER.warning(
            "%s is lost (%s): its %s batches are given to others, and another one is started",
            worker,
            reason,
            len(worker.batches),
        )
        self._drop(worker)
        self._start(engine, worker.losses + 1)

    def _drop(self, worker: Member) -> None:
        """Tell a worker to end, if it is alive after all; nothing else is left in its folder."""
        with self._changed:
            self._workers.remove(worker)
        try:
            with suppress(StoreError):
                worker.tell_to_end(self._channel)
                names = self._channel.store.list(worker.folder.name)
                others = [name for name in names if name != worker.folder.end]
                self._channel.store.remove_all(others)
        finally:
            _give_back(worker)

    def _sum_up(self) -> None:
        """Sum up what the workers say."""
        known = [worker.status for worker in self._workers if worker.status]
        self.stats.in_flight = sum(status.stats.in_flight for status in known)
        self.stats.queued = sum(status.stats.queued for status in known)
        self.notes = tuple(note for worker in self._workers for note in worker.notes)

    def _end(self) -> None:
        """Tell all workers to end, and see to it that they do."""
        for worker in self._workers:
            with suppress(StoreError):
                worker.tell_to_end(self._channel)
            if worker.status is None:  # it may wait for a machine, and has nothing to store
                self._stop(worker)
        deadline = time.monotonic() + END_SECONDS
        while any(worker.is_working for worker in self._workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        for worker in self._workers:
            if worker.is_working:
                self._stop(worker)

    def _stop(self, worker: Member) -> None:
        try:
            worker.started.stop()
        except Exception as error:  # the others are to be stopped, too
            _LOGGER.warning("%s could not be stopped: %s", worker, error)


def _give_back(worker: Member) -> None:
    """Those who wait for the batches of a worker give them to another one."""
    batches, worker.batches = worker.batches, {}
    for given in batches.values():
        given.result.set_result(None)
