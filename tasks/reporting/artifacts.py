"""What a run shows in Prefect's UI: Markdown and tables, from plain data.

Whatever a model or a dataset says is shown as text. Prefect renders Markdown with HTML in it, its
older UI also in the cells of a table and with `javascript:` links.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ..exporting.export import QUARANTINE_JSONL
from ..object_store.store import ObjectStore
from ..runs.records import RunCounts
from ..storing.parts import reported_corruption
from .samples import SampledRow

GALLERY_BYTES = 900_000
"""Prefect's UIs stay quick with Markdown of up to a megabyte."""

GALLERY_ROWS = 24
"""With thumbnails of at most 32 kB each, these fit."""

TABLE_ROWS = 100

_LONGEST_TEXT = 600
"""Characters shown of one text."""

_MOST_PAIRS = 6
"""Pairs shown of one row."""

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_LINKS = re.compile(r"(?i)(?<=http)(?=s?://)|(?<=www)(?=\.)|(?=@)")
_MARKUP = re.compile(r"(?<=[<!\]])(?=.)")
_NARROW = "\u2060"
"""A word joiner: it has no width, and ends what would become a link or markup."""

_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def as_text(text: str) -> str:
    """Markdown that shows a text of strangers as it is, on one line, cut where it is long."""
    return _PUNCTUATION.sub(r"\\\1", _LINKS.sub(_NARROW, _one_line(text)))


def as_cell(text: str) -> str:
    """A text of strangers for a table: one UI reads its cells as Markdown, the other does not."""
    return _MARKUP.sub(_NARROW, _LINKS.sub(_NARROW, _one_line(text)))


def summary_markdown(run: RunCounts, *, dataset: str, model: str, files: Mapping[str, str]) -> str:
    """Counts, reasons, tokens and throughput of a completed run.

    `files` tells what is in the output, as title -> path or URI without secrets.
    """
    counts = {
        "Rows": run.rows,
        "answered": run.ok,
        "of them before this run": run.reused,
        "filtered": run.filtered,
        "quarantined": run.quarantined,
        "QA pairs": run.pairs,
    }
    work = {
        "Model": as_text(model),
        "Requests": f"{run.requests:,}",
        "Prompt tokens": f"{run.prompt_tokens:,}",
        "Completion tokens": f"{run.completion_tokens:,}",
        "Seconds": f"{run.seconds:,.1f}",
        "New answers per second": _rate(run.ok - run.reused, run.seconds),
        "Completion tokens per second": _rate(run.completion_tokens, run.seconds),
    }
    parts = [
        f"# {as_text(dataset)}",
        _table(("", "rows"), [(name, f"{count:,}") for name, count in counts.items()]),
    ]
    if run.reasons:
        kinds = sorted(run.reasons.items(), key=lambda item: (-item[1], item[0]))
        told = [(as_text(kind), f"{count:,}", f"{count / run.rows:.2%}") for kind, count in kinds]
        parts += ["## Quarantined", _table(("reason", "rows", "of all"), told)]
    parts += ["## This run", _table(("", ""), work.items())]
    if files:
        told_files = [(as_text(title), as_text(place)) for title, place in files.items()]
        parts += ["## Output", _table(("", ""), told_files)]
    return "\n\n".join(parts) + "\n"


def gallery_markdown(rows: Sequence[SampledRow], *, of: int, limit: int = GALLERY_BYTES) -> str:
    """Some rows, sampled from so many, with their images and question-answer pairs.

    They are thinned evenly to `GALLERY_ROWS`; then the largest are left out until all of it has no
    more bytes than the limit.
    """
    count = min(len(rows), GALLERY_ROWS)
    blocks = {number: _block(rows[number * len(rows) // count]) for number in range(count)}
    sizes = {number: len(block.encode()) + 2 for number, block in blocks.items()}
    room = limit - 200  # for the heading
    for number in sorted(sizes, key=lambda number: -sizes[number]):
        if sum(sizes[kept] for kept in blocks) <= room:
            break
        del blocks[number]
    heading = f"# {len(blocks):,} of {of:,} rows"
    return "\n\n".join([heading, *blocks.values()]) + "\n"


def quarantine_table(store: ObjectStore) -> list[dict[str, Any]]:
    """The first quarantined rows of an output, for a table artifact."""
    with reported_corruption(store, QUARANTINE_JSONL):
        return [
            {
                "row": told["row"],
                "where": as_cell(str(told["where"])),
                "kind": as_cell(str(told["kind"])),
                "reason": as_cell(str(told["message"])),
            }
            for told in map(json.loads, islice(store.lines(QUARANTINE_JSONL), TABLE_ROWS))
        ]


def artifact_key(output: str, what: str) -> str:
    """Name an artifact by the URI of its output, so that each output has a history of its own.

    In lower-case letters, digits and dashes, as Prefect wants it.
    """
    name = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rpartition("/")[2].lower()).strip("-")
    digest = hashlib.sha256(output.rstrip("/").encode("utf-8", "replace")).hexdigest()[:6]
    return "-".join(filter(None, ["image-qa", name[:40].strip("-"), digest, what]))


def _one_line(text: str) -> str:
    # The two joiners shape letters and emoji; other controls only hide or turn text around.
    visible = (
        char if char.isprintable() or char in "\u200c\u200d" else " "
        for char in text[: 4 * _LONGEST_TEXT]
    )
    line = " ".join("".join(visible).split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"


def _block(row: SampledRow) -> str:
    pictures = [f"![]({uri})" for uri in row.thumbnails if _THUMBNAIL.fullmatch(uri)]
    parts = [f"### {as_text(row.where)}", " ".join(pictures)]
    for pair in row.pairs[:_MOST_PAIRS]:
        parts += [f"**Q:** {as_text(pair.question)}", f"**A:** {as_text(pair.answer)}"]
    if len(row.pairs) > _MOST_PAIRS:
        parts.append(f"and {len(row.pairs) - _MOST_PAIRS} more")
    if row.kind:
        parts.append(f"**{as_text(row.kind)}:** {as_text(row.reason)}")
    elif not row.pairs:
        parts.append(f"**Reply:** {as_text(row.text)}")
    return "\n\n".join(filter(None, parts))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    numbers = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, numbers, *rows])


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds > 0 else "0.0"
