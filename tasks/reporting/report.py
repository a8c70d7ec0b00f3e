"""The report page: `report.html`, one file that works offline.

The template engine escapes everything that came from the dataset or the model. In addition, the
page's content security policy allows only its own script and style, and loads nothing.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from ..exporting.export import REWRITE_REMEDY
from ..exporting.pairs_parquet import PAIRS, PAIRS_SCHEMA, ROWS, dataset_fields
from ..exporting.trainers.export_record import ExportRecord, read_exports
from ..object_store.store import ObjectStore
from ..runs.run_record import RunRecord, completed_run, read_runs
from ..storing.layout import PassFolder
from ..storing.parts import reported_corruption
from ..storing.stored_rows import StoredRows
from .check_columns import is_evidence, result_columns
from .check_facts import ChecksSection, checks_section
from .dataset_card import render_card
from .disagreements import read_disputed
from .evaluate import evaluate_output
from .evaluation import Evaluation
from .facts import (
    bar_charts,
    card,
    export_facts,
    filters,
    gallery_note,
    headline,
    options,
    provenance,
    quarantine_facts,
)
from .judged_pairs import has_checks, read_filtered
from .own_card import write_card
from .pages import TEMPLATES, content_policy, finalize, load_template
from .plots import draw_plots
from .quarantine import QuarantineGroup, quarantine_groups
from .row_images import RowImages
from .samples import SampledRow, sample_rows
from .statistics import Statistics, compute_statistics

REPORT = "report.html"

MAX_BYTES = 8_000_000
"""Size limit of the page: if huge rows exceed it, fewer rows are shown."""

MAX_ANSWERED, MAX_QUARANTINED = 60, 40
"""Rows in the gallery."""

_MAX_RUNS = 10


def make_report(
    store: ObjectStore,
    images: RowImages | None,
    stored: StoredRows | None = None,
    evaluation: Evaluation | None = None,
) -> list[SampledRow]:
    """Write `report.html` and `README.md` of the last completed run.

    A README.md that is not as a run has written it is left as it is.

    Args:
        store: the output.
        images: of the rows; None for a report without images.
        stored: the rows as the run's parser stored them, if already known: saves reading their
            keys.
        evaluation: of the pairs, if they were checked and it is already known.

    Returns:
        The rows shown.

    Raises:
        StoreError: there is no completed run, or the output is corrupted or cannot be read or
            written.
    """
    run = completed_run(store)
    if stored is None:
        stored = StoredRows(store, PassFolder().parts(run.parser))
        stored.sync()
    rows = sample_rows(
        store,
        run,
        stored,
        answered=MAX_ANSWERED,
        quarantined=MAX_QUARANTINED,
        images=images,
    )
    runs = [other for other in read_runs(store) if other.keys == run.keys]
    statistics = compute_statistics(store, run, stored)
    groups = quarantine_groups(store)
    exports = read_exports(store)
    checks = _checks(store, run, evaluation or evaluate_checks(store, run), images)
    store.write(REPORT, render_report(run, statistics, rows, runs, groups, exports, checks))
    write_card(store, output_card(store, run, rows, statistics, exports, checks))
    return rows


def evaluate_checks(store: ObjectStore, run: RunRecord) -> Evaluation | None:
    """What the checks of a run say of its pairs; None if there were none.

    Raises:
        StoreError: the pairs are corrupted or cannot be read.
    """
    return evaluate_output(store, checks=run.parameters.checks.names) if has_checks(store) else None


def output_card(
    store: ObjectStore,
    run: RunRecord,
    rows: Sequence[SampledRow],
    statistics: Statistics | None = None,
    exports: Sequence[ExportRecord] = (),
    checks: ChecksSection | None = None,
) -> str:
    """The dataset card of an output; see `render_card`."""
    digests = {name: _digest(store, name) for name in (PAIRS, ROWS)}
    return render_card(
        run, rows, _dataset_columns(store, run), statistics, exports, digests, checks
    )


def render_report(
    run: RunRecord,
    statistics: Statistics,
    rows: Sequence[SampledRow],
    runs: Sequence[RunRecord] = (),
    groups: Sequence[QuarantineGroup] = (),
    exports: Sequence[ExportRecord] = (),
    checks: ChecksSection | None = None,
) -> bytes:
    """Render the page about a completed run, with at most `MAX_BYTES`.

    Args:
        run: the run.
        statistics: of all its answered rows.
        rows: the rows to show.
        runs: all runs of the same dataset and configuration, oldest first.
        groups: its quarantined rows.
        exports: what was exported for training.
        checks: what they say of its pairs, if there were any.
    """
    style, script = ((TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = load_template("report.html.j2", finalize=finalize)
    fixed = {
        "policy": content_policy(style, script),
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "run": run,
        "headline": list(headline(run, statistics)),
        "plots": list(draw_plots(statistics)),
        "charts": list(bar_charts(statistics)),
        "options": options,
        "exports": list(export_facts(exports)),
        "checks": checks,
        "groups": list(quarantine_facts(run, groups)),
        "provenance": list(provenance(run)),
        "runs": list(reversed(runs))[:_MAX_RUNS],
    }
    while True:
        cards = [card(row) for row in sorted(rows, key=lambda row: bool(row.kind))]
        html = page.render(
            rows=cards, filters=filters(cards), note=gallery_note(run, cards), **fixed
        )
        data = html.encode("utf-8", "replace")  # JSON can contain lone surrogates
        if len(data) <= MAX_BYTES or not rows:
            return data
        rows = rows[::2] if len(rows) > 1 else ()


def _checks(
    store: ObjectStore, run: RunRecord, evaluation: Evaluation | None, images: RowImages | None
) -> ChecksSection | None:
    if evaluation is None:
        return None
    columns = [check.column for check in evaluation.checks]
    disputed = read_disputed(store, columns, read_filtered(store), images)
    return checks_section(run.counts, evaluation, disputed, run.parameters.checks)


def _dataset_columns(store: ObjectStore, run: RunRecord) -> Sequence[tuple[str, str]]:
    """Names and types of the dataset's columns in the exports."""
    with reported_corruption(store, PAIRS, REWRITE_REMEDY), store.open(PAIRS) as source:
        schema = pq.read_schema(pa.PythonFile(source, mode="r"))
        made = run.parameters.checks.names
        results = {column.name for column in result_columns(schema, made)} if made else set()
        return [
            (field.name, str(field.type))
            for field in dataset_fields(schema, PAIRS_SCHEMA)
            if field.name not in results and not (made and is_evidence(field.name))
        ]


def _digest(store: ObjectStore, name: str) -> str:
    with reported_corruption(store, name, REWRITE_REMEDY), store.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
