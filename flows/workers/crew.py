"""The workers of a run, as it sees them: gives them batches, and takes what becomes of those."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Self

from ...serving.client.auto_limit import first_limit
from ...serving.client.stats import ClientStats
from ...tasks.errors import EndpointError, ImageQAError, ObjectMissingError, StoreError
from ...tasks.records import Batch
from ...tasks.runs.workers import Workers
from ...tasks.storing.layout import WORKERS, WorkerFolder
from .channel import Channel, remove_messages
from .engine import Engine, StartedWorker, open_engine
from .job import WorkerJob
from .messages import BatchResult, HandedBatch, Work, WorkerStatus, numbers
from .worker import STATUS_SECONDS, poll_seconds

SILENT_SECONDS = 60.0
"""A worker that says nothing for so long, while the output can be read, is lost."""

START_SECONDS = 300.0
"""A worker that has been started and says nothing for so long is lost, too."""

MAX_LOSSES = 3
"""How often a lost worker is replaced, and a batch given to another one."""

END_SECONDS = 12.0
"""How long workers may take to store what is in flight, before they are ended."""

_LOGGER = logging.getLogger("prefect_imageqa.workers")

_COUNTERS = ("requests", "completions", "failures", "prompt_tokens", "completion_tokens")


@dataclass(eq=False)
class _Worker:
    """A worker.

    Attributes:
        folder: what is exchanged with it.
        started: how its engine sees it.
        losses: how many workers before it were lost, in whose place it is.
        status: what it has said last; None before.
        silent: seconds since then, as far as the output could be read.
        batches: what it has to do.
    """

    folder: WorkerFolder
    started: StartedWorker
    losses: int
    status: WorkerStatus | None = None
    silent: float = 0.0
    batches: dict[int, "_Given"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"worker {self.folder.worker}"

    def room(self, batch_size: int) -> int:
        """How many more rows it could take; one batch is prepared ahead of the free slots."""
        if self.status is None:
            return 0
        unsent = sum(given.batch.unsent for given in self.batches.values())
        busy = self.status.stats.in_flight + self.status.stats.queued
        return self.status.max_in_flight + batch_size - busy - unsent


@dataclass(eq=False)
class _Given:
    """A batch on its way: the future has its result, or None where its worker was lost.

    Its number is unique in the run; each pass numbers its batches from 1.
    """

    number: int
    batch: Batch
    result: "Future[BatchResult | None]" = field(default_factory=Future)


class Crew:
    """Hands the batches of a run to its workers; for `run_batches` it looks like a client.

    The workers are started with the first batch.

    Args:
        workers: how many there are, and what starts them.
        job: what each of them is told, but for its name.
        channel: to them.
        counted: where their counts are added.
        batch_size: rows per batch at most.

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
    ) -> None:
        self.stats = ClientStats()
        self.notes: Sequence[str] = ()
        self._settings = workers
        self._job = job
        self._channel = channel
        self._counted = counted
        self._batch_size = batch_size
        self._workers: list[_Worker] = []
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
        with self._changed:
            self._error = self._error or EndpointError("the run has been stopped")
            self._ended.set()
            self._changed.notify_all()

    def answer(self, batch: Batch, work: Work) -> BatchResult:
        """Have a batch answered, parsed and stored; waits for that.

        Raises:
            ImageQAError: the error that ended the batch; or the workers were lost.
        """
        message = HandedBatch.of(batch, work)
        with self._changed:
            if not self._thread.ident:
                self._thread.start()
        for _ in range(1 + MAX_LOSSES):
            given = _Given(next(self._numbers), batch)
            worker = self._assign(given)
            name, has_images = worker.folder.batch(given.number), batch.embedded_bytes > 0
            self._channel.write(name, message, is_dense=has_images)
            result = given.result.result()
            if result is not None:
                result.check()
                return result
            batch.unsent = len(batch.prompts)
        raise ImageQAError(
            f"batch {batch} was lost with {1 + MAX_LOSSES} workers: look into their logs"
        )

    def _assign(self, given: _Given) -> _Worker:
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

    # Everything below runs in the thread of the crew.

    def _watch(self) -> None:
        """Start the workers, and follow them until the run ends."""
        pause = poll_seconds(self._channel)
        try:
            with ExitStack() as stack:
                engine = stack.enter_context(open_engine(self._settings))
                stack.callback(self._end)
                for _ in range(self._settings.workers):
                    self._start(engine, losses=0)
                last = time.monotonic()
                while not self._ended.wait(pause):
                    names = set(self._channel.store.list(f"{WORKERS}/{self._job.run}"))
                    now = time.monotonic()
                    passed, last = min(now - last, 2 * STATUS_SECONDS), now
                    for worker in list(self._workers):
                        self._follow(worker, names, passed, engine)
                    self._say()
        except Exception as error:
            known = isinstance(error, ImageQAError)
            self._fail(error if known else ImageQAError(f"{type(error).__name__}: {error}"))  # type: ignore[arg-type]
        finally:
            for worker in list(self._workers):
                self._drop(worker)
            with suppress(StoreError):
                remove_messages(self._channel.store, self._job.run)

    def _start(self, engine: Engine, losses: int) -> None:
        name = str(next(self._names))
        job = self._job.model_copy(update={"worker": name})
        worker = _Worker(WorkerFolder(job.run, name), engine.start(job), losses)
        with self._changed:
            self._workers.append(worker)

    def _follow(self, worker: _Worker, names: set[str], passed: float, engine: Engine) -> None:
        """Read what a worker has written; replace it if it is lost."""
        folder = worker.folder
        note = "" if worker.status else worker.started.note
        worker.silent = 0.0 if note else worker.silent + passed
        if folder.status in names:
            self._read_status(worker)
        for number in numbers(names, folder.result(0)[:-1]):
            self._take(worker, number)
        reason = worker.started.ended
        patience = SILENT_SECONDS if worker.status else START_SECONDS
        if reason is None and worker.silent > patience:
            reason = f"it has said nothing for {worker.silent:.0f} s"
            worker.started.stop()
        if reason is not None:
            self._replace(worker, reason, engine)

    def _read_status(self, worker: _Worker) -> None:
        with suppress(ObjectMissingError):
            status = WorkerStatus.from_plain(self._channel.read(worker.folder.status))
            before = worker.status
            if before is not None and before.beat == status.beat:
                return
            worker.silent = 0.0
            is_same = before is not None and before.process == status.process
            self._count(status.stats, before.stats if before and is_same else ClientStats())
            with self._changed:
                worker.status = status
                for number, given in worker.batches.items():
                    given.batch.unsent = status.unsent.get(number, given.batch.unsent)
                self._changed.notify_all()

    def _count(self, now: ClientStats, before: ClientStats) -> None:
        """Add what a worker has counted since it last said so."""
        for stats in (self.stats, self._counted):
            for name in _COUNTERS:
                more = getattr(now, name) - getattr(before, name)
                setattr(stats, name, getattr(stats, name) + more)
        if now.completions > before.completions:
            self._counted.last_completion = time.monotonic()

    def _take(self, worker: _Worker, number: int) -> None:
        """Take the result of a batch, after which nothing is left of it here."""
        result = BatchResult(**self._channel.read(worker.folder.result(number)))
        self._channel.store.remove_all([worker.folder.batch(number), worker.folder.result(number)])
        with self._changed:
            given = worker.batches.pop(number, None)
            self._changed.notify_all()
        if given is not None:
            given.batch.unsent = 0
            given.result.set_result(result)

    def _replace(self, worker: _Worker, reason: str, engine: Engine) -> None:
        """Give the batches of a lost worker to others, and start another one in its place.

        Raises:
            ImageQAError: too many were lost.
        """
        is_first = worker.losses == 0
        has_worked = any(each.status for each in self._workers)
        if worker.losses >= MAX_LOSSES or not (is_first or has_worked):
            raise ImageQAError(f"{worker.name} of {self._settings.engine} is lost: {reason}")
        _LOGGER.warning(
            "%s is lost (%s): its %s batches are given to others, and another one is started",
            worker.name,
            reason,
            len(worker.batches),
        )
        self._drop(worker)
        self._start(engine, worker.losses + 1)

    def _drop(self, worker: _Worker) -> None:
        """A worker that does nothing more: nothing is left in its folder."""
        with self._changed:
            if worker in self._workers:
                self._workers.remove(worker)
            batches, worker.batches = worker.batches, {}
            self._changed.notify_all()
        with suppress(StoreError):
            # If it is alive after all, it ends when it finds this.
            self._channel.write(worker.folder.end, "end")
            names = self._channel.store.list(worker.folder.name)
            self._channel.store.remove_all(name for name in names if name != worker.folder.end)
        for given in batches.values():
            given.result.set_result(None)

    def _say(self) -> None:
        """Sum up what the workers say."""
        notes = []
        known = [worker.status for worker in self._workers if worker.status]
        for worker in self._workers:
            if worker.status is None:
                notes.append(f"{worker.name}: {worker.started.note or 'is starting'}")
            else:
                notes += [f"{worker.name}: {note}" for note in worker.status.notes]
        self.stats.in_flight = sum(status.stats.in_flight for status in known)
        self.stats.queued = sum(status.stats.queued for status in known)
        self.notes = tuple(notes)

    def _end(self) -> None:
        """Tell all workers to end, and see to it that they do."""
        for worker in self._workers:
            with suppress(StoreError):
                self._channel.write(worker.folder.end, "end")
            if worker.status is None:  # it may wait for a machine, and has nothing to store
                worker.started.stop()
        deadline = time.monotonic() + END_SECONDS
        while self._workers and time.monotonic() < deadline:
            if all(worker.started.ended is not None for worker in self._workers):
                break
            time.sleep(0.05)
        for worker in self._workers:
            if worker.started.ended is None:
                worker.started.stop()

    def _fail(self, error: ImageQAError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
