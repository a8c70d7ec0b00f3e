"""The dataset card: `README.md` of an output, in the Hugging Face Hub's format.

Everything in it that came from the dataset or the model is escaped or fenced, so that it stays
text for any reader of Markdown.
"""

import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ..exporting.export import PAIRS, QA_JSONL
from ..runs.records import RunRecord
from .facts import provenance, reasons, template, visible
from .samples import SampledRow

CARD = "README.md"

_LONGEST = 2000
"""Characters shown of a prompt or a pair."""

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
"""The Hub's names of sizes, of datasets with fewer rows than this."""

_MARKUP = re.compile(r"([$&*<>@\[\\\]_`|~]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What means something to Markdown within a line, also where it finds links in plain text."""

_NOT_IN_TABLE = frozenset({"System prompt", "User prompt", "Dataset", "Image root", "Row limit"})


def render_card(run: RunRecord, rows: Sequence[SampledRow]) -> str:
    """The card of a completed run; one of the rows is shown."""
    # Slow to import, and nothing of it talks to the Hub here.
    from huggingface_hub import DatasetCard, DatasetCardData

    pairs = run.counts.pairs
    data = DatasetCardData(
        license="unknown",
        task_categories=["visual-question-answering"],
        size_categories=next((name for size, name in _SIZES if pairs < size), "1B<n<10B"),
        tags=["synthetic", "image-question-answering", "prefect-imageqa", "prefect", "vllm"],
        pretty_name=" ".join(visible(run.dataset).split()),
        configs=[
            {"config_name": "pairs", "data_files": PAIRS, "default": True},
            {"config_name": "rows", "data_files": QA_JSONL},
        ],
    )
    facts = [(fact.name, fact.value) for fact in provenance(run) if fact.name not in _NOT_IN_TABLE]
    shown = ("rows", "ok", "quarantined", "pairs")
    body = template("card.md.j2", _escaped).render(
        run=run,
        counts={name: f"{getattr(run.counts, name):,}" for name in shown},
        facts=facts,
        reasons=list(reasons(run)),
        sample=next((row for row in rows if row.pairs), None),
        fenced=_fenced,
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _escaped(value: Any) -> str:
    """One line that Markdown shows as it is."""
    if isinstance(value, Markup):
        return value
    return _MARKUP.sub(r"\\\1", " ".join(visible(str(value)).split()))


def _fenced(text: str) -> Markup:
    """A block that shows a text as it is, whatever fences are in it."""
    shown = visible(text)[:_LONGEST]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return Markup(f"{fence}text\n{shown}\n{fence}")  # noqa: S704 - it is fenced
