"""The record of the current run: its heartbeat, its turn to write, and how it ends."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect import get_run_logger

from ..tasks.errors import ObjectDamagedError, OutputBusyError, StoreError
from ..tasks.exporting import QA_JSON
from ..tasks.object_store import ObjectStore
from ..tasks.run_records import RunCounts, RunRecord, complete_run, last_completed, read_runs
from ..tasks.storing import open_output, read_manifest, run_name
from .progress import RunProgress
from .summary import RunSummary

HEARTBEAT_SECONDS = 10.0

LOOK_SECONDS = 1.0
"""Between two looks whether the run that writes to the output is done."""

TOLD_SECONDS = 60.0
"""How often it is said again what is waited for."""


class KeptRecord:
    """`runs/<id>.json` while the run goes on, and `manifest.json` when it is complete.

    Args:
        store: the output.
        record: what is known of the run as it begins.
        progress: where the run counts.
    """

    def __init__(self, store: ObjectStore, record: RunRecord, progress: RunProgress) -> None:
        self._store = store
        self._record = record
        self._progress = progress
        self._passed_over: set[str] = set()
        self._logger = get_run_logger()  # a thread of its own has none
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run-record", daemon=True)

    @contextmanager
    def kept(self, *, wait: bool) -> Iterator[None]:
        """Write to the output alone inside the block; write how the run ended if it does not.

        Args:
            wait: whether to wait while another run is writing to the output.

        Raises:
            OutputBusyError: one is, and this one does not wait.
            StoreError: the output cannot be read or written.
        """
        open_output(self._store)
        self._write(state="waiting")
        self._heart.start()
        try:
            self._take_turn(wait)
            yield
            self._end("interrupted", "it has ended without being completed")
        except OutputBusyError:
            self._stop_beating()
            self._store.remove(run_name(self._record.run))
            raise
        except BaseException as error:
            failed = isinstance(error, Exception)
            self._end("failed" if failed else "interrupted", str(error) or type(error).__name__)
            raise

    def _end(self, state: str, reason: str) -> None:
        """Record how the run has ended, if it was not completed; its record must not stop it."""
        self._stop_beating()
        if not self._record.is_completed:
            with self._best_effort():
                self._write(state=state, error=reason)

    def complete(self, summary: RunSummary) -> None:
        """Record the end of the run, and that the output is in this state.

        Raises:
            StoreError: the output cannot be written.
        """
        self._stop_beating()
        before = last_completed(self._store, read_manifest(self._store) or {})
        if before and before.told.exports.json_array and not self._record.told.exports.json_array:
            self._store.remove(QA_JSON)  # it would tell of the run before
        counts = RunCounts(**summary.model_dump(exclude={"output", "store"}))
        self._record = self._changed(state="completed", counts=counts)
        complete_run(self._store, self._record)

    def _take_turn(self, wait: bool) -> None:
        """Return when no other run writes to the output.

        Of runs that find each other waiting, the one that was first goes on; one that goes on says
        so, and looks once more: of two that do so at the same moment, the later one steps back.
        """
        told = -math.inf
        while True:
            while other := self._other(before=True):
                if not wait:
                    raise OutputBusyError(
                        f"{self._store.uri}: {_described(other)} is writing there; wait until "
                        "it is done, or choose another output"
                    )
                if time.monotonic() - told > TOLD_SECONDS:
                    told = time.monotonic()
                    self._logger.warning(
                        "waiting until %s is done, which is writing to %s; `--no-wait` "
                        "(limits.wait false) refuses instead",
                        _described(other),
                        self._store.uri,
                    )
                time.sleep(LOOK_SECONDS)
            self._write(state="running", started=datetime.now(UTC))
            if self._other(before=False) is None:
                return
            self._write(state="waiting")

    def _other(self, *, before: bool) -> RunRecord | None:
        """A live run that this one must give way to.

        Args:
            before: also one that came later, if it is writing already.
        """
        own = self._record
        for run in read_runs(self._store, self._pass_over):
            first = (run.queued, run.run) < (own.queued, own.run)
            if (
                run.run != own.run
                and (first or (before and run.state == "running"))
                and run.is_live
            ):
                return run
        return None

    def _pass_over(self, damaged: ObjectDamagedError) -> None:
        if str(damaged) not in self._passed_over:
            self._passed_over.add(str(damaged))
            self._logger.warning("%s", damaged)

    def _beat(self) -> None:
        """Say now and then how far the run is, also while a batch takes long."""
        while not self._done.wait(HEARTBEAT_SECONDS):
            with self._best_effort():
                self._write()

    def _stop_beating(self) -> None:
        self._done.set()
        if self._heart.is_alive():
            self._heart.join()

    def _write(self, **changed: object) -> None:
        with self._lock:
            self._record = self._changed(counts=self._progress.counts(), **changed)
            self._record.write(self._store)

    def _changed(self, **changed: object) -> RunRecord:
        now, total = datetime.now(UTC), self._progress.total
        return self._record.model_copy(update={"updated": now, "total": total, **changed})

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """The record tells of the work; it must not stop it."""
        try:
            yield
        except StoreError as error:
            self._logger.warning("the record of the run could not be written: %s", error)


def _described(run: RunRecord) -> str:
    return f"the run of {run.started:%Y-%m-%d %H:%M:%S} UTC on {run.host} ({run.run})"
