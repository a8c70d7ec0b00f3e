"""How the demo model replies to each style, on a real vLLM server and through the whole flow.

    python benchmarks/demo_styles.py [--rows 100] [--endpoint URL] [--write]

Each line of the table is a run of its own over scenes of its own.
"""

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
from prefect_imageqa import Asking, Sampling, image_qa
from prefect_imageqa.serving.demo_model.judge import Claim, Verdict, is_denial, judge_claims
from prefect_imageqa.serving.demo_model.questions import parse_question
from prefect_imageqa.serving.demo_model.scenes import Scene, write_demo_dataset
from prefect_imageqa.serving.demo_model.training.contents import KNOWLEDGE
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer

STYLES = (
    "single",
    "several",
    "dialogue",
    *(f"multiple-choice/{letter}" for letter in "ABCD"),
    "yes-no/yes",
    "yes-no/no",
    "short",
    "detailed",
    "unanswerable",
    "caption",
    *(f"knowledge/{kind}" for kind in (*KNOWLEDGE, "text", "chart", "table", "document")),
)
JSON_STYLES = ("single", "several", "dialogue", "multiple-choice", "yes-no", "caption")
SEPARATE_STYLES = ("single", "several", "short", "detailed", "unanswerable", "knowledge", "yes-no")
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=256)

DEMO_MODEL = Path(__file__).parents[1] / "serving" / "demo_model"
CHECKPOINT, CARD = DEMO_MODEL / "checkpoint", DEMO_MODEL / "README.md"
START, END = "<!-- styles: start -->", "<!-- styles: end -->"

Pair = Mapping[Any, Any]


def as_asked(style: str, pair: Pair) -> bool:
    """Whether a pair is what a style asks for, be it true or not."""
    name, _, pinned = style.partition("/")
    answer = str(pair["answer"])
    match name:
        case "multiple-choice":
            return pinned in ("", pair["correct"])
        case "yes-no":
            return bool(re.match(rf"({pinned or 'yes|no'})\b", answer, re.IGNORECASE))
        case "short":
            return len(answer.split()) <= 3
        case "detailed":
            return ". " in answer
        case "knowledge":
            return not pinned or _asks_for(pinned, str(pair["question"]))
    return True


def _asks_for(kind: str, question: str) -> bool:
    known = parse_question(question)
    if known is None:
        return False
    return known.kind in KNOWLEDGE[kind] if kind in KNOWLEDGE else known.detail == kind


def marks(scene: Scene, style: str, pairs: Sequence[Pair]) -> list[bool]:
    """Whether each pair about one image is true and as asked."""
    claims = [
        Claim(
            pair["question"],
            pair["answer"],
            () if pair["options"] is None else tuple(pair["options"]),
            0 if pd.isna(pair["turn"]) else int(pair["turn"]),
        )
        for pair in pairs
    ]
    if style == "unanswerable":
        true = [is_denial(scene, claim.question, claim.answer) for claim in claims]
    else:
        true = [verdict is Verdict.RIGHT for verdict in judge_claims(scene, claims)]
    return [right and as_asked(style, pair) for right, pair in zip(true, pairs, strict=True)]


def measure(style: str, asking: Asking, url: str, rows: int, seed: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data", Path(folder) / "out"
        scenes = write_demo_dataset(data, rows, seed)
        table = pd.DataFrame({"image": sorted(map(str, (data / "images").iterdir()))})
        summary = image_qa(
            table, str(output), endpoint=url, style=style, asking=asking, sampling=SAMPLING
        )
        found = pd.read_parquet(output / "pairs.parquet").sort_values(["row", "pair"])
    right: list[bool] = []
    for row in found["row"].unique():
        pairs = found[found["row"] == row].to_dict("records")
        right += marks(scenes[row], style, pairs)
    wrong = found[[not mark for mark in right]]
    for pair in wrong[["question", "answer", "options"]].head(3).values.tolist():
        print("   ", *pair)
    how = {"json": ", JSON"}.get(asking.format, "")
    how += ", answered separately" if asking.answer == "separately" else ""
    usable = (summary.ok - summary.corrected) / rows
    different = found["question"].nunique()
    return (
        f"| {style}{how} | {usable:.0%} | {len(found)} | {different} "
        f"| {sum(right) / max(1, len(right)):.1%} |"
    )


def main() -> None:
    """Measure every style, and print the table or write it into the model card."""
    parser = argparse.ArgumentParser(description="Measure the demo model's replies to each style.")
    parser.add_argument("--rows", type=int, default=100, help="scenes per line of the table")
    parser.add_argument("--endpoint", help="a running server; by default one is started")
    parser.add_argument("--write", action="store_true", help="write the table into the model card")
    arguments = parser.parse_args()
    asked = [(style, Asking()) for style in STYLES]
    asked += [(style, Asking(format="json")) for style in JSON_STYLES]
    asked += [(style, Asking(answer="separately")) for style in SEPARATE_STYLES]
    lines = [
        f"{arguments.rows} unseen scenes a row, asked by the whole flow at temperature 0.7, each "
        "style's own prompt. *Usable* is the share of replies that needed no correction, "
        "*different* the number of different questions, *right* the share of pairs that are true "
        "and what the style asks for.",
        "",
        "| style | usable | pairs | different | right |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    with ExitStack() as stack:
        url = arguments.endpoint
        if url is None:
            url = stack.enter_context(VLLMServer(ServerOptions(model=CHECKPOINT))).url
        for number, (style, asking) in enumerate(asked):
            lines.append(measure(style, asking, url, arguments.rows, 100 + number))
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if arguments.write:
        before, _, remainder = CARD.read_text("utf-8").partition(START)
        after = remainder.partition(END)[2]
        CARD.write_text("\n".join((before + START, *lines, END + after)), "utf-8", newline="\n")


if __name__ == "__main__":
    main()
