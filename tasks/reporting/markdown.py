"""Content of the artifacts of a run in Prefect's UI: Markdown and tables.

Text from the model or the dataset is untrusted and escaped: Prefect renders HTML inside Markdown,
and its older UI also renders Markdown in table cells and follows `javascript:` links.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from ..runs.run_counts import RunCounts
from .check_facts import filter_reasons, funnel, kept_sentence
from .evaluation import Evaluation
from .facts import next_run
from .quarantine import QuarantineGroup
from .samples import SampledRow

GALLERY_BYTES = 900_000
"""Prefect's UIs stay responsive with up to a megabyte of Markdown."""

GALLERY_ROWS = 24
"""This many thumbnails of at most 32 kB fit into `GALLERY_BYTES`."""

_COLUMNS = 3
"""Rows side by side in the gallery."""

TABLE_ROWS = 100

_MAX_TEXT = 600
"""Longer texts are truncated to this many characters."""

_MAX_PAIRS = 6
"""Pairs shown per row."""

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_LINKS = re.compile(r"(?i)(?<=http)(?=s?://)|(?<=www)(?=\.)|(?=@)")
_MARKUP = re.compile(r"(?<=[<!\]])(?=.)")
_WORD_JOINER = "\u2060"
"""A zero-width character that breaks up text which would become a link or markup."""

_LINE_LENGTH = 34
"""Characters of a line in the gallery: about as wide as a thumbnail."""

_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def escape_markdown(text: str) -> str:
    """Escape untrusted text so that Markdown shows it literally, on one line, truncated if long."""
    return _escape(_one_line(text))


def escape_cell(text: str) -> str:
    """Make untrusted text harmless in a table artifact.

    No backslashes here: one of Prefect's UIs reads cells as Markdown, the other as plain text.
    """
    return _MARKUP.sub(_WORD_JOINER, _LINKS.sub(_WORD_JOINER, _one_line(text)))


def summary_markdown(
    run: RunCounts, *, dataset: str, model: str, files: Mapping[str, str], duplicates: int = 0
) -> str:
    """Counts, reasons, tokens and throughput of a completed run.

    Args:
        run: its counts.
        dataset: name of the dataset, the heading.
        model: name of the model.
        files: objects of the output to list, title -> path or URI without secrets.
        duplicates: rows of the dataset that are like an earlier one.
    """
    counts = {
        "Rows": run.rows,
        "answered": run.ok,
        "of them from earlier runs": run.reused,
        "filtered": run.filtered,
        "quarantined": run.quarantined,
        "rows like another one, which share its outcome": duplicates,
        "QA pairs": run.pairs,
        "filtered pairs": run.filtered_pairs,
    }
    optional = ("filtered", "filtered pairs", "rows like another one, which share its outcome")
    shown = [(name, f"{n:,}") for name, n in counts.items() if n or name not in optional]
    performance = {
        "Model": escape_markdown(model),
        "Requests": f"{run.requests:,}",
        "Prompt tokens": f"{run.prompt_tokens:,}",
        "Completion tokens": f"{run.completion_tokens:,}",
        "Seconds": f"{run.seconds:,.1f}",
        "New answers per second": _rate(run.ok - run.reused, run.seconds),
        "Completion tokens per second": _rate(run.completion_tokens, run.seconds),
    }
    parts = [f"# {escape_markdown(dataset)}", _table(("Result", "Number"), shown)]
    if run.reasons:
        by_count = sorted(run.reasons.items(), key=lambda item: (-item[1], item[0]))
        reasons = [
            (escape_markdown(kind), f"{count:,}", f"{count / run.rows:.2%}")
            for kind, count in by_count
        ]
        parts += ["## Quarantined", _table(("Reason", "Rows", "Share"), reasons)]
    parts += ["## This run", _table(("Measure", "Value"), performance.items())]
    if files:
        links = [(escape_markdown(title), escape_markdown(uri)) for title, uri in files.items()]
        parts += ["## Output", _table(("File", "Location"), links, alignment=":---")]
    return "\n\n".join(parts) + "\n"


def gallery_markdown(rows: Sequence[SampledRow], *, of: int, limit: int = GALLERY_BYTES) -> str:
    """Sampled rows with their images and question-answer pairs.

    The rows are thinned evenly to `GALLERY_ROWS`; then the largest are dropped until the Markdown
    fits the limit.

    Args:
        rows: the sample.
        of: how many rows it was taken from.
        limit: bytes of Markdown.
    """
    count = min(len(rows), GALLERY_ROWS)
    cells = {number: _cell(rows[number * len(rows) // count]) for number in range(count)}
    sizes = {number: len(cell.encode()) + 3 for number, cell in cells.items()}
    budget = limit - 200  # for the heading
    for largest in sorted(sizes, key=lambda number: -sizes[number]):
        if sum(sizes[number] for number in cells) <= budget:
            break
        del cells[largest]
    parts = [f"# {len(cells):,} of {of:,} rows"]
    if cells:
        padded = [*cells.values(), *[""] * (-len(cells) % _COLUMNS)]
        lines = [padded[start : start + _COLUMNS] for start in range(0, len(padded), _COLUMNS)]
        parts.append(_table(["Row"] * _COLUMNS, lines, alignment=":---"))
    return "\n\n".join(parts) + "\n"


def funnel_markdown(run: RunCounts, evaluation: Evaluation) -> str:
    """What remains of the rows and pairs of a run after each step, and why pairs are filtered."""
    headers = ("Step", "Remaining", "Share", "Pass", "Fail", "Not judged", "Not asked")
    lines = [
        (escape_markdown(step.name), step.remaining, step.share, *step.judged)
        for step in funnel(run, evaluation)
    ]
    parts = ["# Checks", f"{kept_sentence(evaluation)}.", _table(headers, lines)]
    if evaluation.reasons:
        reasons = [
            (escape_markdown(reason.name), reason.value, reason.share)
            for reason in filter_reasons(evaluation)
        ]
        parts.append(_table(("Filtered by", "Pairs", "Share"), reasons))
    return "\n\n".join(parts) + "\n"


def quarantine_table(groups: Sequence[QuarantineGroup]) -> list[dict[str, Any]]:
    """The quarantined rows in groups, for a table artifact."""
    return [
        {
            "rows": group.rows,
            "kind": escape_cell(group.kind),
            "reason": escape_cell(group.message or "other reasons"),
            "examples": escape_cell(", ".join(group.examples)),
            "next run": next_run(group.kind),
        }
        for group in groups[:TABLE_ROWS]
    ]


def artifact_key(output: str, what: str) -> str:
    """Derive an artifact's key from the output's URI, so that each output has its own history.

    Prefect allows lower-case letters, digits and dashes.
    """
    name = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rpartition("/")[2].lower()).strip("-")
    digest = hashlib.sha256(output.rstrip("/").encode("utf-8", "replace")).hexdigest()[:6]
    return "-".join(filter(None, ["image-qa", name[:40].strip("-"), digest, what]))


def _escape(line: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", _LINKS.sub(_WORD_JOINER, line))


def _wrapped(text: str, label: str = "") -> list[str]:
    """Escape text as lines of a cell, after a label; one of Prefect's UIs does not wrap them."""
    head = f"{label}:" if label else ""
    lines = wrap(f"{head} {_one_line(text)}".strip(), _LINE_LENGTH, break_on_hyphens=False)
    first, *others = lines or [head]
    bold = f"**{_escape(label)}:** " if label else ""
    return [bold + _escape(first[len(head) :].lstrip()), *map(_escape, others)]


def _one_line(text: str) -> str:
    # The two joiners shape letters and emoji; other control characters only hide or reorder text.
    visible = (
        char if char.isprintable() or char in "\u200c\u200d" else " "
        for char in text[: 4 * _MAX_TEXT]
    )
    line = " ".join("".join(visible).split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"


def _cell(row: SampledRow) -> str:
    """A row as a cell of a Markdown table: on one line, with `<br>` as the only HTML."""
    images = [image.thumbnail for image in row.images if _THUMBNAIL.fullmatch(image.thumbnail)]
    lines = [" ".join(f"![]({uri})" for uri in images)]
    for image in row.images:
        lines += _wrapped(image.name)
    if row.more_images:
        lines.append(f"and {row.more_images} more")
    lines += [f"*{line}*" for line in _wrapped(row.where)]
    for pair in row.pairs[:_MAX_PAIRS]:
        lines += ["", *_wrapped(pair.question, "Q"), *_wrapped(pair.answer, "A")]
    if len(row.pairs) > _MAX_PAIRS:
        lines += ["", f"and {len(row.pairs) - _MAX_PAIRS} more"]
    if row.kind:
        lines += ["", *_wrapped(row.reason, _one_line(row.kind))]
    elif not row.pairs:
        lines += ["", *_wrapped(row.text, "Reply")]
    return "<br>".join(lines).removeprefix("<br>")


def _table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, alignment: str = "---:"
) -> str:
    """A Markdown table; `alignment` is that of all columns but the first."""
    alignments = [":---"] + [alignment] * (len(headers) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headers, alignments, *rows])


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds > 0 else "0.0"
