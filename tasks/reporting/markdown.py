"""Content of the artifacts of a run in Prefect's UI: Markdown and tables.

Text from the model or the dataset is untrusted and escaped: Prefect renders HTML inside Markdown,
and its older UI also renders Markdown in table cells and follows `javascript:` links.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ..exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..object_store.store import ObjectStore
from ..runs.run_record import RunCounts
from ..storing.parts import reported_corruption
from .samples import SampledRow

GALLERY_BYTES = 900_000
"""Prefect's UIs stay responsive with up to a megabyte of Markdown."""

GALLERY_ROWS = 24
"""This many thumbnails of at most 32 kB fit into `GALLERY_BYTES`."""

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

_THUMBNAIL = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/]+={0,2}")


def escape_markdown(text: str) -> str:
    """Escape untrusted text so that Markdown shows it literally, on one line, truncated if long."""
    return _PUNCTUATION.sub(r"\\\1", _LINKS.sub(_WORD_JOINER, _one_line(text)))


def escape_cell(text: str) -> str:
    """Make untrusted text harmless in a table artifact.

    No backslashes here: one of Prefect's UIs reads cells as Markdown, the other as plain text.
    """
    return _MARKUP.sub(_WORD_JOINER, _LINKS.sub(_WORD_JOINER, _one_line(text)))


def summary_markdown(run: RunCounts, *, dataset: str, model: str, files: Mapping[str, str]) -> str:
    """Counts, reasons, tokens and throughput of a completed run.

    Args:
        run: its counts.
        dataset: name of the dataset, the heading.
        model: name of the model.
        files: objects of the output to list, title -> path or URI without secrets.
    """
    counts = {
        "Rows": run.rows,
        "answered": run.ok,
        "of them from earlier runs": run.reused,
        "filtered": run.filtered,
        "quarantined": run.quarantined,
        "QA pairs": run.pairs,
    }
    performance = {
        "Model": escape_markdown(model),
        "Requests": f"{run.requests:,}",
        "Prompt tokens": f"{run.prompt_tokens:,}",
        "Completion tokens": f"{run.completion_tokens:,}",
        "Seconds": f"{run.seconds:,.1f}",
        "New answers per second": _rate(run.ok - run.reused, run.seconds),
        "Completion tokens per second": _rate(run.completion_tokens, run.seconds),
    }
    parts = [
        f"# {escape_markdown(dataset)}",
        _table(("", "rows"), [(name, f"{count:,}") for name, count in counts.items()]),
    ]
    if run.reasons:
        by_count = sorted(run.reasons.items(), key=lambda item: (-item[1], item[0]))
        reasons = [
            (escape_markdown(kind), f"{count:,}", f"{count / run.rows:.2%}")
            for kind, count in by_count
        ]
        parts += ["## Quarantined", _table(("reason", "rows", "share"), reasons)]
    parts += ["## This run", _table(("", ""), performance.items())]
    if files:
        links = [(escape_markdown(title), escape_markdown(uri)) for title, uri in files.items()]
        parts += ["## Output", _table(("", ""), links)]
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
    blocks = {number: _block(rows[number * len(rows) // count]) for number in range(count)}
    sizes = {number: len(block.encode()) + 2 for number, block in blocks.items()}
    budget = limit - 200  # for the heading
    for largest in sorted(sizes, key=lambda number: -sizes[number]):
        if sum(sizes[number] for number in blocks) <= budget:
            break
        del blocks[largest]
    heading = f"# {len(blocks):,} of {of:,} rows"
    return "\n\n".join([heading, *blocks.values()]) + "\n"


def quarantine_table(store: ObjectStore) -> list[dict[str, Any]]:
    """The first quarantined rows of an output, for a table artifact."""
    with reported_corruption(store, QUARANTINE_JSONL):
        return [
            {
                "row": record["row"],
                "where": escape_cell(str(record["where"])),
                "kind": escape_cell(str(record["kind"])),
                "reason": escape_cell(str(record["message"])),
            }
            for record in map(json.loads, islice(store.lines(QUARANTINE_JSONL), TABLE_ROWS))
        ]


def artifact_key(output: str, what: str) -> str:
    """Derive an artifact's key from the output's URI, so that each output has its own history.

    Prefect allows lower-case letters, digits and dashes.
    """
    name = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rpartition("/")[2].lower()).strip("-")
    digest = hashlib.sha256(output.rstrip("/").encode("utf-8", "replace")).hexdigest()[:6]
    return "-".join(filter(None, ["image-qa", name[:40].strip("-"), digest, what]))


def _one_line(text: str) -> str:
    # The two joiners shape letters and emoji; other control characters only hide or reorder text.
    visible = (
        char if char.isprintable() or char in "\u200c\u200d" else " "
        for char in text[: 4 * _MAX_TEXT]
    )
    line = " ".join("".join(visible).split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"


def _block(row: SampledRow) -> str:
    images = [f"![]({uri})" for uri in row.thumbnails if _THUMBNAIL.fullmatch(uri)]
    parts = [f"### {escape_markdown(row.where)}", " ".join(images)]
    for pair in row.pairs[:_MAX_PAIRS]:
        parts.append(f"**Q:** {escape_markdown(pair.question)}")
        parts.append(f"**A:** {escape_markdown(pair.answer)}")
    if len(row.pairs) > _MAX_PAIRS:
        parts.append(f"and {len(row.pairs) - _MAX_PAIRS} more")
    if row.kind:
        parts.append(f"**{escape_markdown(row.kind)}:** {escape_markdown(row.reason)}")
    elif not row.pairs:
        parts.append(f"**Reply:** {escape_markdown(row.text)}")
    return "\n\n".join(filter(None, parts))


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = ["---"] + ["---:"] * (len(headers) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headers, alignment, *rows])


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds > 0 else "0.0"
