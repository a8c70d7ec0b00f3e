"""What a run shows in Prefect's UI, while it goes on and at its end. None of it stops a run.

Artifacts are named by the output: the runs of a schedule form one history, and each flow run
still lists its own.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from ...tasks.loading.dataset import Dataset
from ...tasks.object_store.store import ObjectStore
from ...tasks.reporting.artifacts import (
    artifact_key,
    as_text,
    gallery_markdown,
    quarantine_table,
    summary_markdown,
)
from ...tasks.reporting.samples import SampledRow
from ..progress import RunProgress
from ..summary import RunSummary

UPDATE_SECONDS = 2.0
"""Between two updates of the progress: each costs Prefect's server some 20 ms."""

PATIENCE_SECONDS = 3.0
"""How long the end of a run waits for an update that is on its way."""


@contextmanager
def progress_shown(output: ObjectStore, source: Dataset, progress: RunProgress) -> Iterator[None]:
    """Show inside the block how far a run is; from threads of its own, so that it costs nothing."""
    shown = _ShownProgress(artifact_key(output.uri, "progress"), source.name, progress)
    over = threading.Event()
    threading.Thread(target=progress.count, args=(source,), daemon=True).start()

    def follow() -> None:
        shown.update()
        while not over.wait(UPDATE_SECONDS):
            shown.update()
        shown.update()

    # With the run's context: otherwise a thread knows neither the run nor Prefect's settings.
    thread = threading.Thread(
        target=copy_context().run, args=(follow,), name="progress-artifact", daemon=True
    )
    thread.start()
    try:
        yield
        shown.finished = True
    finally:
        progress.over = True
        over.set()
        thread.join(PATIENCE_SECONDS)


def show_results(
    output: ObjectStore,
    summary: RunSummary,
    samples: Sequence[SampledRow],
    *,
    dataset: str,
    model: str,
    files: Mapping[str, str],
) -> None:
    """Show what came of a run: its summary, a gallery, and what is quarantined.

    `files` are objects of the output that people look at, title -> name.
    """

    def show_summary() -> None:
        places = {title: output.uri_of(name) for title, name in files.items()}
        told = summary_markdown(summary, dataset=dataset, model=model, files=places)
        create_markdown_artifact(told, key("summary"), description("Summary"))

    def show_gallery() -> None:
        told = gallery_markdown(samples, of=summary.rows)
        create_markdown_artifact(told, key("gallery"), description("Gallery"))

    def show_quarantine() -> None:
        table = quarantine_table(output)
        told = f"Quarantined: {summary.quarantined:,} of {summary.rows:,} rows"
        if len(table) < summary.quarantined:
            told = f"{told}, the first {len(table):,}"
        create_table_artifact(table, key("quarantine"), description(told))

    def key(what: str) -> str:
        return artifact_key(output.uri, what)

    def description(what: str) -> str:
        return f"{what} of {as_text(dataset)}"

    # All of them, also where there is nothing to show: an older run's would stand for it.
    _shown("summary", show_summary)
    _shown("gallery", show_gallery)
    _shown("quarantine", show_quarantine)


class _ShownProgress:
    """A progress artifact; `finished`: all is done, also where it was never counted how much."""

    def __init__(self, key: str, dataset: str, progress: RunProgress) -> None:
        self.finished = False
        self._key = key
        self._dataset = as_text(dataset)
        self._progress = progress
        self._artifact: UUID | None = None
        self._warned = False

    def update(self) -> None:
        self._warned = not _shown("progress", self._send, warn=not self._warned) or self._warned

    def _send(self) -> None:
        progress = self._progress
        share = min(progress.done / progress.total, 1.0) if progress.total else 0.0
        percent = 100.0 if self.finished else round(100 * share, 1)
        told = f"{self._dataset}: {progress}, {progress.quarantined:,} quarantined"
        if self._artifact is None:
            self._artifact = cast("UUID", create_progress_artifact(percent, self._key, told))
        else:
            update_progress_artifact(self._artifact, percent, told)


def _shown(what: str, show: Callable[[], object], *, warn: bool = True) -> bool:
    """Whether something could be shown; where it could not, the run goes on all the same."""
    try:
        show()
    except Exception as error:  # whatever Prefect's client or the output may raise
        if warn:
            reason = str(error).partition("\n")[0]
            get_run_logger().warning("the %s artifact could not be shown: %s", what, reason)
        return False
    return True
