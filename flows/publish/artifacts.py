"""The artifacts of a run in Prefect's UI: its progress, and its results at the end.

A failure to publish one never fails the run. Artifacts are named after the output, so the runs of
a schedule form one history; each flow run still lists its own.
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
from ...tasks.reporting.evaluation import Evaluation
from ...tasks.reporting.markdown import (
    artifact_key,
    escape_markdown,
    funnel_markdown,
    gallery_markdown,
    quarantine_table,
    summary_markdown,
)
from ...tasks.reporting.quarantine import quarantine_groups
from ...tasks.reporting.samples import SampledRow
from ..client_settings import client_settings
from ..prefect_outage import server_has_answered
from ..progress import RunProgress
from ..summary import RunSummary

UPDATE_SECONDS = 2.0
"""Interval between progress updates: each costs Prefect's server some 20 ms."""

FINAL_UPDATE_SECONDS = 3.0
"""How long the end of a run waits for the last progress update."""


@contextmanager
def show_progress(
    output: ObjectStore, source: Dataset, progress: RunProgress
) -> Iterator[Callable[[], None]]:
    """Publish the progress of a run during the block, from other threads so as not to slow it.

    Yields a function that shows the run as complete before the end of the block.
    """
    artifact = _ProgressArtifact(artifact_key(output.uri, "progress"), source.name, progress)
    stopped = threading.Event()
    threading.Thread(target=progress.count, args=(source,), daemon=True).start()

    def update_until_stopped() -> None:
        with client_settings(max_retries=1):  # the next update is soon
            artifact.update()
            while not stopped.wait(UPDATE_SECONDS):
                artifact.update()
            artifact.update()

    # Without the run's context the thread would have neither the flow run nor Prefect's settings.
    thread = threading.Thread(
        target=copy_context().run,
        args=(update_until_stopped,),
        name="progress-artifact",
        daemon=True,
    )
    thread.start()

    def complete() -> None:
        artifact.completed = True
        stopped.set()

    try:
        yield complete
        complete()
    finally:
        progress.finished = True
        stopped.set()
        thread.join(FINAL_UPDATE_SECONDS)


def show_results(
    output: ObjectStore,
    summary: RunSummary,
    *,
    dataset: str,
    model: str,
    files: Mapping[str, str],
    duplicates: int = 0,
) -> None:
    """Publish the results of a run: its summary, and the quarantined rows.

    Args:
        output: where the run wrote.
        summary: its counts.
        dataset: name of the dataset.
        model: name of the model.
        files: objects of the output to list in the summary, title -> name.
        duplicates: rows of the dataset that are like an earlier one.
    """

    def show_summary() -> None:
        uris = {title: output.uri_of(name) for title, name in files.items()}
        markdown = summary_markdown(
            summary, dataset=dataset, model=model, files=uris, duplicates=duplicates
        )
        key = artifact_key(output.uri, "summary")
        create_markdown_artifact(markdown, key, _described("Summary", dataset))

    def show_quarantine() -> None:
        groups = quarantine_groups(output)
        table = quarantine_table(groups)
        title = f"Quarantined: {summary.quarantined:,} of {summary.rows:,} rows"
        if len(table) < len(groups):
            title = f"{title}, the {len(table):,} most common reasons"
        key = artifact_key(output.uri, "quarantine")
        create_table_artifact(table, key, _described(title, dataset))

    # Publish even an empty one: otherwise the artifact of an older run would remain the latest.
    _try_publish("summary", show_summary)
    _try_publish("quarantine", show_quarantine)


def show_gallery(output: ObjectStore, rows: Sequence[SampledRow], *, of: int, dataset: str) -> None:
    """Publish a gallery of rows of a completed run.

    Args:
        output: where the run wrote.
        rows: those to show.
        of: how many rows the run has.
        dataset: name of the dataset.
    """

    def show() -> None:
        key = artifact_key(output.uri, "gallery")
        markdown = gallery_markdown(rows, of=of)
        create_markdown_artifact(markdown, key, _described("Gallery", dataset))

    _try_publish("gallery", show)


def show_funnel(
    output: ObjectStore, summary: RunSummary, evaluation: Evaluation, *, dataset: str
) -> None:
    """Publish what remained of the rows and pairs of a run after each step.

    Args:
        output: where the run wrote.
        summary: its counts.
        evaluation: of its pairs.
        dataset: name of the dataset.
    """
    key = artifact_key(output.uri, "funnel")

    def show() -> None:
        markdown = funnel_markdown(summary, evaluation)
        create_markdown_artifact(markdown, key, _described("Checks", dataset))

    _try_publish("funnel", show)


def show_pilot(
    output: ObjectStore, statement: Sequence[str], rows: Sequence[SampledRow], *, of: int
) -> None:
    """Publish what a pilot has shown.

    Args:
        output: where the run writes.
        statement: a clause each.
        rows: those for the gallery.
        of: how many rows the pilot has.
    """
    lines = [f"- {escape_markdown(clause)}" for clause in statement]
    markdown = "\n".join(["# Pilot", "", *lines, "", gallery_markdown(rows, of=of)])
    key = artifact_key(output.uri, "pilot")
    _try_publish("pilot", lambda: create_markdown_artifact(markdown, key, "Pilot"))


class _ProgressArtifact:
    """A progress artifact.

    Attributes:
        completed: shows 100 %, even if the rows of the dataset were never counted.
    """

    def __init__(self, key: str, dataset: str, progress: RunProgress) -> None:
        self.completed = False
        self._key = key
        self._dataset = escape_markdown(dataset)
        self._progress = progress
        self._artifact: UUID | None = None
        self._warned = False

    def update(self) -> None:
        """Send the current progress; warn at the first failure only."""
        try:
            self._send()
        except Exception as error:  # whatever Prefect's client may raise
            # When the run has ended, Prefect's clients are closed under an update that hangs.
            if not self._warned and not self._progress.finished:
                _warn("progress", error)
            self._warned = True

    def _send(self) -> None:
        progress = self._progress
        share = min(progress.done / progress.total, 1.0) if progress.total else 0.0
        percent = 100.0 if self.completed else round(100 * share, 1)
        text = f"{progress.headline}, {progress.all_quarantined:,} quarantined; {self._dataset}"
        text = "; ".join((text, *map(escape_markdown, progress.notes)))
        if self._artifact is None:
            self._artifact = cast("UUID", create_progress_artifact(percent, self._key, text))
        else:
            update_progress_artifact(self._artifact, percent, text)
        server_has_answered()


def _described(title: str, dataset: str) -> str:
    return f"{title} of {escape_markdown(dataset)}"


def _try_publish(what: str, publish: Callable[[], object]) -> None:
    """Publish an artifact; a failure must not stop the run."""
    try:
        publish()
    except Exception as error:  # whatever Prefect's client or the output may raise
        _warn(what, error)


def _warn(what: str, error: Exception) -> None:
    reason = str(error).partition("\n")[0]
    get_run_logger().warning("could not publish the %s artifact: %s", what, reason)
