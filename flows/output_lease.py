"""The record of the current run, which is also its lock on the output."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from prefect import get_run_logger

from ..tasks.errors import (
    ObjectCorruptedError,
    ObjectMissingError,
    OutputBusyError,
    StoreError,
    StoreUnavailableError,
)
from ..tasks.exporting.qa_json import QA_JSON
from ..tasks.object_store.patience import Patience
from ..tasks.object_store.store import ObjectStore
from ..tasks.prompting.keys import RequestSpec, configuration_key
from ..tasks.prompting.open_style import OpenStyle
from ..tasks.runs.heartbeat import ACTIVE_RUNS, HEARTBEAT_TIMEOUT_SECONDS
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import Pass
from ..tasks.runs.run_counts import RunCounts
from ..tasks.runs.run_record import RunRecord, complete_run, last_completed, read_run, read_runs
from ..tasks.storing.layout import PassFolder, open_output, run_name
from .new_record import dataset_key
from .progress import RunProgress
from .summary import RunSummary

HEARTBEAT_SECONDS = 10.0

POLL_SECONDS = 1.0
"""How often to check whether the run that is writing to the output has finished."""

WAIT_LOG_SECONDS = 60.0
"""How often a waiting run logs what it is waiting for."""


class OutputLease:
    """Exclusive write access to an output, held through the run's record `runs/<id>.json`.

    A heartbeat keeps the record up to date; the lease of a run whose heartbeat stops expires. When
    the run completes, its record is written to `manifest.json` as well.

    Args:
        store: the output.
        record: the record of the run before it starts.
        progress: counts of the run.
        on_lost: called if another run has taken the output over, with what is to stop this one.
        logger: where it says what it waits for; by default the log of the current flow run.

    Attributes:
        notes: which run this one waits for, and how far that one is.
    """

    def __init__(
        self,
        store: ObjectStore,
        record: RunRecord,
        progress: RunProgress,
        on_lost: Callable[[StoreError], None] = lambda _: None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._store = store
        # Does not wait: a heartbeat that is stored late looks like that of a dead run.
        self._impatience = Patience()
        self._hasty = store.with_patience(self._impatience)
        self._on_lost = on_lost
        self._record = record
        self._progress = progress
        self.notes: Sequence[str] = ()
        self._reported: set[str] = set()
        self._completed_runs: set[str] = set()
        self._logger = (
            logger or get_run_logger()
        )  # the heartbeat thread has no run context to get it from
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="run-record", daemon=True)

    @contextmanager
    def acquire(self, *, wait: bool) -> Iterator[None]:
        """Be the only writer to the output inside the block; on exit, record how the run ended.

        Args:
            wait: whether to wait while another run is writing to the output.

        Raises:
            OutputBusyError: another run is writing, and `wait` is false.
        """
        open_output(self._store)
        self._wait_for(self._duplicate, wait)
        ACTIVE_RUNS.add(self._record.run)
        try:
            self._write(self._store, state="waiting")
            self._heartbeat.start()
            self._take_turn(wait)
            yield
            self._end("interrupted", "it ended without being completed")
        except OutputBusyError:
            self._stop_heartbeat()
            self._store.remove(run_name(self._record.run))
            raise
        except BaseException as error:
            failed = isinstance(error, Exception)
            self._end("failed" if failed else "interrupted", str(error) or type(error).__name__)
            raise
        finally:
            ACTIVE_RUNS.discard(self._record.run)

    def _end(self, state: str, reason: str) -> None:
        """Record how the run ended if it was not completed; an error here must not hide that."""
        self._impatience.stop()
        self._stop_heartbeat()
        if not self._record.is_completed:
            with self._best_effort():
                self._write(self._hasty, state=state, error=reason, progress="", notes=())

    def complete(self, summary: RunSummary) -> None:
        """Record that the run is complete, in its record and in the manifest of the output."""
        self._stop_heartbeat()
        before = last_completed(self._store)
        if (
            before
            and before.parameters.exports.json_array
            and not self._record.parameters.exports.json_array
        ):
            self._store.remove(QA_JSON)  # it would be stale: this run does not write it
        counts = RunCounts(**summary.model_dump(exclude={"output", "store"}))
        record = self._changed(state="completed", counts=counts, progress="", notes=())
        complete_run(self._store, record)
        self._record = record

    def record_model(
        self, parameters: RunParameters, main: Pass, spec: RequestSpec, style: OpenStyle
    ) -> str:
        """Record the model and the digest of all that determines the answers.

        Returns:
            The name under which the row keys of this dataset and configuration are stored.
        """
        determining = {
            "model": spec.model,
            "model_revision": spec.model_revision,
            "system_prompt": main.system_prompt,
            "user_prompt": main.user_prompt,
            "style": [style.name, style.digest],
            "pairs": parameters.pairs_per_image,
            "asking": parameters.asking.model_dump(exclude={"corrective_retry"}),
            "parser": main.parsing.label,
            "sampling": dict(spec.sampling),
            "images": dict(spec.images),
        }
        configuration = configuration_key(determining)
        keys = f"{PassFolder(main.name).keys}/{configuration}/{dataset_key(parameters)}"
        self._write(
            self._store,
            model=spec.model,
            model_revision=spec.model_revision,
            configuration=configuration,
            keys=keys,
        )
        return keys

    def _take_turn(self, wait: bool) -> None:
        """Return when no other run writes to the output.

        Of several waiting runs, the one that was queued first goes ahead. It declares itself
        running and then checks again: if two do so at the same moment, the later one goes back to
        waiting.
        """
        while True:
            self._wait_for(lambda: self._blocking_run(include_later=True), wait)
            self._write(self._store, state="running", started=datetime.now(UTC))
            if self._blocking_run(include_later=False) is None:
                return
            self._write(self._store, state="waiting")

    def _wait_for(self, find: Callable[[], RunRecord | None], wait: bool) -> None:
        """Wait as long as `find` gives a run that must finish first; tell which, and log it."""
        logged = -math.inf
        with self._progress.watching(self):
            while other := find():
                started = f"{other.started:%Y-%m-%d %H:%M:%S} UTC"
                run = f"the run of {started} on {other.host} ({other.run})"
                if not wait:
                    raise OutputBusyError(
                        f"{self._store.uri}: {run} is writing there; wait until it has finished, "
                        "or choose another output"
                    )
                progress = f": {other.progress}" if other.progress else ""
                note = f"waiting for {run}, which is writing to {self._store.uri}{progress}"
                self.notes = (note,)
                if time.monotonic() - logged > WAIT_LOG_SECONDS:
                    logged = time.monotonic()
                    self._logger.warning(
                        "%s; to fail instead of waiting, use `--no-queue` (limits.queue false)",
                        note,
                    )
                time.sleep(POLL_SECONDS)
        self.notes = ()

    def _duplicate(self) -> RunRecord | None:
        """This same run, live in another process: Prefect restarted it, wrongly taken for dead."""
        try:
            run = read_run(self._store, run_name(self._record.run))
        except (ObjectMissingError, ObjectCorruptedError):
            return None
        own = (self._record.machine, self._record.process)
        return run if run.is_live and (run.machine, run.process) != own else None

    def _blocking_run(self, *, include_later: bool) -> RunRecord | None:
        """A live run that this one must wait for.

        Args:
            include_later: also if it was queued later but is already writing.
        """
        own = self._record
        for run in read_runs(self._store, self._report_corrupted, self._completed_runs):
            first = (run.queued, run.run) < (own.queued, own.run)
            first = first or (include_later and run.state == "running")
            if run.is_completed:
                self._completed_runs.add(run_name(run.run))  # need not be read again
            elif first and run.run != own.run and run.is_live:
                return run
        return None

    def _report_corrupted(self, corrupted: ObjectCorruptedError) -> None:
        """Log a corrupted record of another run, once."""
        if str(corrupted) not in self._reported:
            self._reported.add(str(corrupted))
            self._logger.warning("%s", corrupted)

    def _beat(self) -> None:
        """Write the record at regular intervals, even while a batch takes long."""
        last = time.monotonic()
        while not self._done.wait(HEARTBEAT_SECONDS):
            # That the store does not answer is said where the run waits for it.
            with self._best_effort(), suppress(StoreUnavailableError):
                if time.monotonic() - last > HEARTBEAT_TIMEOUT_SECONDS:
                    self._check_lease()
                self._write(self._hasty)
                last = time.monotonic()

    def _check_lease(self) -> None:
        """After heartbeats failed for so long that this run looked dead: has another taken over?"""
        other = self._blocking_run(include_later=True) if self._record.state == "running" else None
        if other is not None:
            self._on_lost(
                StoreError(
                    f"{self._store.uri}: did not answer for so long that another run took it over "
                    f"({other.run} on {other.host}); run again when that has finished"
                )
            )

    def _stop_heartbeat(self) -> None:
        self._done.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join()

    def _write(self, store: ObjectStore, **changed: object) -> None:
        with self._lock:
            progress = self._progress
            now = {
                "counts": progress.counts(),
                "progress": str(progress) if progress.started else "",
                "notes": progress.notes,
                "last_reply": progress.last_reply,
            }
            self._record = self._changed(**{**now, **changed})
            self._record.write(store)

    def _changed(self, **changed: object) -> RunRecord:
        now, total = datetime.now(UTC), self._progress.total
        return self._record.model_copy(update={"updated": now, "total": total, **changed})

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """Turn errors into a warning: a record that cannot be written must not stop the run."""
        try:
            yield
        except Exception as error:  # any error would silently end the heartbeat thread
            self._logger.warning("the record of the run could not be written: %s", error)
