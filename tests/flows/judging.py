"""A flow of two passes, for tests: QA pairs about images, then a verdict about each pair.

    python judging.py DATASET OUTPUT URL

Only the style, the parser and the rows of the second pass are written for it; everything else is
what every pass has.
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
from prefect_imageqa.flows.open_run import open_run
from prefect_imageqa.flows.prefect_flow import deployable_flow
from prefect_imageqa.tasks.concurrency import quote
from prefect_imageqa.tasks.loading.dataset import Dataset
from prefect_imageqa.tasks.loading.load import load_dataset
from prefect_imageqa.tasks.parsing.parse import ParseSettings
from prefect_imageqa.tasks.parsing.parsers import Parsed
from prefect_imageqa.tasks.prompting.chat import style_of
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import Answered, Asked, Row
from prefect_imageqa.tasks.runs.parameters import Asking, RunParameters
from prefect_imageqa.tasks.runs.passes import Pass


def judge_style(row: PromptInput) -> list[dict[str, Any]]:
    """Show the image and the row's own instruction to the stub, or by default the pair."""
    text = row.record["judge"] or f"Is it right? {row.record['pair']}"
    parts = [{"type": "image", "image": 0}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def read_verdict(text: str, _asked: Asked) -> Parsed:
    """Parse a verdict of one word; the stub's other replies are not verdicts."""
    return Parsed({"verdict": "yes"} if text.strip() == "yes" else {})


JUDGE = Pass(
    name="judge",
    style=style_of(judge_style, "judge"),
    parsing=ParseSettings("verdict", read_verdict, version=1),
    system_prompt="",
    user_prompt="",
    columns=Columns(image="image", conversation="conversation"),
    sampling={"temperature": 0.0, "max_tokens": 4},
)


def pair_rows(first: OpenPass, table: Dataset) -> Iterator[Row]:
    """The pairs of the first pass, as rows of the second."""
    number = 0
    outcomes = first.ledger.outcomes(first.row_keys)
    for row, outcome in zip(table.rows(), outcomes, strict=True):
        for pair in outcome.pairs if isinstance(outcome, Answered) else ():
            columns = {"image": row.record["image"], "judge": row.record["judge"]}
            yield Row(number, columns | {"pair": f"{row.index} {pair.question}"}, row.where)
            number += 1


@deployable_flow(
    name="judged", task_runner=ThreadPoolTaskRunner(max_workers=200), persist_result=False
)
def judged(dataset: str, output: str, endpoint: str) -> dict[str, Any]:
    """Generate pairs, and judge each of them."""
    arguments = inspect.signature(image_qa.fn).bind(
        dataset,
        output,
        endpoint,
        limits=Limits(batch_size=8, max_in_flight=8),
        asking=Asking(corrective_retry=False),  # so that every row is sent once
    )
    arguments.apply_defaults()
    parameters = RunParameters(**arguments.arguments)
    with open_run(parameters) as run:
        table = load_dataset(dataset, Columns())
        pairs = run.start(table)
        answer_rows(run, pairs, table.rows())
        judge = run.open_pass(JUDGE)
        answer_rows(run, judge, pair_rows(pairs, table))
        outcomes = judge.ledger.outcomes(judge.row_keys)
        return {
            "pairs": pairs.counts().model_dump(mode="json"),
            "judge": judge.counts().model_dump(mode="json"),
            "verdicts": [getattr(outcome, "parsed", None) for outcome in outcomes],
        }


if __name__ == "__main__":
    print(json.dumps(judged(*map(quote, sys.argv[1:]))))
