"""The page people look at: `report.html`, one file that works offline and runs no one's code.

Everything on it that came from the dataset or the model is escaped by the template engine; the
page's own policy lets the browser run its one script, and load nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ..images.preparing import ImageSettings
from ..images.reader import ImageReader
from ..images.references import ImageBase
from ..object_store.store import ObjectStore
from ..runs.records import RunRecord, completed_run, read_runs
from ..storing.layout import PassFolder
from ..storing.stored_rows import StoredRows
from .dataset_card import CARD, render_card
from .facts import (
    TEMPLATES,
    card,
    filters,
    first_words,
    gallery_note,
    headline,
    provenance,
    reasons,
    template,
    visible,
)
from .plots import draw_plots
from .samples import SampledRow, sample_rows
from .statistics import Statistics, gather

REPORT = "report.html"

MAX_BYTES = 5_000_000
"""Of the page; with hostile rows it shows fewer of them."""

ANSWERED, QUARANTINED = 60, 40
"""Rows shown at most."""

_RUNS = 10


def make_report(
    store: ObjectStore,
    *,
    reader: ImageReader,
    images: ImageSettings,
    base: ImageBase,
    stored: StoredRows | None = None,
) -> list[SampledRow]:
    """Write `report.html` and `README.md` of the last completed run; returns the rows shown.

    If the rows are given as the run's parser `stored` them, their keys are not read once more.

    Raises:
        StoreError: there is no completed run, or the output is corrupted or cannot be read or
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
    runs = [other for other in read_runs(store) if other.keys == run.keys]
    store.write(REPORT, render_report(run, gather(store, run, stored), rows, runs))
    store.write(CARD, render_card(run, rows).encode("utf-8", "replace"))
    return rows


def render_report(
    run: RunRecord, numbers: Statistics, rows: Sequence[SampledRow], runs: Sequence[RunRecord] = ()
) -> bytes:
    """The page about a completed run, as a file of at most `MAX_BYTES`.

    The numbers are of all answered rows, the rows those to show; the runs, oldest first, are all of
    the same dataset and configuration.
    """
    style, script = ((TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = template("report.html.j2", _seen)
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


def _seen(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(str(value))


def _policy(style: str, script: str) -> str:
    """What the page may do: show embedded images, and its own style and script, known by digest."""
    digests = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for text in (style, script)
    )
    allowed = "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    return f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
