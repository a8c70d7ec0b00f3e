"""Keeps a run from replacing files in its output that no run has written."""

from ..tasks.errors import StoreError
from ..tasks.exporting.output_status import EXPORTS
from ..tasks.exporting.qa_json import QA_JSON
from ..tasks.exporting.trainers.write import check_export_folders
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.store import ObjectStore
from ..tasks.reporting.dataset_card import CARD
from ..tasks.reporting.report import REPORT
from ..tasks.runs.checks import Checks
from ..tasks.runs.exports import Exports
from ..tasks.runs.run_record import read_runs
from ..tasks.storing.layout import CHECKS, FILTERED, JUDGED, PAIRS, RUNS, WORKERS, read_manifest

OWN_FILES = (*EXPORTS, REPORT, CARD)
"""Files that a run overwrites in its output."""

OWN_FOLDERS = (PAIRS, CHECKS, RUNS, WORKERS)
"""Folders whose files a run takes for those of earlier runs."""


def check_own_files(
    output: ObjectStore,
    table: Dataset,
    exports: Exports,
    checks: Checks = Checks(),  # noqa: B008 - frozen
) -> None:
    """Refuse an output with files that would be overwritten, above all the dataset itself.

    The manifest is the first object of a run: without one, all that is there is somebody else's.
    The dataset card is checked again when it is written, see `reporting/own_card.py`.

    Raises:
        StoreError: there is such a file; or the output cannot be read.
    """
    own = [output.uri_of(name) for name in OWN_FILES]
    if sources := [uri for uri in own if uri in table.sources]:
        raise StoreError(
            f"{sources[0]} is the dataset and would be overwritten: choose another output"
        )
    if read_manifest(output) is None:
        names = [*filter(output.exists, OWN_FILES), *filter(output.list, OWN_FOLDERS)]
    else:
        is_foreign = (
            exports.json_array and output.exists(QA_JSON) and not _has_written_qa_json(output)
        )
        names = [QA_JSON] if is_foreign else []
        if checks.are_wanted and output.exists(FILTERED) and not output.exists(JUDGED):
            names.append(FILTERED)
    if names:
        raise StoreError(
            f"{output.uri_of(names[0])} already exists and was not written by a run: "
            "choose another output"
        )
    check_export_folders(output, exports)


def _has_written_qa_json(output: ObjectStore) -> bool:
    runs = read_runs(output, on_corrupted=lambda _: None)
    return any(run.parameters.exports.json_array for run in runs)
