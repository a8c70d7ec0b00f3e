"""What a run tells at the end: to its caller, and in the output's manifest."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from ..tasks.exporting import QA_JSONL, Counts
from ..tasks.object_store import ObjectStore, load_store
from .progress import RunProgress

if TYPE_CHECKING:
    import pandas as pd


class RunSummary(BaseModel):
    """What became of a run's rows: `rows` is always `ok + filtered + quarantined`.

    Attributes:
        rows: rows of the dataset, up to the limit.
        ok: rows with an answer, old or new.
        filtered: rows whose answer was checked and left out.
        quarantined: rows that could not be answered.
        reused: ok rows whose answer was stored before this run.
        retried: rows asked again that an earlier run had quarantined.
        pairs: QA pairs of the ok rows.
        requests: requests sent to the model, repeated ones included.
        prompt_tokens: tokens the model read.
        completion_tokens: tokens the model wrote.
        seconds: the flow's own work, without the start-up of Prefect and vLLM.
        output: where everything is.
        reasons: quarantined rows by kind.
        store: name of the `ObjectStore` block whose credentials were used; empty for none.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    ok: int
    filtered: int
    quarantined: int
    reused: int
    retried: int
    pairs: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    output: str
    reasons: Mapping[str, int] = Field(default_factory=dict)
    store: str = ""

    def __str__(self) -> str:
        """One line: '488 answered, 12 quarantined: 9 not_an_image, 3 truncated'."""
        text = f"{self.ok:,} answered"
        if self.reused:
            text += f" ({self.reused:,} of them before)"
        if self.filtered:
            text += f", {self.filtered:,} filtered"
        text += f", {self.quarantined:,} quarantined"
        if self.reasons:
            kinds = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
            text += ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        return text

    def to_json_line(self) -> str:
        """The counts as one line of JSON."""
        return self.model_dump_json(exclude={"pairs", "reasons", "retried", "store"})

    def to_pandas(self) -> "pd.DataFrame":
        """The ok rows, as in `qa.jsonl`: the input columns and the output column.

        Columns keep Python's own values (`dtype` object).
        """
        import pandas as pd

        # pandas' own reader would make numbers of column names, and fails on large numbers; its
        # strings fail on half a surrogate pair.
        store = (
            load_store(self.store).at(self.output) if self.store else ObjectStore(uri=self.output)
        )
        lines = store.read(QA_JSONL).splitlines()
        return pd.DataFrame([json.loads(line) for line in lines], dtype=object)


def summarise(counts: Counts, progress: RunProgress, output: ObjectStore) -> RunSummary:
    """The summary of a run, from what the exports hold and what the client sent."""
    stats = progress.stats
    return RunSummary(
        rows=counts.rows,
        ok=counts.ok,
        filtered=counts.filtered,
        quarantined=counts.quarantined,
        reused=progress.reused,
        retried=progress.retried,
        pairs=counts.pairs,
        requests=stats.requests,
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.completion_tokens,
        seconds=round(time.monotonic() - progress.started, 3),
        output=output.uri,
        store=output.credentials,
        reasons=dict(counts.reasons),
    )
