"""A worker: answers the batches that a run hands to it, and stores what comes of them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from ...serving.background_loop import BackgroundLoop
from ...serving.client.client import ChatClient
from ...serving.endpoint import load_endpoint
from ...tasks.errors import (
    ImageQAError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from ...tasks.generating.cache import CompletionsCache
from ...tasks.generating.chat_requests import GenerationSettings
from ...tasks.generating.generate import answered_part, generate_batch
from ...tasks.images.reader import ImageReader
from ...tasks.object_store.patience import Patience
from ...tasks.parsing.faults import reply_fault
from ...tasks.records import Batch
from ...tasks.runs.run_record import RunRecord, read_run
from ...tasks.storing.layout import run_name
from ...tasks.storing.store import StoredBatch, store_completions
from ..open_model import open_model, with_key
from ..open_store import open_store
from ..pass_settings import image_reader
from ..process_memory import rare_collections
from ..task_runs import call
from .channel import Channel
from .job import WorkerJob
from .messages import BatchResult, HandedBatch, Work, WorkerStatus, error_of, numbers

STATUS_SECONDS = 1.0
"""How often a worker says how it is."""

LOCAL_POLL_SECONDS, POLL_SECONDS = 0.05, 0.5
"""How often run and worker look for messages, on this machine and on S3."""

_RUN_CHECK_SECONDS = 5.0
_MAX_RUN_CHECKS = 4
"""A run that looks dead at so many checks in a row is. From the first to the last of them, it takes
longer than from one heartbeat to the next. After an outage of the output, the last one is old."""

_MAX_BATCHES = 64

_LOGGER = logging.getLogger("prefect_imageqa.workers")


def poll_seconds(channel: Channel) -> float:
    """How often to look for messages."""
    return LOCAL_POLL_SECONDS if channel.store.is_local else POLL_SECONDS


def work(job: WorkerJob, stopped: threading.Event | None = None) -> None:
    """Answer batches until the run tells this worker to end; what is in flight then is stored.

    If it is interrupted, such as by `KeyboardInterrupt`, it stores what has been replied, too.

    Args:
        job: what the run has told.
        stopped: set from outside to end it as the run does.

    Raises:
        EndpointError: no server answers, or one refuses the key or does not serve the model.
        ImageQAError: the run was killed.
        StoreError: the output cannot be read or written.
    """
    with open_worker(job, stopped or threading.Event()) as worker:
        worker.run()


@contextmanager
def open_worker(job: WorkerJob, stopped: threading.Event) -> Iterator["Worker"]:
    """Open the output, the image reader and the client of a worker; all are closed on exit."""
    with ExitStack() as stack:
        stack.enter_context(rare_collections())
        patience = Patience(job.limits.store_wait)
        stack.callback(patience.stop)
        output = open_store(job.output, job.store or None).with_patience(patience)
        loop = BackgroundLoop()
        stack.callback(loop.close)
        reader = image_reader(job.images, output.s3_credentials, loop)
        reader.confine(job.confined)
        stack.enter_context(reader)
        endpoint = load_endpoint(job.endpoint_block or list(job.endpoint), job.model)
        if not (job.endpoint_block or job.is_deployed):
            endpoint = with_key(endpoint)
        model = open_model(endpoint, job.model, job.limits, loop, sharers=job.workers)
        client = stack.enter_context(model).client
        yield Worker(job, Channel(output, job.key), client, reader, patience, stopped)


class Worker:
    """A worker whose resources are open.

    Args:
        job: what the run has told.
        channel: to the run.
        client: asks the servers.
        reader: reads the images.
        patience: waits for the output and for hosts of images.
        stopped: set from outside to end it.
    """

    def __init__(
        self,
        job: WorkerJob,
        channel: Channel,
        client: ChatClient,
        reader: ImageReader,
        patience: Patience,
        stopped: threading.Event,
    ) -> None:
        self._job = job
        self._folder = job.folder
        self._channel = channel
        self._client = client
        self._reader = reader
        self._patience = patience
        self._stopped = stopped
        self._id = uuid4().hex
        self._batches: dict[int, Batch | None] = {}
        self._taken: set[int] = set()
        self._is_ending = False
        self._reporting = threading.Lock()
        self._updated: datetime | None = None
        self._heard: datetime | None = None
        self._run_was_dead = 0

    def run(self) -> None:
        """Answer batches until the run ends."""
        pause = poll_seconds(self._channel)
        report = _every(STATUS_SECONDS, self._report)
        check_run = _every(_RUN_CHECK_SECONDS, self._check_run)
        with ThreadPoolExecutor(_MAX_BATCHES, "batch") as threads:
            try:
                while not self._stopped.is_set():
                    check_run()
                    names = set(self._channel.store.list(self._folder.name))
                    if self._folder.end in names or self._stopped.is_set():
                        break
                    for number in self._new(names):
                        threads.submit(self._answer, number)
                    if self._updated is not None:  # else this may be another folder
                        report()
                    self._stopped.wait(pause)
            finally:
                # Batches that are still in flight end with an error, and store what they have.
                self._is_ending = True
                self._client.stop()
                self._patience.stop()
        if self._taken:
            with suppress(StoreError):
                self._report()  # the last requests, too

    def _new(self, names: set[str]) -> list[int]:
        """Batches that are to be answered, in order; a worker that starts again has results."""
        folder = self._folder
        given = numbers(names, folder.batch(0)[:-1]) - numbers(names, folder.result(0)[:-1])
        new = sorted(given - self._taken)
        self._taken.update(new)
        self._batches |= dict.fromkeys(new)
        return new

    def _answer(self, number: int) -> None:
        try:
            if (result := self._result(number)) is not None:
                self._tell(number, result)
        finally:
            # A batch that it does not have, and has told nothing of, the run gives to another one.
            del self._batches[number]

    def _result(self, number: int) -> BatchResult | None:
        """Answer a batch; returns what became of it, None if another worker is to answer it."""
        try:
            handed = HandedBatch.from_plain(self._channel.read(self._folder.batch(number)))
            batch = self._batches[number] = handed.batch()
            stored = self._store(batch, handed.work)
        except Exception as error:
            is_removed = self._batches[number] is None and isinstance(error, ObjectMissingError)
            return None if self._is_ending or is_removed else BatchResult(error=error_of(error))
        own = batch.corrections, tuple(batch.corrected)
        return BatchResult(stored.part, stored.time, *own)

    def _store(self, batch: Batch, work: Work) -> StoredBatch:
        """Generate, parse and store a batch; if that fails, those rows that have been answered."""
        output, parsing = self._channel.store, work.parsing()
        cache = CompletionsCache(output.with_uri(work.completions))
        settings = GenerationSettings(
            self._reader,
            work.options,
            self._job.images.settings,
            fault_of=partial(reply_fault, settings=parsing) if work.corrects else None,
            guided=work.guided,
        )

        def store(some: Batch) -> StoredBatch:
            completions = call(generate_batch, some, self._client, settings, cache)
            return store_completions(completions, some.key, parsing, output, work.parts)

        try:
            return store(batch)
        except Exception:
            if not batch.has_all_replies and (part := answered_part(batch, settings)):
                store(part)  # sends no request
            raise

    def _tell(self, number: int, result: BatchResult) -> None:
        try:
            self._report()  # a run that has all results has all counts
            self._channel.write(self._folder.result(number), result)
        except Exception as error:  # the run notices that this worker ends
            _LOGGER.warning("the result of batch %s could not be stored: %s", number, error)
            self._stopped.set()

    def _report(self) -> None:
        with self._reporting:
            self._channel.write(self._folder.status, self._status())

    def _status(self) -> WorkerStatus:
        unsent = {
            number: None if batch is None else max(batch.unsent, 0)
            for number, batch in list(self._batches.items())
        }
        stats = replace(self._client.stats, last_completion=0.0, notes=())
        notes = (*self._client.stats.notes, *self._patience.notes)
        limit = self._client.max_in_flight
        return WorkerStatus(time.time(), self._id, limit, stats, unsent, notes)

    def _check_run(self) -> None:
        """End as if the run had told so, where its record says that it has ended.

        Raises:
            ImageQAError: the run was killed; or its output is not that of this machine.
        """
        store, run = self._channel.store, self._job.run
        why = f"run {run} was killed, or no longer reaches {store.uri}: its workers end"
        try:
            is_live = self._is_live(read_run(store, run_name(run)))
        except StoreUnavailableError:
            return
        except ObjectMissingError:
            is_live = False
            why = (
                f"{store.uri} has no run {run} on this machine: give an s3:// URI, or a folder "
                "that all machines have under the same path"
            )
        except StoreError:
            is_live = False
        self._run_was_dead = 0 if is_live else self._run_was_dead + 1
        if self._run_was_dead >= _MAX_RUN_CHECKS:
            raise ImageQAError(why)

    def _is_live(self, run: RunRecord) -> bool:
        """Whether the run lives; this worker ends where the run has said that it does not."""
        is_other = f"{run.machine} {run.process}" != self._job.process
        if is_other or run.state not in ("waiting", "running"):
            self._stopped.set()  # other: Prefect has started it once more, with other workers
        # A new heartbeat counts even if the clock of its machine is wrong.
        if run.updated != self._updated:
            self._heard = datetime.now(UTC) if self._updated else run.updated
            self._updated = run.updated
        return run.model_copy(update={"updated": self._heard}).is_live


def _every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    """Calls the action if that has not been done for so long."""
    last = float("-inf")

    def call() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            action()

    return call
