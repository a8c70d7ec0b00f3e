"""What `prefect-imageqa run` shows on a terminal: nothing is cut off at 80 columns."""

import io
import logging
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from prefect.logging.handlers import PrefectConsoleHandler
from prefect_imageqa import Asking, Limits
from prefect_imageqa.flows.cli import terminal
from prefect_imageqa.flows.cli.terminal import _display, _ProgressView
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.tasks.loading.dataset import Dataset
from prefect_imageqa.tasks.loading.load import open_dataset
from rich.console import Console

LONG = (
    "http://gpu-1.cluster.example.org:8000 does not answer (connection refused): waiting, 12 s "
    "of 900; the other 3 servers take its requests meanwhile, so far"
)
SHORT = "S3 at http://minio:9000 does not answer (connection refused): waiting, 12 s of 300"


def screen(progress: RunProgress) -> list[str]:
    """The lines on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, record=True)
    view = _ProgressView(progress, console)
    console.print(view.render())
    lines = console.export_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("notes", [(), (LONG,), (LONG, SHORT)], ids=["none", "one", "two"])
def test_notes_have_lines_of_their_own(notes: tuple[str, ...]) -> None:
    progress = RunProgress()
    stats = ClientStats(completions=1_234_567, in_flight=1024, notes=notes)
    progress.begin(ClientStats(), 10_000_000)
    progress.stats, progress.quarantined, progress.attempted = stats, 12_345, 2_000_000
    with progress.watching(stats):
        bar, counts, *below = screen(progress)
    assert "generating" in bar
    assert "12%" in bar
    assert counts == "1,234,567 of 10,000,000, 1,024 in flight, 12,345 quarantined"
    assert " ".join(below) == " ".join(notes)
    assert len(below) == 2 * len(notes)


def test_a_run_that_waits_before_it_starts_says_why() -> None:
    progress = RunProgress()
    with progress.watching(SimpleNamespace(notes=("[bold]waiting[/] for the run of gpu-7",))):
        bar, *below = screen(progress)
    assert "starting" in bar
    assert below == ["[bold]waiting[/] for the run of gpu-7"]


def test_a_run_that_only_has_to_export_is_finishing() -> None:
    progress = RunProgress()
    progress.begin(ClientStats(), 2)
    progress.ok = 2
    [bar, counts] = screen(progress)
    assert "finishing" in bar
    assert "100%" in bar
    assert counts == "2 of 2, 0 in flight, 0 quarantined"


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def test_log_lines_are_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    logger, handler = logging.getLogger(), PrefectConsoleHandler(terminal)
    monkeypatch.setattr(logger, "handlers", [handler])
    with _display(RunProgress(), open_dataset(pd.DataFrame({"image": ["a.png"]}))):
        while "starting" not in terminal.getvalue():
            time.sleep(0.01)
        logger.warning(f"[bold]{LONG}")
    logger.warning("the run has ended")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).splitlines()
    assert f"[bold]{LONG}" in lines
    assert lines[-1] == "the run has ended"


def test_the_rows_counted_for_the_bar_are_all_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class ShownError(Exception):
        """Ends the call where the bar is shown."""

    def display(_: RunProgress, table: Dataset) -> None:
        raise ShownError(sum(1 for _ in table.rows()))

    monkeypatch.setattr(terminal, "_display", display)
    dataset = tmp_path / "rows.json"
    dataset.write_text('[{"image": "a.png"}, {"image": "b.png"}]')
    parameters = {
        "output": str(tmp_path / "out"),
        "endpoint": ["http://127.0.0.1:9"],
        "limits": Limits(wait=1),
        "asking": Asking(samples=3),
    }
    with pytest.raises(ShownError, match=r"^6$"):
        terminal.run_in_terminal(str(dataset), parameters)
