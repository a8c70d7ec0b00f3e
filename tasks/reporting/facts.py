"""What a report says of a run, as short texts; all of them may hold a stranger's words."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..records import TRANSIENT, QAPair
from ..runs.records import RunRecord
from .samples import SampledRow
from .statistics import Statistics, Tally

_WORDS = 12
_LONGEST = {"text": 4000, "pairs": 3000, "reason": 500, "fact": 4000}
"""Characters shown of a row's reply, of all its pairs, of a reason, of a fact about the run."""


# Controls but tab and line ends, and marks that turn the direction of all that follows.
_CONTROLS = (range(9), range(11, 13), range(14, 32), range(127, 160))
_TURNS = (range(0x200E, 0x2010), range(0x202A, 0x202F), range(0x2066, 0x206A), range(0x61C, 0x61D))
# Marks without a width; not the two joiners, which shape letters and emoji.
_HIDDEN = (range(0xAD, 0xAE), range(0x200B, 0x200C), range(0x2060, 0x2065), range(0xFEFF, 0xFF00))
_UNSEEN = dict.fromkeys(code for codes in (*_CONTROLS, *_TURNS, *_HIDDEN) for code in codes)


TEMPLATES = Path(__file__).parent / "templates"


def template(name: str, finalize: Callable[[Any], Any]) -> Template:
    """A page's template; what `finalize` gives for a value is escaped where the page is HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        finalize=finalize,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


def visible(text: str) -> str:
    """A text without what a page could hide or turn around; it is not escaped."""
    return text.translate(_UNSEEN)


@dataclass(frozen=True)
class Fact:
    """A name and a value on the page."""

    name: str
    value: str
    note: str = ""
    share: str = ""
    percent: float = 0.0
    long: bool = False


@dataclass(frozen=True)
class Card:
    """A row as the gallery shows it, cut to what a page can hold."""

    shown: SampledRow
    more_pairs: int
    facts: str


def headline(run: RunRecord, numbers: Statistics) -> Iterator[Fact]:
    """The large numbers at the top."""
    counts = run.counts
    yield Fact("Rows", f"{counts.rows:,}")
    yield Fact("Answered", f"{counts.ok:,}", _share(counts.ok, counts.rows))
    if counts.filtered:
        yield Fact("Filtered", f"{counts.filtered:,}", _share(counts.filtered, counts.rows))
    yield Fact("Quarantined", f"{counts.quarantined:,}", _share(counts.quarantined, counts.rows))
    each = f"{counts.pairs / counts.ok:,.2f} a row" if counts.ok else ""
    yield Fact("QA pairs", f"{counts.pairs:,}", each)
    yield Fact("Tokens read", _short(numbers.prompt_tokens.sum), _mean(numbers.prompt_tokens))
    written = numbers.completion_tokens
    yield Fact("Tokens written", _short(written.sum), _mean(written))
    yield Fact("Last run", _duration(counts.seconds), f"{counts.requests:,} requests")
    if counts.seconds > 0 and counts.asked:
        yield Fact("Throughput", f"{counts.asked / counts.seconds:,.1f}", "rows/s, last run")


def card(row: SampledRow) -> Card:
    """A row, cut to what a page can hold."""
    pairs: list[QAPair] = []
    length = 0
    for pair in row.pairs:
        length += len(pair.question) + len(pair.answer)
        if length > _LONGEST["pairs"] and pairs:
            break
        pairs.append(QAPair(_cut(pair.question, "pairs"), _cut(pair.answer, "pairs")))
    facts = [row.where if row.kind else f"row {row.row:,}"]
    if row.latency:
        facts.append(f"{row.latency:,.2f} s")
    if row.prompt_tokens:
        facts.append(f"{row.prompt_tokens:,} + {row.completion_tokens:,} tokens")
    text, reason = _cut(row.text, "text"), _cut(row.reason, "reason")
    shown = replace(row, pairs=tuple(pairs), text=text, reason=reason)
    return Card(shown, len(row.pairs) - len(pairs), _cut(" · ".join(facts), "reason"))


def filters(cards: Sequence[Card]) -> list[Fact]:
    """The filter's buttons: what they show, and how many."""
    kinds = sorted({card.shown.kind for card in cards if card.shown.kind})
    failed = sum(bool(card.shown.kind) for card in cards)
    names = ["all", "answered", *(["quarantined"] if len(kinds) > 1 else []), *kinds]
    counts = {"all": len(cards), "answered": len(cards) - failed, "quarantined": failed}
    counts |= {kind: sum(card.shown.kind == kind for card in cards) for kind in kinds}
    return [Fact(name.replace("_", " "), name, f"{counts[name]:,}") for name in names]


def gallery_note(run: RunRecord, cards: Sequence[Card]) -> str:
    """Which rows are shown, of how many."""
    failed = sum(bool(card.shown.kind) for card in cards)
    told = f"{len(cards) - failed:,} of {run.counts.ok:,} answered"
    if run.counts.quarantined:
        told += f" and {failed:,} of {run.counts.quarantined:,} quarantined"
    return f"{told} rows, spread evenly over the dataset."


def first_words(numbers: Statistics) -> Iterator[Fact]:
    """The most common first words of questions, with their share."""
    found = numbers.first_words.most_common(_WORDS)
    for word, count in found:
        share = _share(count, numbers.questions.total)
        yield Fact(word, share, percent=round(100 * count / found[0][1], 1))


def reasons(run: RunRecord) -> Iterator[Fact]:
    """Why rows are quarantined, the most common reason first."""
    again = "asks them again"
    stays = "leaves them; --retry-quarantined asks them again"
    for kind, count in sorted(run.counts.reasons.items(), key=lambda item: (-item[1], item[0])):
        note = again if kind in TRANSIENT else stays
        share = _share(count, run.counts.rows)
        yield Fact(_cut(kind, "reason"), f"{count:,}", note, share=share)


def provenance(run: RunRecord) -> Iterator[Fact]:
    """What decided the answers, and when."""
    told = run.parameters
    columns = told.columns.model_dump()
    facts = {
        "Dataset": str(told.dataset) or run.dataset,
        "Columns": ", ".join(f"{use}: {name}" for use, name in columns.items() if name),
        "Row limit": "" if told.max_rows is None else f"{told.max_rows:,}",
        "Model": run.model,
        "Model revision": run.model_revision,
        "Prompt style": str(told.prompt_style),
        "System prompt": told.system_prompt,
        "User prompt": run.user_prompt,
        "Sampling": _options(told.sampling.options()),
        "Images": _options(told.images.settings.model_dump(mode="json")),
        "Image root": told.images.root or "",
        "Parser": run.parser,
        "Versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
        "Run": run.run,
        "Started": f"{run.started:%Y-%m-%d %H:%M:%S} UTC",
        "Completed": f"{run.updated:%Y-%m-%d %H:%M:%S} UTC",
        "Configuration": run.configuration,
    }
    for name, value in facts.items():
        if value:
            yield Fact(name, _cut(value, "fact"), long=name.endswith("prompt"))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in options.items())


def _cut(text: str, what: str) -> str:
    most = _LONGEST[what]
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} characters more)"


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else ""


def _mean(tally: Tally) -> str:
    return f"{tally.sum / tally.total:,.0f} a row" if tally.total else ""


def _short(number: int) -> str:
    """A large number as people say it: '12.3 M'."""
    for size, letter in ((10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:,.2f} {letter}"
    return f"{number:,}"


def _duration(seconds: float) -> str:
    """'42.0 s', '12 min 5 s', '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
