"""The page people look at: `report.html`, one file that works offline and runs no one's code.

Everything on it that came from the dataset or the model is escaped by the template engine; the
page's own policy lets the browser run its one script, and load nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .dataset_card import write_card
from .image_reader import ImageReader
from .image_refs import ImageBase
from .images import ImageSettings
from .object_store import ObjectStore
from .plots import draw_plots
from .report_facts import (
    card,
    filters,
    first_words,
    gallery_note,
    headline,
    provenance,
    reasons,
    visible,
)
from .report_statistics import Statistics, gather
from .run_records import RunRecord, completed_run, read_runs
from .samples import SampledRow, sample_rows
from .stored_rows import StoredRows
from .storing import PassFolder

REPORT = "report.html"

MAX_BYTES = 5_000_000
"""Of the page; with hostile rows it shows fewer of them."""

ANSWERED, QUARANTINED = 60, 40
"""Rows shown at most."""

_RUNS = 10
_TEMPLATES = Path(__file__).parent / "templates"


def make_report(
    store: ObjectStore,
    *,
    reader: ImageReader,
    images: ImageSettings,
    base: ImageBase,
    stored: StoredRows | None = None,
) -> list[SampledRow]:
    """Write `report.html` and `README.md` of an output's last completed run.

    Args:
        store: the output.
        reader: reads the images of the rows shown.
        images: limits on what is decoded of them.
        base: what relative image paths are tried against.
        stored: the rows as the run's parser read them, to save reading their keys once more.

    Returns:
        The rows shown.

    Raises:
        StoreError: there is no completed run, or the output is damaged or cannot be read or
            written.
    """
    run = completed_run(store)
    stored = stored or StoredRows(store, PassFolder().parts(run.parser))
    stored.sync()
    rows = sample_rows(
        store,
        run,
        stored,
        answered=ANSWERED,
        quarantined=QUARANTINED,
        reader=reader,
        images=images,
        base=base,
    )
    write_report(store, run, gather(store, run, stored), rows)
    write_card(store, run, rows)
    return rows


def write_report(
    store: ObjectStore, run: RunRecord, numbers: Statistics, rows: Sequence[SampledRow]
) -> None:
    """Write `report.html`.

    Raises:
        StoreError: it cannot be written, or the record of a run is damaged.
    """
    runs = [other for other in read_runs(store) if other.keys == run.keys]
    store.write(REPORT, render_report(run, numbers, rows, runs))


def render_report(
    run: RunRecord, numbers: Statistics, rows: Sequence[SampledRow], runs: Sequence[RunRecord] = ()
) -> bytes:
    """The page as a file of at most `MAX_BYTES`.

    Args:
        run: the completed run it is about.
        numbers: of all answered rows.
        rows: those to show.
        runs: all runs of the dataset and configuration, oldest first.
    """
    style, script = (_template_text(f"report.{kind}") for kind in ("css", "js"))
    page = _environment().get_template("report.html.j2")
    fixed = {
        "policy": _policy(style, script),
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "run": run,
        "headline": list(headline(run, numbers)),
        "plots": list(draw_plots(numbers)),
        "words": list(first_words(numbers)),
        "reasons": list(reasons(run)),
        "provenance": list(provenance(run)),
        "runs": list(reversed(runs))[:_RUNS],
    }
    while True:
        cards = [card(row) for row in sorted(rows, key=lambda row: bool(row.kind))]
        html = page.render(
            rows=cards, filters=filters(cards), note=gallery_note(run, cards), **fixed
        )
        data = html.encode("utf-8", "replace")  # JSON can hold half a surrogate pair
        if len(data) <= MAX_BYTES or not rows:
            return data
        rows = rows[::2] if len(rows) > 1 else ()


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        keep_trailing_newline=True,
    )


def _seen(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(str(value))


def _template_text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """What the page may do: show embedded images, and its own style and script, known by digest."""
    digests = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for text in (style, script)
    )
    allowed = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
