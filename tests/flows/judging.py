"""A flow of two passes, for tests: pairs about images, and then a verdict about each pair.

    python judging.py DATASET OUTPUT URL

What is particular to the second pass is its style, its parser and its rows; the rest is that of
every pass.
"""

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner
from prefect_imageqa import Columns, Limits, image_qa
from prefect_imageqa.flows.image_qa import answer_rows
from prefect_imageqa.flows.open_pass import OpenPass
from prefect_imageqa.flows.prefect_flow import deployable_flow
from prefect_imageqa.flows.run import open_run
from prefect_imageqa.tasks.concurrency import quote
from prefect_imageqa.tasks.loading.dataset import Dataset, load_dataset
from prefect_imageqa.tasks.parsing.parse import ParseSettings
from prefect_imageqa.tasks.prompting.prompts import PromptInput
from prefect_imageqa.tasks.records import Answered, Row
from prefect_imageqa.tasks.runs.parameters import RunParameters
from prefect_imageqa.tasks.runs.passes import Pass, pairs_pass


def judge_style(given: PromptInput) -> list[dict[str, Any]]:
    """Shows the image with the pair; a row may say itself what the stub is to do with it."""
    told = given.record["judge"] or f"Is it right? {given.record['pair']}"
    parts = [{"type": "image", "image": 0}, {"type": "text", "text": told}]
    return [{"role": "user", "content": parts}]


def read_verdict(text: str) -> dict[str, Any]:
    """A verdict in a word; the stub's other replies are none."""
    return {"verdict": "yes"} if text.strip() == "yes" else {}


JUDGE = Pass(
    name="judge",
    style_name="judge",
    style=judge_style,
    parsing=ParseSettings("verdict", read_verdict, version=1),
    system_prompt="",
    user_prompt="",
    image_key="image",
    conversation_key="conversation",
    sampling={"temperature": 0.0, "max_tokens": 4},
)


def pair_rows(asked: OpenPass, table: Dataset) -> Iterator[Row]:
    """The pairs of a pass, as rows of the next one."""
    number = 0
    outcomes = asked.ledger.outcomes(asked.keys)
    for row, outcome in zip(table.rows(), outcomes, strict=True):
        for pair in outcome.pairs if isinstance(outcome, Answered) else ():
            told = {"image": row.record["image"], "judge": row.record["judge"]}
            yield Row(number, told | {"pair": f"{row.index} {pair.question}"}, row.where)
            number += 1


@deployable_flow(
    name="judged", task_runner=ThreadPoolTaskRunner(max_workers=200), persist_result=False
)
def judged(dataset: str, output: str, endpoint: str) -> dict[str, Any]:
    """Ask for pairs, and judge each of them."""
    given = inspect.signature(image_qa.fn).bind(
        dataset, output, endpoint, limits=Limits(batch_size=8, max_in_flight=8)
    )
    given.apply_defaults()
    told = RunParameters(**given.arguments)
    with open_run(told) as run:
        table = load_dataset(dataset, Columns())
        pairs = run.start(table, pairs_pass(told))
        answer_rows(run, pairs, table.rows())
        judge = run.open_pass(JUDGE, table.base)
        answer_rows(run, judge, pair_rows(pairs, table))
        found = [getattr(row, "parsed", None) for row in judge.ledger.outcomes(judge.keys)]
        counts = {"pairs": pairs.counts(), "judge": judge.counts()}
        told_counts = {name: told.model_dump(mode="json") for name, told in counts.items()}
        return told_counts | {"verdicts": found}


if __name__ == "__main__":
    print(json.dumps(judged(*map(quote, sys.argv[1:]))))
