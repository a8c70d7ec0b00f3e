"""Runs the flow with live progress on a terminal, or plain log lines."""

import inspect
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ...serving.server.process import terminate_on_signals
from ...tasks.loading.dataset import Dataset, load_dataset
from ...tasks.runs.parameters import RunParameters
from ..image_qa import image_qa
from ..open_model import open_model
from ..prefect_server import check_server
from ..progress import RunProgress, use_progress
from ..run import open_store
from ..summary import RunSummary

REFRESH_SECONDS = 0.5


def run_in_terminal(dataset: str, parameters: Mapping[str, Any]) -> RunSummary:
    """Run the flow with live progress on a terminal, plain log lines otherwise.

    Dataset and endpoint are checked before Prefect or a server starts, so that a typo fails fast.

    Args:
        dataset: path or URI.
        parameters: the other parameters of `image_qa`; the endpoint as a list.

    Raises:
        ImageQAError: as `image_qa` does.
    """
    bound = inspect.signature(image_qa.fn).bind(dataset, **parameters)
    bound.apply_defaults()
    checked = RunParameters(**bound.arguments)
    check_server()
    table = load_dataset.fn(
        dataset,
        checked.columns,
        checked.output,
        checked.images.root,
        checked.max_rows,
        open_store(checked.output, checked.store).s3_credentials,
    )
    names = parameters.get("endpoint") or []
    urls = [url for url in names if "://" in url]
    if urls:
        with open_model(urls, checked.model or None, max_in_flight=1):
            pass
    progress = RunProgress()
    use_progress(progress)
    # A single value may be the name of a block.
    endpoint = names[0] if len(names) == 1 else names or None
    with terminate_on_signals(), _display(progress, table):
        summary: RunSummary = image_qa(**{**bound.arguments, "endpoint": endpoint})
    return summary


@contextmanager
def _display(progress: RunProgress, source: Dataset) -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    # Log lines would disturb the progress bar; only warnings are shown, above it.
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if source.count is None:
        threading.Thread(target=progress.count, args=(source,), daemon=True).start()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar, _refreshing(bar, progress):
        yield


@contextmanager
def _refreshing(bar: Progress, progress: RunProgress) -> Iterator[None]:
    stop = threading.Event()
    task = bar.add_task("starting", total=None, counts="")

    def refresh() -> None:
        while not stop.wait(REFRESH_SECONDS):
            if progress.started:
                bar.update(
                    task,
                    description="generating",
                    completed=progress.done,
                    total=progress.total,
                    counts=f"{progress.rows_per_second:,.1f} rows/s, "
                    f"{progress.stats.in_flight} in flight, {progress.quarantined} quarantined",
                )

    thread = threading.Thread(target=refresh, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.stderr.flush()
