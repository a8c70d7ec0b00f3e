"""The record of a run in its output: what was asked of what, how far it is, what came of it."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect import get_run_logger
from prefect.runtime import flow_run

from ..tasks.caching import configuration_key
from ..tasks.errors import StoreError
from ..tasks.object_store import ObjectStore
from ..tasks.outputs import read_runs
from ..tasks.parsing import ParseSettings
from ..tasks.prompting import PromptSettings
from ..tasks.storing import open_output, write_manifest, write_run
from .progress import RunProgress
from .settings import Columns, DatasetLike
from .summary import RunSummary

if TYPE_CHECKING:
    import pandas as pd

ENTERING_SECONDS = 5.0
"""How long a run that is about to begin is waited for; it takes two small writes."""

BEAT_SECONDS = 10.0
"""How often a run says that it is alive."""


@dataclass(frozen=True)
class RowSource:
    """Where the rows of a run come from.

    Attributes:
        dataset: as the user gave it.
        columns: which of its columns are used.
        image_root: folder that relative image paths start from.
        limit: only so many of its first rows.
    """

    dataset: DatasetLike
    columns: Columns
    image_root: str | None
    limit: int | None

    def told(self) -> Mapping[str, Any]:
        """What is kept, to find images again; a DataFrame has no place to be found at."""
        place = str(self.dataset) if isinstance(self.dataset, str | Path) else ""
        if place and "://" not in place:
            place = os.path.abspath(Path(place).expanduser())  # noqa: PTH100 (keeps links)
        return {
            "dataset": place,
            "columns": self.columns.model_dump(),
            "image_root": self.image_root,
            "limit": self.limit,
        }


class RunRecord:
    """`runs/<id>.json` while the run goes on, and `manifest.json` when it is complete.

    Attributes:
        keys_name: what the row keys of this dataset and configuration are kept under.

    Args:
        store: the output.
        dataset: its short name.
        source: where its rows come from, see `RowSource`.
        prompting: what is asked.
        parsing: how replies are parsed.
        progress: where the run counts.
    """

    def __init__(
        self,
        store: ObjectStore,
        dataset: str,
        source: RowSource,
        prompting: PromptSettings,
        parsing: ParseSettings,
        progress: RunProgress,
    ) -> None:
        self.run_id = str(flow_run.id or uuid4())
        told = _told(prompting, parsing)
        configuration = configuration_key(told)
        self.keys_name = f"{configuration}/{dataset_key(source)}"
        self._store = store
        self._progress = progress
        names = ("prefect-imageqa", "prefect", "pandas", "pillow")
        self._head = {
            "run": self.run_id,
            "started": _now("microseconds"),
            "dataset": dataset,
            "source": source.told(),
            "configuration": configuration,
            "keys": self.keys_name,
            **told,
            "versions": {name: version(name) for name in names},
        }
        self._logger = get_run_logger()  # a thread of its own has none
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="run-record", daemon=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the record now, and how the run ended if it is not completed.

        Raises:
            StoreError: the output cannot be written.
        """
        open_output(self._store)
        # Of two runs that begin at once, both must know which is earlier: one that is about to
        # take its time says so, and is waited for in `is_beside`.
        self._write("running", {"entering": True})
        self._head["started"] = _now("microseconds")
        self._write("running")
        self._beating.start()
        try:
            yield
        except BaseException as error:
            self._stop_beating()
            reason = str(error) or type(error).__name__
            with self._best_effort():
                failed = isinstance(error, Exception)
                self._write("failed" if failed else "interrupted", {"error": reason})
            raise
        self._stop_beating()

    def is_beside(self) -> bool:
        """Whether an earlier run of the same dataset and configuration is at work on the output.

        Of two that start at the same moment, one is told so.
        """
        deadline = time.monotonic() + ENTERING_SECONDS
        while True:
            try:
                runs = read_runs(self._store)
            except StoreError as error:  # it only saves requests to know
                self._logger.warning("other runs of this output cannot be told: %s", error)
                return False
            same = [run for run in runs if run.is_going and run.keys == self.keys_name]
            if time.monotonic() > deadline or not any(run.entering for run in same):
                break
            time.sleep(0.1)
        going = [run.run for run in sorted(same, key=lambda run: (run.started, run.run))]
        return self.run_id in going[1:]

    def _beat(self) -> None:
        """Say now and then how far the run is, also while a batch takes long."""
        while not self._done.wait(BEAT_SECONDS):
            with self._best_effort():
                self._write("running")

    def _stop_beating(self) -> None:
        self._done.set()
        self._beating.join()

    def complete(self, summary: RunSummary) -> None:
        """Record the end of the run, and that the output is in this state.

        Raises:
            StoreError: the output cannot be written.
        """
        self._stop_beating()
        done = {"summary": summary.model_dump(mode="json")}
        write_manifest(self._store, self._write("completed", done))

    def _write(self, state: str, more: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        progress = self._progress
        record = {
            **self._head,
            "state": state,
            "updated": _now(),
            "progress": {
                "total": progress.total,
                "asked": progress.asked,
                "retried": progress.retried,
                "reused": progress.reused,
                "ok": progress.ok,
                "quarantined": progress.quarantined,
                "requests": progress.stats.requests,
                "prompt_tokens": progress.stats.prompt_tokens,
                "completion_tokens": progress.stats.completion_tokens,
            },
            **(more or {}),
        }
        write_run(self._store, self.run_id, record)
        return record

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """The record tells of the work; it must not stop it."""
        try:
            yield
        except StoreError as error:
            self._logger.warning("the record of the run could not be written: %s", error)


def dataset_key(source: RowSource) -> str:
    """Name a dataset, for what is kept per configuration and dataset."""
    given = source.dataset
    named = str(given) if isinstance(given, str | Path) else _frame_name(given)
    return configuration_key({"dataset": named, "limited": source.limit is not None})


def _frame_name(frame: "pd.DataFrame") -> str:
    """What tells a DataFrame from others, and stays as it grows: its columns and first row."""
    first = frame.iloc[0].tolist() if len(frame) else []
    cells = [
        repr(cell) if isinstance(cell, str | int | float) else type(cell).__name__ for cell in first
    ]
    return json.dumps([[str(column) for column in frame.columns], cells])


def _told(prompting: PromptSettings, parsing: ParseSettings) -> dict[str, Any]:
    """What decides the answers of a run. No secret is in it."""
    spec = prompting.spec
    return {
        "model": spec.model,
        "model_revision": spec.model_revision,
        "system_prompt": prompting.system_prompt,
        "user_prompt": prompting.user_prompt,
        "prompt_style": spec.prompt,
        "parser": parsing.label,
        "sampling": dict(spec.sampling),
        "images": dict(spec.images),
    }


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=precision)
