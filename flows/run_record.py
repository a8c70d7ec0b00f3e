"""The record of the current run: its heartbeat, its turn to write, and how it ends."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from ..tasks.errors import ObjectCorruptedError, ObjectMissingError, OutputBusyError
from ..tasks.exporting.export import QA_JSON
from ..tasks.object_store.store import ObjectStore
from ..tasks.prompting.keys import RequestSpec, configuration_key
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import Pass
from ..tasks.runs.records import (
    ACTIVE_RUNS,
    RunCounts,
    RunRecord,
    complete_run,
    last_completed,
    read_run,
    read_runs,
    this_host,
)
from ..tasks.storing.layout import PassFolder, open_output, run_name
from .progress import RunProgress
from .summary import RunSummary

HEARTBEAT_SECONDS = 10.0

POLL_SECONDS = 1.0
"""Between two looks whether the run that writes to the output is done."""

WAIT_LOG_SECONDS = 60.0
"""How often it is said again what is waited for."""


class OutputLease:
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
        self._over: set[str] = set()
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
        self._give_way(self._double, wait)
        ACTIVE_RUNS.add(self._record.run)
        try:
            self._write(state="waiting")
            self._heart.start()
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
        finally:
            ACTIVE_RUNS.discard(self._record.run)

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
        before = last_completed(self._store)
        if (
            before
            and before.parameters.exports.json_array
            and not self._record.parameters.exports.json_array
        ):
            self._store.remove(QA_JSON)  # it would tell of the run before
        counts = RunCounts(**summary.model_dump(exclude={"output", "store"}))
        record = self._changed(state="completed", counts=counts)
        complete_run(self._store, record)
        self._record = record

    def describe(self, parameters: RunParameters, main: Pass, spec: RequestSpec) -> str:
        """Record what decides the answers, now that the model is known.

        Returns:
            The name that the row keys of the dataset and this configuration are kept under.

        Raises:
            StoreError: the output cannot be written.
        """
        deciding = {
            "model": spec.model,
            "model_revision": spec.model_revision,
            "system_prompt": main.system_prompt,
            "user_prompt": main.user_prompt,
            "prompt_style": spec.prompt,
            "parser": main.parsing.label,
            "sampling": dict(spec.sampling),
            "images": dict(spec.images),
        }
        configuration = configuration_key(deciding)
        keys = f"{PassFolder(main.name).keys}/{configuration}/{dataset_key(parameters)}"
        self._write(
            model=spec.model,
            model_revision=spec.model_revision,
            configuration=configuration,
            keys=keys,
        )
        return keys

    def _take_turn(self, wait: bool) -> None:
        """Return when no other run writes to the output.

        Of runs that find each other waiting, the one that was first goes on; one that goes on says
        so, and looks once more: of two that do so at the same moment, the later one waits again.
        """
        while True:
            self._give_way(lambda: self._other(also_later=True), wait)
            self._write(state="running", started=datetime.now(UTC))
            if self._other(also_later=False) is None:
                return
            self._write(state="waiting")

    def _give_way(self, find: Callable[[], RunRecord | None], wait: bool) -> None:
        """Wait as long as there is another run that comes first, and say so."""
        told = -math.inf
        while other := find():
            run = f"the run of {other.started:%Y-%m-%d %H:%M:%S} UTC on {other.host} ({other.run})"
            if not wait:
                raise OutputBusyError(
                    f"{self._store.uri}: {run} is writing there; wait until it is done, or choose "
                    "another output"
                )
            if time.monotonic() - told > WAIT_LOG_SECONDS:
                told = time.monotonic()
                self._logger.warning(
                    "waiting until %s is done, which is writing to %s; `--no-wait` "
                    "(limits.wait false) refuses instead",
                    run,
                    self._store.uri,
                )
            time.sleep(POLL_SECONDS)

    def _double(self) -> RunRecord | None:
        """This very run, at work in another process: Prefect took it for dead, and it is not."""
        try:
            run = read_run(self._store, run_name(self._record.run))
        except (ObjectMissingError, ObjectCorruptedError):
            return None
        own = (self._record.machine, self._record.process)
        return run if run.is_live and (run.machine, run.process) != own else None

    def _other(self, *, also_later: bool) -> RunRecord | None:
        """A live run that this one must give way to.

        Args:
            also_later: also to one that came later, if it is writing already.
        """
        own = self._record
        for run in read_runs(self._store, self._pass_over, self._over):
            first = (run.queued, run.run) < (own.queued, own.run)
            first = first or (also_later and run.state == "running")
            if run.is_completed:
                self._over.add(run_name(run.run))  # it need not be read again
            elif first and run.run != own.run and run.is_live:
                return run
        return None

    def _pass_over(self, corrupted: ObjectCorruptedError) -> None:
        if str(corrupted) not in self._passed_over:
            self._passed_over.add(str(corrupted))
            self._logger.warning("%s", corrupted)

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
        except Exception as error:  # or its heart would stop without a word
            self._logger.warning("the record of the run could not be written: %s", error)


def new_record(run_id: str, parameters: RunParameters, dataset: str, main: Pass) -> RunRecord:
    """The record of a run that has not begun yet; `dataset` is the short name."""
    now = datetime.now(UTC)
    packages = ("prefect-imageqa", "prefect", "pandas", "pillow")
    return RunRecord(
        run=run_id,
        state="waiting",
        dataset=dataset,
        user_prompt=main.user_prompt,
        parser=main.parsing.label,
        **this_host(),
        queued=now,
        started=now,
        updated=now,
        versions={name: version(name) for name in packages},
        told=parameters,
    )


def dataset_key(parameters: RunParameters) -> str:
    """Name a dataset, for what is kept per configuration and dataset."""
    given = parameters.dataset
    named = str(given) if isinstance(given, str | Path) else _frame_name(given)
    return configuration_key({"dataset": named, "limited": parameters.max_rows is not None})


def _frame_name(frame: Any) -> str:
    """What tells a DataFrame from others, and stays as it grows: its columns and first row."""
    first = frame.iloc[0].tolist() if len(frame) else []
    cells = [
        repr(cell) if isinstance(cell, str | int | float) else type(cell).__name__ for cell in first
    ]
    return json.dumps([[str(column) for column in frame.columns], cells])
