"""Runs the flow with live progress on a terminal, or plain log lines."""

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Prefect imports these three when a run starts; here, its server is starting meanwhile.
import fastapi.encoders  # noqa: F401
import prefect.flow_engine
import prefect.task_engine  # noqa: F401
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from ...serving.endpoint import is_block_name
from ...serving.server.process import terminate_on_signals
from ...serving.server.vllm_python import find_vllm_python
from ...tasks.loading.dataset import Dataset
from ...tasks.object_store.patience import Patience
from ...tasks.runs.parameters import RunParameters
from ...tasks.runs.passes import run_style
from ..approval import ask_at_terminal, at_terminal
from ..batch_results import BatchResults
from ..image_qa import image_qa
from ..open_model import open_model, resolve_endpoint
from ..open_store import open_store
from ..pass_settings import open_table
from ..prefect_outage import bounded_exit
from ..prefect_server import check_server
from ..progress import RunProgress, use_progress
from ..run_log import IS_RESULT, error_is_printed
from ..summary import RunSummary

REFRESHES_PER_SECOND = 4


def run_in_terminal(dataset: str, parameters: Mapping[str, Any]) -> RunSummary:
    """Run the flow with live progress on a terminal, plain log lines otherwise.

    Style, dataset and endpoint are checked before Prefect or a server starts, so that a typo fails
    fast.

    Args:
        dataset: path or URI.
        parameters: the other parameters of `image_qa`; the endpoint as a list, or as what the
            model has replied already.

    Raises:
        ImageQAError: as `image_qa` does.
    """
    bound = inspect.signature(image_qa.fn).bind(dataset, **parameters)
    bound.apply_defaults()
    checked = RunParameters(**bound.arguments)
    check_server()
    patience = Patience(checked.limits.store_wait)
    output = open_store(checked.output, checked.store).with_patience(patience)
    style = run_style(checked, output.s3_credentials)
    table = open_table(checked, style, output.s3_credentials)
    patience.stop()  # from here on it is the run that waits
    endpoint = parameters.get("endpoint") or []
    if not isinstance(endpoint, BatchResults):
        endpoint = _checked_endpoint(endpoint, checked)
    progress = RunProgress()
    said, ends = error_is_printed(image_qa), bounded_exit()
    with terminate_on_signals(), said, ends, use_progress(progress), _display(progress, table):
        summary: RunSummary = image_qa(**{**bound.arguments, "endpoint": endpoint})
    return summary


def _checked_endpoint(names: list[str], parameters: RunParameters) -> str | list[str] | None:
    """The endpoint as the flow takes it, after a check whether it can be used."""
    urls = [url for url in names if not is_block_name(url)]
    if urls or not names:
        resolve_endpoint(urls, parameters.model or None)
    if not names:
        find_vllm_python()
    elif urls and not parameters.limits.wait:
        with open_model(urls, parameters.model or None):
            pass
    # A single value may be the name of a block.
    return names[0] if len(names) == 1 else names or None


@contextmanager
def _display(progress: RunProgress, source: Dataset) -> Iterator[None]:
    console = Console(stderr=True, markup=False)  # log lines may contain brackets
    if not console.is_terminal:
        yield
        return
    if source.count is None:
        threading.Thread(target=progress.count, args=(source,), daemon=True).start()
    view = _ProgressView(progress, console)
    live = Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
        transient=True,
    )

    def ask(question: str, seconds: float) -> bool:
        live.stop()  # it would write over the question
        try:
            return ask_at_terminal(question, seconds)
        finally:
            live.start()

    progress.ask = ask if at_terminal() else None
    with live, _logging_to(console):
        yield


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Print log lines on the console of a live display: it moves aside only for its own console."""
    root = logging.getLogger().handlers
    handlers = [handler for handler in root if isinstance(handler, PrefectConsoleHandler)]
    own = [handler.console for handler in handlers]
    for handler in handlers:
        handler.console = console
        handler.addFilter(_is_shown)
    try:
        yield
    finally:
        for handler, original in zip(handlers, own, strict=True):
            handler.console = original
            handler.removeFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    """Of the lines of a run, only warnings and results are shown: the bar tells the rest."""
    is_of_run = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
    matters = record.levelno >= logging.WARNING or hasattr(record, IS_RESULT)
    return matters or not is_of_run


class _ProgressView:
    """A bar; below it the counts, and then the notes, each on lines of its own."""

    def __init__(self, progress: RunProgress, console: Console) -> None:
        self._progress = progress
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None)

    def render(self) -> Group:
        """The present state; called for every refresh."""
        progress = self._progress
        self._bar.update(
            self._task,
            description=self._step(),
            completed=progress.done,
            total=progress.total if progress.started else None,
        )
        lines = [Text(note, style="yellow") for note in progress.notes]
        if progress.started:
            in_flight = f"{progress.stats.in_flight:,} in flight"
            quarantined = f"{progress.all_quarantined:,} quarantined"
            lines.insert(0, Text(f"{progress}, {in_flight}, {quarantined}"))
        return Group(self._bar, *lines)

    def _step(self) -> str:
        if not self._progress.started:
            return "starting"
        return "finishing" if self._progress.is_done else "generating"
