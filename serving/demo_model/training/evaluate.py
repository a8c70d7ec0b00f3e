"""Measure the demo model's accuracy on a real vLLM server and update its model card.

Run `python -m prefect_imageqa.serving.demo_model.training.evaluate` in the flow environment.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ...client.client import ChatClient
from ...endpoint import load_endpoint
from ...errors import ImageQAError
from ...server.launch import ServerOptions
from ...server.server import VLLMServer
from ...types import Completion, Outcome
from ..questions import QuestionKind
from ..scenes import Scene, held_out_rng, random_scene
from .lessons import BASIC_KINDS
from .probes import (
    IMAGE_FIRST,
    OTHER_KINDS,
    PROBES,
    TEXT_FIRST,
    Mark,
    Probe,
    Trial,
    scene_image,
)

CHECKPOINT = Path(__file__).parents[1] / "checkpoint"
CARD = Path(__file__).parents[1] / "README.md"
TABLE_START, TABLE_END = "<!-- accuracy: start -->", "<!-- accuracy: end -->"
_IN_FLIGHT = 64
_SHOWN = 3  # wrong replies per probe that --show prints


def measure(
    client: ChatClient, scene_count: int, seed: int, show: bool = False
) -> dict[str, list[tuple[Trial, Mark]]]:
    """Run every probe against a server, each on different scenes.

    Args:
        client: a client of a server with the demo model.
        scene_count: scenes per probe.
        seed: determines the scenes.
        show: print some of the wrong replies.

    Returns:
        The trials of each probe with their marks, by the probe's name.

    Raises:
        ImageQAError: a request failed; a table without it would overstate the model's accuracy.
    """
    results = {}
    for number, probe in enumerate(PROBES):
        rng = held_out_rng(seed + number)
        scenes = [random_scene(rng) for _ in range(scene_count)]
        started = time.monotonic()
        results[probe.name] = _run_probe(client, probe, scenes, rng, show)
        form, right = _shares([mark for _, mark in results[probe.name]])
        seconds = time.monotonic() - started
        print(f"{probe.name}: form {form:.1%}, right {right:.1%}, {seconds:.0f} s", flush=True)
    return results


def _run_probe(
    client: ChatClient, probe: Probe, scenes: Sequence[Scene], rng: random.Random, show: bool
) -> list[tuple[Trial, Mark]]:
    trials = [
        probe.make(scene, scene_image(scene, index, rng), rng) for index, scene in enumerate(scenes)
    ]
    outcomes = client.complete(trial.request for trial in trials)
    marked = [
        (trial, _judge(trial, outcome)) for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    if show:
        wrong = [
            (trial.request.messages[0]["content"], outcome)
            for (trial, mark), outcome in zip(marked, outcomes, strict=True)
            if mark.right < 1
        ]
        for first_message, outcome in wrong[:_SHOWN]:
            text = outcome.text if isinstance(outcome, Completion) else outcome.message
            print(f"    {str(first_message)[:60]!r} -> {text!r}")
    return marked


def _judge(trial: Trial, outcome: Outcome) -> Mark:
    if not isinstance(outcome, Completion):
        raise ImageQAError(f"a request failed: {outcome.message}")
    if outcome.finish_reason != "stop":
        return Mark(form=False, right=0)
    return trial.judge(outcome.text)


def _shares(marks: Sequence[Mark]) -> tuple[float, float]:
    return (
        sum(mark.form for mark in marks) / len(marks),
        sum(mark.right for mark in marks) / len(marks),
    )


def accuracy_tables(results: Mapping[str, Sequence[tuple[Trial, Mark]]], scene_count: int) -> str:
    """The measured shares as Markdown: one row per probe, then the answers by kind of question."""
    lines = [
        f"{scene_count} unseen scenes a row, drawn in sizes from 96x96 to 640x480 pixels. "
        "*Form* is the share of replies that look exactly as asked, *right* the share of answers "
        "that are true.",
        "",
        "| asked for | form | right |",
        "| --- | ---: | ---: |",
    ]
    for name, marked in results.items():
        form, right = _shares([mark for _, mark in marked])
        lines.append(f"| {name} | {form:.1%} | {right:.1%} |")
    lines += ["", "| question about | image first | text first |", "| --- | ---: | ---: |"]
    first, text_first = (_by_kind(results[probe.name]) for probe in (IMAGE_FIRST, TEXT_FIRST))
    others = _by_kind(results[OTHER_KINDS.name])
    for kind in QuestionKind:
        name = kind.replace("_", " ")
        if kind in BASIC_KINDS:
            lines.append(f"| {name} | {_ratio(first[kind])} | {_ratio(text_first[kind])} |")
        else:
            lines.append(f"| {name} | {_ratio(others[kind])} | |")
    return "\n".join(lines)


def _by_kind(marked: Sequence[tuple[Trial, Mark]]) -> dict[QuestionKind, list[float]]:
    by_kind: dict[QuestionKind, list[float]] = defaultdict(list)
    for trial, mark in marked:
        if trial.kind is not None:
            by_kind[trial.kind].append(mark.right)
    return by_kind


def _ratio(rights: Sequence[float]) -> str:
    return f"{sum(rights):.0f} of {len(rights)}"


def write_card(
    tables: str, card: Path = CARD, markers: tuple[str, str] = (TABLE_START, TABLE_END)
) -> None:
    """Replace the text between two markers of the model card."""
    start, end = markers
    text = card.read_text(encoding="utf-8")
    before, _, remainder = text.partition(start)
    _, _, after = remainder.partition(end)
    card.write_text(f"{before}{start}\n{tables}\n{end}{after}", encoding="utf-8", newline="\n")


def main() -> int:
    """Parse the arguments, measure, and update the model card."""
    parser = argparse.ArgumentParser(description="Measure the demo model on a vLLM server.")
    parser.add_argument("--base-url", help="a running server; by default one is started")
    parser.add_argument("--model", help="the demo model's name on that server")
    parser.add_argument("--scenes", type=int, default=400, help="scenes per row of the table")
    parser.add_argument("--seed", type=int, default=0, help="determines the scenes")
    parser.add_argument("--show", action="store_true", help="print some of the wrong replies")
    arguments = parser.parse_args()
    try:
        with ExitStack() as stack:
            url, model = arguments.base_url, arguments.model
            if url is None:
                server = stack.enter_context(VLLMServer(ServerOptions(model=CHECKPOINT)))
                url, model = server.url, server.model_name
            endpoint = load_endpoint(url, model)
            client = stack.enter_context(ChatClient(endpoint, max_in_flight=_IN_FLIGHT))
            client.check()
            results = measure(client, arguments.scenes, arguments.seed, arguments.show)
    except ImageQAError as error:
        print(error, file=sys.stderr)
        return 1
    write_card(accuracy_tables(results, arguments.scenes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
