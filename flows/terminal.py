"""A run as a person at a terminal, or a log file, sees it."""

import logging
import sys
import threading
from collections.abc import Iterator
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

from ..serving.process import terminate_on_signals
from ..tasks.loading import Dataset, open_dataset
from ..tasks.object_store import load_store
from .endpoints import asked_model
from .progress import RunProgress, watch
from .settings import Columns, Images
from .summary import RunSummary

REFRESH_SECONDS = 0.5


def run_in_terminal(
    *,
    dataset: str,
    endpoint: list[str] | None,
    model: str | None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    images: Images = Images(),  # noqa: B008
    store: str | None = None,
    **arguments: Any,
) -> RunSummary:
    """Run the flow with live progress on a terminal, plain log lines otherwise.

    Dataset and endpoint are looked at before Prefect or a server starts: a typo costs no minute.

    Raises:
        ImageQAError: as `image_qa` does.
    """
    from .image_qa import image_qa
    from .prefect_server import check_server

    check_server()
    source = open_dataset(
        dataset,
        image_key=columns.image or "",
        conversation_key=columns.conversation,
        image_root=images.root or None,
        require_images=columns.image is not None,
        credentials=load_store(store).s3_credentials if store else None,
    )
    urls = [url for url in endpoint or [] if "://" in url]
    if urls:
        with asked_model(urls, model, max_in_flight=1):
            pass
    progress = RunProgress()
    watch(progress)
    with terminate_on_signals(), _display(progress, source, arguments.get("limit")):
        summary: RunSummary = image_qa(
            dataset=dataset,
            # A single name may be that of a block.
            endpoint=endpoint[0] if endpoint and len(endpoint) == 1 else endpoint,
            model=model,
            columns=columns,
            images=images,
            store=store,
            **arguments,
        )
    return summary


@contextmanager
def _display(progress: RunProgress, source: Dataset, limit: int | None) -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    # Log lines would tear the display; warnings still come through, above it.
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if source.count is None:
        threading.Thread(target=progress.count, args=(source, limit), daemon=True).start()
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
                    description="asking",
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
