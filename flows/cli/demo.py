"""`prefect-imageqa demo`: a real run on generated images, whose correct answers are known."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.demo_model.judge import Claim, Verdict, judge_claims
from ...serving.demo_model.scenes import Scene, write_demo_dataset
from ...serving.printable import printable
from ...tasks.exporting.pairs_parquet import PAIRS
from ...tasks.reporting.report import REPORT
from ...tasks.runs.exports import Exports
from .terminal import run_in_terminal

CHECKPOINT = Path(__file__).resolve().parents[2] / "serving" / "demo_model" / "checkpoint"
STYLES = "single=1, dialogue=1, multiple-choice=1"
SHOWN_IMAGES = 2
"""How many images of each style the table shows."""


def run_demo(folder: Path, rows: int, seed: int) -> int:
    """Draw the images, run the flow, and print the judged answers. Returns the exit code."""
    # A new folder each time: in an old one, all rows would be finished already.
    folder = folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    scenes = write_demo_dataset(folder, rows, seed)
    started = time.perf_counter()
    summary = run_in_terminal(
        str(folder / "dataset.json"),
        {
            "output": str(folder / "qa"),
            "model": str(CHECKPOINT),
            "style": STYLES,
            "exports": Exports(formats=("llava",)),
        },
    )
    pairs = judged(pd.read_parquet(folder / "qa" / PAIRS), scenes)
    console = Console()
    console.print(pairs_table(pairs))
    output = Path(summary.output)
    console.print(
        f"{summary}\n"
        f"correct pairs: {_correct(pairs)}; "
        f"{time.perf_counter() - started:.0f} s in total, {summary.seconds:.1f} s without start-up"
        f"\nfor training: {output / 'export' / 'llava'}"
        f"\nopen {output / REPORT}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def judged(pairs: pd.DataFrame, scenes: list[Scene]) -> pd.DataFrame:
    """The pairs of each image in their order, with a column `verdict`."""
    pairs = pairs.sort_values(["row", "pair"])
    verdicts: list[Verdict] = []
    for row in pairs["row"].unique():
        claims = [_claim(pair) for pair in pairs[pairs["row"] == row].to_dict("records")]
        verdicts += judge_claims(scenes[row], claims)
    return pairs.assign(verdict=verdicts)


def _correct(pairs: pd.DataFrame) -> str:
    right = pairs["verdict"] == Verdict.RIGHT
    counts = right.groupby(pairs["style"].str.split("@").str[0]).agg(["sum", "size"])
    return ", ".join(f"{right} of {count} {style}" for style, right, count in counts.itertuples())


def _claim(pair: Mapping[Any, Any]) -> Claim:
    options = () if pair["options"] is None else tuple(pair["options"])
    turn = 0 if pd.isna(pair["turn"]) else int(pair["turn"])
    return Claim(pair["question"], pair["answer"], options, turn)


def pairs_table(pairs: pd.DataFrame) -> Table:
    """The pairs about the first images of each style."""
    table = Table("image", "style", "question", "answer", "verdict", title="The first images")
    for style, of_style in pairs.groupby("style"):
        shown = of_style["row"].unique()[:SHOWN_IMAGES]
        for pair in of_style[of_style["row"].isin(shown)].to_dict("records"):
            claim = _claim(pair)
            again = claim.turn > 1
            texts = (
                "" if again else ", ".join(pair["image"]),
                "" if again else str(style),
                "\n".join([claim.question, *_lettered(claim.options)]),
                f"{pair['correct']}. {claim.answer}" if claim.options else claim.answer,
            )
            cells = ["\n".join(map(printable, text.split("\n"))) for text in texts]
            table.add_row(*map(Text, cells), str(pair["verdict"]))
        table.add_section()
    return table


def _lettered(options: tuple[str, ...]) -> list[str]:
    return [f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options)]
