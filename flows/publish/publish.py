"""Publishes a completed run: a report in its output; artifacts, events and an asset in Prefect."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, cast

import numpy as np
from prefect import get_run_logger
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.tasks import Task

from ...tasks.concurrency import TASK_OPTIONS
from ...tasks.errors import StoreError
from ...tasks.exporting.export import ALWAYS_EXPORTED
from ...tasks.exporting.last_export import last_export
from ...tasks.exporting.pairs_parquet import PAIRS, ROWS
from ...tasks.exporting.qa_json import QA_JSONL
from ...tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from ...tasks.exporting.trainers.export_record import RECORDS
from ...tasks.loading.dataset import Dataset
from ...tasks.object_store.store import ObjectStore
from ...tasks.records import Row
from ...tasks.reporting.dataset_card import CARD
from ...tasks.reporting.evaluation import Evaluation
from ...tasks.reporting.report import (
    MAX_ANSWERED,
    MAX_QUARANTINED,
    REPORT,
    evaluate_checks,
    make_report,
)
from ...tasks.reporting.row_images import ImageSource, RowImages
from ...tasks.reporting.samples import SampledRow, evenly_spaced, likely_sample
from ...tasks.runs.run_counts import RunCounts
from ...tasks.runs.run_record import completed_run
from ...tasks.storing.key_index import count_duplicates, packed_pieces
from ...tasks.storing.layout import FILTERED
from ..client_settings import client_settings
from ..open_pass import OpenPass
from ..prefect_outage import run_has_ended, server_answers
from ..summary import RunSummary
from .artifacts import show_funnel, show_gallery, show_results
from .events import emit_completed

FILES = {
    "Report": REPORT,
    "Answers": QA_JSONL,
    "Pairs": PAIRS,
    "Rows": ROWS,
    "Quarantine": QUARANTINE_JSONL,
    "Dataset card": CARD,
}
"""Objects of an output that the summary lists, by title."""

_METADATA = {"rows", "ok", "filtered", "quarantined", "pairs", "filtered_pairs"}
"""Counts of a run that its asset has."""

ARTIFACT_SECONDS = 10.0
"""For each artifact; Prefect would otherwise wait minutes for a server lost only now."""


def as_asset(
    export: Task[..., RunCounts], output: ObjectStore, dataset: Dataset
) -> Callable[..., RunCounts]:
    """Make the export task materialize the output as a Prefect asset.

    The asset depends on the dataset, and its metadata are the run's counts. Outputs whose URI
    Prefect rejects as an asset key (local paths, spaces) are exported by the plain task.
    """
    key, *sources = (_asset_key(uri) for uri in (output.uri, *dataset.sources))
    if key is None:
        return cast("Callable[..., RunCounts]", export)

    def export_asset(*args: Any, **options: Any) -> RunCounts:
        counts = export.fn(*args, **options)
        add_asset_metadata(key, counts.model_dump(include=_METADATA))
        return counts

    dependencies: list[Asset | str] = [Asset(key=uri) for uri in sources if uri is not None]
    materialized = materialize(
        Asset(key=key),
        name=export.name,
        task_run_name=export.name,
        asset_deps=dependencies,
        **TASK_OPTIONS,
    )
    return cast("Callable[..., RunCounts]", materialized(export_asset))


def _asset_key(uri: str) -> str | None:
    try:
        return Asset(key=uri).key
    except ValueError:
        return None


def report_images(
    rows: Callable[[], Iterator[Row]], dataset: Dataset, main_pass: OpenPass
) -> RowImages:
    """The images for the report.

    Args:
        rows: reads the dataset's rows again.
        dataset: the dataset.
        main_pass: the pass over them.
    """
    settings = main_pass.generation_settings
    source = ImageSource(rows, dataset.columns, dataset.base)
    return RowImages(source, settings.reader, settings.images)


def expected_sample(dataset: Dataset, main_pass: OpenPass) -> set[int]:
    """Rows that the report will show if all are answered: their thumbnails can be made meanwhile.

    None if their number is not known, or if a report of an earlier run may stay as it is.
    """
    if dataset.count is None or len(main_pass.ledger.rows.index):
        return set()
    return set(evenly_spaced(dataset.count, MAX_ANSWERED))


def final_sample(main_pass: OpenPass) -> set[int]:
    """Rows that the report will show, as far as that is known before the export."""
    index = main_pass.ledger.rows.index
    found = (index.find(keys).locations["kind"] for keys in packed_pieces(main_pass.row_keys))
    kinds = np.concatenate([np.empty(0, np.uint8), *found])
    return likely_sample(kinds, answered=MAX_ANSWERED, quarantined=MAX_QUARANTINED)


def publish(
    summary: RunSummary,
    output: ObjectStore,
    dataset: Dataset,
    images: RowImages,
    main_pass: OpenPass,
    *,
    model: str,
) -> None:
    """Write the report of a completed run, and publish its artifacts and events.

    The run is complete and stored: nothing here may fail it.
    """
    run_has_ended()
    get_run_logger().info("%s", summary)
    results = partial(
        show_results,
        output,
        summary,
        dataset=dataset.name,
        model=model,
        files=FILES | ({"Filtered pairs": FILTERED} if summary.filtered_pairs else {}),
        duplicates=count_duplicates(main_pass.row_keys),
    )
    is_shown = server_answers()
    with (
        client_settings(max_retries=1, timeout=ARTIFACT_SECONDS),
        ThreadPoolExecutor(1) as publisher,
    ):
        if is_shown:  # while the report is written
            publisher.submit(copy_context().run, results)
        else:
            get_run_logger().info("no artifacts of the results are published")
        samples, evaluation = _update_report(output, dataset, images, main_pass)
        if is_shown and samples is not None:
            show_gallery(output, samples, of=summary.rows, dataset=dataset.name)
        if is_shown and evaluation is not None:
            show_funnel(output, summary, evaluation, dataset=dataset.name)
    emit_completed(summary, dataset=dataset.name, model=model)


def _update_report(
    output: ObjectStore,
    dataset: Dataset,
    images: RowImages,
    main_pass: OpenPass,
) -> tuple[Sequence[SampledRow] | None, Evaluation | None]:
    """Write the report, unless the one that is there shows the same.

    Returns:
        The rows shown: None if the report stays as it is, without any if it cannot be written. And
        what the checks say, if there were any and the report is new.
    """
    evaluation = None
    try:
        exported = last_export(output)
        records = filter(output.exists, RECORDS)
        files = [REPORT, CARD, *records, PAIRS]  # of the pairs, those that are kept
        if exported is not None and exported.has(output, [*ALWAYS_EXPORTED, *files]):
            return None, None
        evaluation = evaluate_checks(output, completed_run(output))
        samples = make_report(output, images, main_pass.ledger.rows, evaluation)
        if exported is not None:
            exported.add(output, files)
    except StoreError as error:
        get_run_logger().warning("could not write the report: %s", error)
    except Exception as error:  # whatever a plot or an untrusted image may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        get_run_logger().warning(
            "could not write the report (%s): retry with `prefect-imageqa report %s --dataset %s`",
            reason,
            output.uri,
            dataset.name,
        )
        get_run_logger().debug("traceback of the failed report", exc_info=True)
    else:
        return samples, evaluation
    return (), evaluation
