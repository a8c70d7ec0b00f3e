"""What people see of a completed run: a report in its output, artifacts and events in Prefect."""

from prefect import get_run_logger

from ..tasks.dataset_card import CARD
from ..tasks.errors import StoreError
from ..tasks.exporting import PAIRS, QA_JSONL, QUARANTINE_JSONL
from ..tasks.image_reader import ImageReader
from ..tasks.images import ImageSettings
from ..tasks.ledger import Ledger
from ..tasks.loading import Dataset
from ..tasks.object_store import ObjectStore
from ..tasks.report import REPORT, make_report
from ..tasks.samples import SampledRow
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


def present(
    output: ObjectStore,
    summary: RunSummary,
    *,
    source: Dataset,
    model: str,
    ledger: Ledger,
    reader: ImageReader,
    images: ImageSettings,
) -> None:
    """Make the report of a completed run, and show and tell what came of it in Prefect.

    The run is complete and stored: nothing here can make it fail.

    Args:
        output: the run's output.
        summary: what the run counted.
        source: its dataset.
        model: the name it is served under.
        ledger: which rows are finished.
        reader: reads the images of the rows shown.
        images: limits on what is decoded of them.
    """
    samples: list[SampledRow] = []
    try:
        samples = make_report(
            output, reader=reader, images=images, base=source.base, answers=ledger.answers
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
    show_results(output, summary, samples, dataset=source.name, model=model, files=FILES)
    emit_completed(summary, dataset=source.name, model=model)
