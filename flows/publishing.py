"""What people see of a completed run: a report in its output, artifacts, events and an asset."""

from collections.abc import Callable
from typing import Any, cast

from prefect import get_run_logger
from prefect.assets import Asset, add_asset_metadata, materialize
from prefect.tasks import Task

from ..tasks.dataset_card import CARD
from ..tasks.errors import StoreError
from ..tasks.exporting import PAIRS, QA_JSONL, QUARANTINE_JSONL
from ..tasks.loading import Dataset
from ..tasks.object_store import ObjectStore
from ..tasks.report import REPORT, make_report
from ..tasks.run_records import RunCounts
from ..tasks.samples import SampledRow
from ..tasks.steps import STEP
from .passes import OpenPass
from .run import Run
from .run_artifacts import show_results
from .run_events import emit_completed
from .summary import RunSummary

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
        Asset(key=key), name=export.name, task_run_name=export.name, asset_deps=depends, **STEP
    )
    return cast("Callable[..., RunCounts]", materialized(export_asset))


def _asset_key(uri: str) -> str | None:
    try:
        return Asset(key=uri).key
    except ValueError:
        return None


def publish(run: Run, table: Dataset, asked: OpenPass, summary: RunSummary) -> None:
    """Make the report of a completed run, and show and tell what came of it in Prefect.

    The run is complete and stored: nothing here can make it fail.
    """
    get_run_logger().info("%s", summary)
    samples: list[SampledRow] = []
    try:
        samples = make_report(
            run.output,
            reader=run.reader,
            images=run.told.images.settings,
            base=table.base,
            stored=asked.ledger.rows,
        )
    except StoreError as error:
        get_run_logger().warning("the report could not be made: %s", error)
    except Exception as error:  # whatever a plot or a stranger's picture may raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        get_run_logger().warning(
            "the report could not be made (%s): `prefect-imageqa report %s` tries again",
            reason,
            run.output.uri,
        )
        get_run_logger().debug("where the report failed", exc_info=True)
    show_results(run.output, summary, samples, dataset=table.name, model=run.model, files=FILES)
    emit_completed(summary, dataset=table.name, model=run.model)
