"""The result of a run."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..tasks.exporting.qa_json import QA_JSONL
from ..tasks.object_store.store import ObjectStore, load_store
from ..tasks.runs.run_counts import RunCounts
from .wording import counted

if TYPE_CHECKING:
    import pandas as pd


class RunSummary(RunCounts):
    """The counts of a completed run, and its output.

    Attributes:
        output: path or URI of the output.
        store: name of the `Image QA Store` block whose credentials were used; empty for none.
    """

    output: str
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
            text += f": {counted(self.reasons)}"
        if self.duplicates:
            rows = "duplicates share" if self.duplicates > 1 else "duplicate shares"
            text += f"; {self.duplicates:,} {rows} the outcome of another row"
        if self.lost_pairs:
            text += f"; {self.lost_pairs:,} more of their pairs could not be read"
        if self.unanswered:
            text += f"; {self.unanswered:,} of their questions could not be answered"
        if self.filtered_pairs:
            text += f"; {self.pairs:,} of {self.pairs + self.filtered_pairs:,} pairs kept"
        if self.negatives:
            text += f"; {self.negatives:,} unanswerable pairs added"
        for check, count in self.unjudged.items():
            text += f"; {count:,} pairs without a result of check {check}"
        if self.duplicate_pairs:
            pairs = "pairs repeat" if self.duplicate_pairs > 1 else "pair repeats"
            text += f"; {self.duplicate_pairs:,} {pairs} another one of the same image"
        if self.corrections:
            text += f"; {self.corrected:,} of {self.corrections:,} unusable replies corrected"
        return text

    def to_json_line(self) -> str:
        """The counts as one line of JSON."""
        left_out = {
            *("attempted", "duplicates", "lost_pairs", "pairs", "reasons", "retried", "store"),
            *("duplicate_pairs", "unanswered", "corrected", "corrections"),
            *("filtered_pairs", "negatives", "unjudged"),
        }
        return self.model_dump_json(exclude=left_out)

    def to_pandas(self) -> "pd.DataFrame":
        """The ok rows, as in `qa.jsonl`: the input columns and the output column.

        In place of an embedded image is its name. Columns hold plain Python values (`dtype`
        object).
        """
        import pandas as pd

        # `pandas.read_json` would turn numeric column names into numbers, and fails on large
        # integers; its string dtype fails on unpaired surrogates.
        store = (
            load_store(self.store).with_uri(self.output)
            if self.store
            else ObjectStore(uri=self.output)
        )
        lines = store.read(QA_JSONL).splitlines()
        return pd.DataFrame([json.loads(line) for line in lines], dtype=object)


_OF_ALL_PASSES = (
    *("attempted", "retried", "corrected", "corrections"),
    *("requests", "prompt_tokens", "completion_tokens", "seconds"),
)


def total_counts(passes: Sequence[RunCounts], exported: RunCounts) -> dict[str, Any]:
    """The counts of a run.

    Args:
        passes: the counts of each of its passes, the main one first.
        exported: what was exported: rows, pairs and their outcomes.
    """
    main, outcome = passes[0], exported.model_dump()
    totals = {name: sum(getattr(counts, name) for counts in passes) for name in _OF_ALL_PASSES}
    of_main = main.model_dump(include={"duplicates"})
    return {**outcome, **of_main, "reused": min(main.reused, exported.ok), **totals}
