"""`prefect-imageqa demo`: a real run on generated images, whose correct answers are known."""

import time
from datetime import datetime
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.demo_model.questions import Verdict, judge_pair
from ...serving.demo_model.scenes import write_demo_dataset
from ...serving.printable import printable
from ...tasks.exporting.pairs_parquet import PAIRS
from ...tasks.reporting.report import REPORT
from .terminal import run_in_terminal

CHECKPOINT = Path(__file__).resolve().parents[2] / "serving" / "demo_model" / "checkpoint"
TABLE_ROWS = 12


def run_demo(folder: Path, rows: int, seed: int) -> int:
    """Draw the images, run the flow, and print the judged answers. Returns the exit code."""
    # A new folder each time: in an old one, all rows would be finished already.
    folder = folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    scenes = write_demo_dataset(folder, rows, seed)
    started = time.perf_counter()
    summary = run_in_terminal(
        str(folder / "dataset.json"),
        {"output": str(folder / "qa"), "model": str(CHECKPOINT)},
    )
    pairs = pd.read_parquet(folder / "qa" / PAIRS)
    verdicts = [
        judge_pair(scenes[row], question, answer)
        for row, question, answer in zip(
            pairs["row"], pairs["question"], pairs["answer"], strict=True
        )
    ]
    console = Console()
    console.print(_table(pairs, verdicts))
    correct = sum(verdict is Verdict.RIGHT for verdict in verdicts)
    console.print(
        f"{summary}\n"
        f"{correct} of {len(verdicts)} pairs are correct ({correct / max(len(verdicts), 1):.1%}); "
        f"{time.perf_counter() - started:.0f} s in total, {summary.seconds:.1f} s without start-up"
        f"\nopen {Path(summary.output) / REPORT}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _table(pairs: pd.DataFrame, verdicts: list[Verdict]) -> Table:
    table = Table("image", "question", "answer", "verdict", title="The first pairs")
    for (_, pair), verdict in list(zip(pairs.iterrows(), verdicts, strict=True))[:TABLE_ROWS]:
        texts = (", ".join(pair["image"]), pair["question"], pair["answer"])
        table.add_row(*(Text(printable(text)) for text in texts), str(verdict))
    return table
