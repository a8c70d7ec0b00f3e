"""What people see of a completed run: a report in its output, artifacts, events and an asset."""

from collections.abc import Callable
from typing import Any, cast

from prefect import get_run_logger
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.tasks import Task

from ...tasks.concurrency import TASK_OPTIONS
from ...tasks.errors import StoreError
from ...tasks.exporting.export import PAIRS, QA_JSONL, QUARANTINE_JSONL
from ...tasks.loading.dataset import Dataset
from ...tasks.object_store.store import ObjectStore
from ...tasks.reporting.dataset_card import CARD
from ...tasks.reporting.report import REPORT, make_report
from ...tasks.reporting.samples import SampledRow
from ...tasks.runs.records import RunCounts
from ..open_pass import OpenPass
from ..summary import RunSummary
from .artifacts import show_results
from .events import emit_completed

FILES = {
    "Report": REPORT,
    "Answers": QA_JSONL,
    "Pairs": PAIRS,
    "Quarantine": QUARANTINE_JSONL,
    "Dataset card": CARD,
}
"""What people look at in an output, by title."""


def as_asset(
    export: Task[..., RunCounts], output: ObjectStore, table: Dataset
) -> Callable[..., RunCounts]:
    """The task that writes the exports, which tells Prefect of the output as an asset.

    Its dataset is what the asset depends on, its counts are the metadata. Only a URI that Prefect
    takes for the key of an asset is one: no local path, no space.
    """
    key, *sources = (_asset_key(uri) for uri in (output.uri, *table.sources))
    if key is None:
        return cast("Callable[..., RunCounts]", export)

    def export_asset(*args: Any, **options: Any) -> RunCounts:
        counts = export.fn(*args, **options)
        add_asset_metadata(key, counts.model_dump(include={"rows", "ok", "quarantined", "pairs"}))
        return counts

    depends: list[Asset | str] = [Asset(key=source) for source in sources if source is not None]
    materialized = materialize(
        Asset(key=key),
        name=export.name,
        task_run_name=export.name,
        asset_deps=depends,
        **TASK_OPTIONS,
    )
    return cast("Callable[..., RunCounts]", materialized(export_asset))


def _asset_key(uri: str) -> str | None:
    try:
        return Asset(key=uri).key
    except ValueError:
        return None


def publish(
    summary: RunSummary, output: ObjectStore, table: Dataset, main: OpenPass, *, model: str
) -> None:
    """Make the report of a completed run, and show and tell what came of it in Prefect.

    The run is complete and stored: nothing here can make it fail.
    """
    get_run_logger().info("%s", summary)
    samples: list[SampledRow] = []
    try:
        samples = make_report(
            output,
            reader=main.generation.reader,
            images=main.generation.images,
            base=table.base,
            stored=main.ledger.rows,
        )
    except StoreError as error:
        get_run_logger().warning("the report could not be made: %s", error)
    except Exception as error:  # whatever a plot or a stranger's picture may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        get_run_logger().warning(
            "the report could not be made (%s): `prefect-imageqa report %s` tries again",
            reason,
            output.uri,
        )
        get_run_logger().debug("where the report failed", exc_info=True)
    show_results(output, summary, samples, dataset=table.name, model=model, files=FILES)
    emit_completed(summary, dataset=table.name, model=model)
