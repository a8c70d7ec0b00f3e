"""The dataset card: `README.md` of an output, in the Hugging Face Hub's format.

Text from the dataset or the model is escaped or fenced, so that every Markdown renderer shows it
literally.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml
from markupsafe import Markup

from ..exporting.pairs_parquet import PAIRS, ROWS
from ..exporting.trainers.export_record import ExportRecord
from ..records import QAPair
from ..runs.run_record import RunRecord
from .check_facts import ChecksSection
from .facts import export_facts, options, provenance, reasons
from .pages import load_template, strip_invisible
from .samples import SampledRow
from .statistics import Statistics

CARD = "README.md"

_MAX_FENCED = 2000
"""Longer prompts and pairs are truncated to this many characters."""

_MAX_COLUMNS = 30
"""Columns of the dataset that are listed."""

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
"""The Hub's size categories, each with its exclusive upper bound."""

_MAX_KINDS, _MAX_KIND = 20, 60
"""Styles and types that are listed, and characters of each."""

_MARKUP = re.compile(r"([$&*<>@\[\\\]_`|~]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What Markdown interprets within a line, including plain text that it turns into links."""

_OMITTED_FACTS = frozenset({"System prompt", "User prompt", "Dataset", "Image root", "Row limit"})


def render_card(
    run: RunRecord,
    rows: Sequence[SampledRow],
    columns: Sequence[tuple[str, str]] = (),
    statistics: Statistics | None = None,
    exports: Sequence[ExportRecord] = (),
    digests: Mapping[str, str] = MappingProxyType({}),
    checks: ChecksSection | None = None,
) -> str:
    """The card of a completed run.

    Args:
        run: the run.
        rows: the first of them that has pairs is an example.
        columns: names and types of the dataset's own columns in the exports.
        statistics: of its pairs.
        exports: what was exported for training.
        digests: of the content of the files that the card makes configurations, by name.
        checks: what they say of the pairs, if there were any.
    """
    pairs = run.counts.pairs
    head = {
        "license": "unknown",
        "task_categories": ["visual-question-answering"],
        "size_categories": next((name for size, name in _SIZES if pairs < size), "1B<n<10B"),
        "tags": ["synthetic", "image-question-answering", "prefect-imageqa", "prefect", "vllm"],
        "pretty_name": " ".join(strip_invisible(run.dataset).split()),
        # Of one format: `datasets` reads all configurations of a repository with one builder.
        "configs": [
            {**_configuration("pairs", PAIRS, digests), "default": True},
            _configuration("rows", ROWS, digests),
        ],
    }
    facts = [(fact.name, fact.value) for fact in provenance(run) if fact.name not in _OMITTED_FACTS]
    counts = ("rows", "ok", "filtered", "quarantined", "pairs")
    body = load_template("card.md.j2", finalize=_escape).render(
        run=run,
        counts={name: f"{getattr(run.counts, name):,}" for name in counts},
        facts=facts,
        reasons=list(reasons(run)),
        example=next((row for row in rows if row.pairs and not row.kind), None),
        kinds=_kinds(statistics) if statistics else [],
        checks=checks,
        exports=list(export_facts(exports)),
        text_of=_text_of,
        fence=_fence,
        columns=columns[:_MAX_COLUMNS],
        more_columns=max(0, len(columns) - _MAX_COLUMNS),
    )
    return f"---\n{yaml.safe_dump(head, allow_unicode=True, sort_keys=False)}---\n\n{body}"


def _configuration(name: str, file: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """A configuration of the card, which changes with its file.

    `datasets` caches by the folder's last name and the configurations, not by content.
    """
    description = {"description": f"content {digests[file]}"} if file in digests else {}
    return {"config_name": name, "data_files": file, **description}


def _kinds(statistics: Statistics) -> list[tuple[str, str, str]]:
    """What kinds of pairs there are, and how many: style or type, its name, pairs."""
    counts = (("style", statistics.styles), ("type", statistics.types))
    return [
        (kind, name[:_MAX_KIND], f"{pairs:,}")
        for kind, counter in counts
        for name, pairs in counter.most_common(_MAX_KINDS)
    ]


def _text_of(pair: QAPair) -> str:
    """A pair as the text of an example."""
    choices = [f"{option.name}. {option.value}" for option in options(pair)]
    answer = f"{pair.correct}. {pair.answer}" if pair.correct else pair.answer
    return "\n".join([f"Question: {pair.question}", *choices, f"Answer: {answer}"])


def _escape(value: Any) -> str:
    """Put a value on one line that Markdown shows literally; `Markup` is returned unchanged."""
    if isinstance(value, Markup):
        return value
    return _MARKUP.sub(r"\\\1", " ".join(strip_invisible(str(value)).split()))


def _fence(text: str) -> Markup:
    """A code block whose fence is longer than any in the text."""
    content = strip_invisible(text)[:_MAX_FENCED]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return Markup(f"{fence}text\n{content}\n{fence}")  # noqa: S704 - it is fenced
