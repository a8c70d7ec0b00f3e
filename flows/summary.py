"""What a run tells its caller at the end."""

import json
from typing import TYPE_CHECKING

from ..tasks.exporting.export import QA_JSONL
from ..tasks.object_store.store import ObjectStore, load_store
from ..tasks.runs.records import RunCounts

if TYPE_CHECKING:
    import pandas as pd


class RunSummary(RunCounts):
    """What became of a run's rows, and where they are.

    Attributes:
        output: where everything is.
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
            kinds = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
            text += ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        return text

    def to_json_line(self) -> str:
        """The counts as one line of JSON."""
        return self.model_dump_json(exclude={"asked", "pairs", "reasons", "retried", "store"})

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
