"""The texts of a report about a run. They are not escaped and may contain untrusted input."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from ..exporting.trainers.export_record import ExportRecord, split_lines
from ..records import TRANSIENT, QAPair
from ..runs.run_record import RunRecord
from .quarantine import QuarantineGroup
from .samples import FILTERED_KIND, SampledRow
from .statistics import Statistics, Tally

_MAX_BARS = 12
_MAX_GROUPS = 50
_MAX_LENGTH = {"text": 4000, "pairs": 3000, "reason": 500, "fact": 4000, "name": 60}
"""Characters shown of a row's reply, all its pairs, a reason, a fact about the run, and a name."""


@dataclass(frozen=True)
class Fact:
    """A name and a value on the page.

    Attributes:
        name: its label.
        value: its value, formatted.
        note: an explanation in small type.
        share: the value as a share of all rows.
        percent: length of its bar.
        long: whether the value is multi-line text.
        details: more explanations.
    """

    name: str
    value: str
    note: str = ""
    share: str = ""
    percent: float = 0.0
    long: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """A row as the gallery shows it, with long texts truncated.

    Attributes:
        row: the row.
        more_pairs: how many of its pairs are left out.
        facts: position, latency and tokens in one line.
    """

    row: SampledRow
    more_pairs: int
    facts: str


def headline(run: RunRecord, statistics: Statistics) -> Iterator[Fact]:
    """The large numbers at the top of the page."""
    counts = run.counts
    duplicates = f"{statistics.duplicates:,} like another" if statistics.duplicates else ""
    yield Fact("Rows", f"{counts.rows:,}", duplicates)
    yield Fact("Answered", f"{counts.ok:,}", share_of(counts.ok, counts.rows))
    if counts.filtered:
        yield Fact("Filtered", f"{counts.filtered:,}", share_of(counts.filtered, counts.rows))
    yield Fact("Quarantined", f"{counts.quarantined:,}", share_of(counts.quarantined, counts.rows))
    notes = [f"{counts.pairs / counts.ok:,.2f} a row"] if counts.ok else []
    if counts.filtered_pairs:
        notes.append(f"{counts.filtered_pairs:,} filtered out")
    if counts.negatives:
        notes.append(f"{counts.negatives:,} unanswerable ones added")
    if counts.duplicate_pairs:
        notes.append(f"{counts.duplicate_pairs:,} repetitions left out")
    yield Fact("QA pairs", f"{counts.pairs:,}", "; ".join(notes))
    if counts.unanswered:
        yield Fact("Questions without an answer", f"{counts.unanswered:,}")
    prompt, completion = statistics.prompt_tokens, statistics.completion_tokens
    yield Fact("Prompt tokens", _short_number(prompt.sum), _mean(prompt))
    yield Fact("Completion tokens", _short_number(completion.sum), _mean(completion))
    yield Fact("Last run", _duration(counts.seconds), f"{counts.requests:,} requests")
    if counts.seconds > 0 and counts.attempted:
        yield Fact("Throughput", f"{counts.attempted / counts.seconds:,.1f}", "rows/s, last run")


def card(row: SampledRow) -> Card:
    """Truncate a row to what a page can hold."""
    pairs: list[QAPair] = []
    length = 0
    for pair in row.pairs:
        length += len(pair.question) + len(pair.answer) + sum(map(len, pair.options))
        if length > _MAX_LENGTH["pairs"] and pairs:
            break
        pairs.append(truncated_pair(pair))
    facts = [row.where if row.kind else f"row {row.row:,}"]
    if row.style:
        facts.append(row.style)
    if row.latency:
        facts.append(f"{row.latency:,.2f} s")
    if row.prompt_tokens:
        facts.append(f"{row.prompt_tokens:,} + {row.completion_tokens:,} tokens")
    text, reason = truncate(row.text, "text"), truncate(row.reason, "reason")
    return Card(
        row=replace(row, pairs=tuple(pairs), text=text, reason=reason),
        more_pairs=len(row.pairs) - len(pairs),
        facts=truncate(" · ".join(facts), "reason"),
    )


def options(pair: QAPair) -> Iterator[Fact]:
    """The options of a multiple-choice question: letter, text, and which is the right one."""
    for letter, text in zip(ascii_uppercase, pair.options, strict=False):
        yield Fact(letter, text, note="right" if letter == pair.correct else "")


def filters(cards: Sequence[Card]) -> list[Fact]:
    """The filter buttons, each with how many cards it shows."""
    counts = Counter(card.row.kind for card in cards)
    answered, filtered = counts.pop("", 0), counts.pop(FILTERED_KIND, 0)
    names = {"all": len(cards), "answered": answered}
    names |= {FILTERED_KIND: filtered} if filtered else {}
    names |= {"quarantined": counts.total()} if len(counts) > 1 else {}
    names |= dict(sorted(counts.items()))
    return [Fact(name.replace("_", " "), name, f"{count:,}") for name, count in names.items()]


def gallery_note(run: RunRecord, cards: Sequence[Card]) -> str:
    """How many rows are shown, of how many."""
    shown = Counter(card.row.kind for card in cards)
    answered, filtered = shown.pop("", 0), shown.pop(FILTERED_KIND, 0)
    notes = [f"{answered:,} of {run.counts.ok:,} answered"]
    if run.counts.filtered:
        notes.append(f"{filtered:,} of {run.counts.filtered:,} filtered")
    if run.counts.quarantined:
        notes.append(f"{shown.total():,} of {run.counts.quarantined:,} quarantined")
    listed = " and ".join(filter(None, [", ".join(notes[:-1]), notes[-1]]))
    return f"{listed} rows, spread evenly over the dataset."


def bar_charts(statistics: Statistics) -> Iterator[tuple[str, Sequence[Fact]]]:
    """Titles and bars of what the pairs are about, each bar with its share of all pairs."""
    for title, counts in (
        ("First words of questions", statistics.first_words),
        ("Styles of pairs", statistics.styles),
        ("Types of questions", statistics.types),
    ):
        if counts:
            yield title, list(_bars(counts, statistics.questions.total))


def _bars(counts: Counter[str], total: int) -> Iterator[Fact]:
    common = counts.most_common(_MAX_BARS)
    for name, count in common:
        percent = round(100 * count / common[0][1], 1)
        yield Fact(truncate(name, "name"), share_of(count, total), percent=percent)


def export_facts(records: Sequence[ExportRecord]) -> Iterator[Fact]:
    """What was exported for training: format, conversations, and what each split has."""
    for record in records:
        conversations = sum(split.conversations for split in record.splits.values())
        images = {"paths": "referred to", "copy": "copied", "embed": "embedded"}[record.images]
        left_out = sum(left.conversations for left in record.left_out)
        note = f"{left_out:,} conversations left out" if left_out else ""
        details = (*split_lines(record), f"images {images}")
        yield Fact(record.format, f"{conversations:,}", note, details=details)


def reasons(run: RunRecord) -> Iterator[Fact]:
    """Why rows are quarantined, the most common reason first."""
    for kind, count in sorted(run.counts.reasons.items(), key=lambda item: (-item[1], item[0])):
        share = share_of(count, run.counts.rows)
        yield Fact(truncate(kind, "reason"), f"{count:,}", next_run(kind), share=share)


def quarantine_facts(run: RunRecord, groups: Sequence[QuarantineGroup]) -> Iterator[Fact]:
    """The groups of quarantined rows: the reason, how many, the message and examples."""
    for group in groups[:_MAX_GROUPS]:
        message = truncate(group.message or "other messages", "reason")
        examples = truncate(", ".join(group.examples), "reason")
        yield Fact(
            group.kind,
            f"{group.rows:,}",
            message,
            share=share_of(group.rows, run.counts.rows),
            details=(f"for example {examples}", next_run(group.kind)),
        )


def next_run(kind: str) -> str:
    """What the next run does with rows that are quarantined for a reason."""
    if kind in TRANSIENT:
        return "retries them"
    return "skips them unless file, prompt or settings change; caching.retry_quarantined retries"


def provenance(run: RunRecord) -> Iterator[Fact]:
    """Everything that the answers depend on, and the run that produced them."""
    parameters = run.parameters
    columns = parameters.columns.model_dump()
    facts = {
        "Dataset": str(parameters.dataset) or run.dataset,
        "Columns": ", ".join(f"{use}: {name}" for use, name in columns.items() if name),
        "Row limit": "" if parameters.max_rows is None else f"{parameters.max_rows:,}",
        "Model": run.model,
        "Model revision": run.model_revision,
        "Style": str(parameters.style),
        "System prompt": parameters.system_prompt,
        "User prompt": run.user_prompt,
        "Sampling": _options(parameters.sampling.options()),
        "Images": _options(parameters.images.settings.model_dump(mode="json")),
        "Image root": parameters.images.root or "",
        "Parser": run.parser,
        "Checks": ", ".join(parameters.checks.names),
        "Versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        "Run": run.run,
        "Started": f"{run.started:%Y-%m-%d %H:%M:%S} UTC",
        "Completed": f"{run.updated:%Y-%m-%d %H:%M:%S} UTC",
        "Configuration": run.configuration,
    }
    for name, value in facts.items():
        if value:
            yield Fact(name, truncate(value, "fact"), long=name.endswith("prompt"))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in options.items())


def truncate(text: str, what: str) -> str:
    """A text as long as a page can hold: `what` is a key of `_MAX_LENGTH`."""
    limit = _MAX_LENGTH[what]
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} characters more)"


def truncated_pair(pair: QAPair) -> QAPair:
    """The pair with texts that a page can hold."""
    return replace(
        pair,
        question=truncate(pair.question, "pairs"),
        answer=truncate(pair.answer, "pairs"),
        options=tuple(truncate(option, "reason") for option in pair.options),
    )


def share_of(count: int, of: int) -> str:
    """'12.3 %'; empty of nothing."""
    return f"{100 * count / of:.1f} %" if of else ""


def _mean(tally: Tally) -> str:
    return f"{tally.sum / tally.total:,.0f} a row" if tally.total else ""


def _short_number(number: int) -> str:
    """'12.30 M' for a large number."""
    for size, letter in ((10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:,.2f} {letter}"
    return f"{number:,}"


def _duration(seconds: float) -> str:
    """'42.0 s', '12 min 5 s', '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:,.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {remainder} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
