"""Writes the exports: one module here for each of them."""

import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

from prefect import task

from ..concurrency import TASK_OPTIONS
from ..errors import DatasetError, StoreError
from ..loading.columns import Columns
from ..object_store.store import ObjectStore
from ..records import Answered, FinishedRow, Row
from ..runs.run_counts import RunCounts
from ..storing.layout import ALL_PAIRS, ANSWERED_PAIRS, FILTERED, JUDGED, JUDGED_RECORD, SPLIT
from .dataset_columns import DatasetColumns
from .distinct_pairs import DistinctPairs
from .embedded import image_names, images_digest
from .last_export import LastExport, last_export
from .pairs_parquet import OWN_NAMES, PAIRS, ROWS, ParquetWriter
from .qa_json import QA_JSON, QA_JSONL, QAJsonWriter
from .quarantine_jsonl import QUARANTINE_JSONL, QuarantineWriter

_LOGGER = logging.getLogger("prefect_imageqa.exporting")

REWRITE_REMEDY = "run the same command again to rewrite it"
"""What to do if an export is corrupted."""

ALWAYS_EXPORTED = (QA_JSONL, PAIRS, ROWS, QUARANTINE_JSONL)


@task(name="export", task_run_name="export", **TASK_OPTIONS)
def export_rows(
    store: ObjectStore,
    outcomes: Iterable[FinishedRow | None],
    rows: Iterable[Row],
    count: int,
    columns: Columns,
    json_array: bool = False,
    inputs: str = "",
    pairs_name: str = PAIRS,
    reserved: Collection[str] = (),
) -> RunCounts:
    """Join the dataset with its answers, in dataset order, and replace the exports.

    Exports that were made from the same inputs, and that nobody has changed, stay as they are.

    Args:
        store: the output.
        outcomes: the answer or failure of each row, in dataset order.
        rows: the dataset from its start, at least as many rows as outcomes.
        count: how many outcomes there are.
        columns: the columns of images and conversations, and the column for the raw completion.
        json_array: whether to write `qa.json` as well.
        inputs: digest of all that the exports are made from; empty if it is not known.
        pairs_name: where the pairs go: `ALL_PAIRS` if they are checked or filtered afterwards,
            `ANSWERED_PAIRS` if unanswerable ones are added before.
        reserved: names of the columns that checks will add: one of the dataset is renamed.

    Raises:
        DatasetError: there are fewer rows than outcomes, or as raised by `rows`.
        StoreError: a row is neither answered nor quarantined, or the output cannot be read or
            written.
    """
    names = [pairs_name if name == PAIRS else name for name in ALWAYS_EXPORTED]
    names += [QA_JSON] if json_array else []
    last = last_export(store) if inputs else None
    if last is not None and last.inputs == inputs and last.has(store, names):
        if pairs_name == PAIRS:  # a filter that was killed may have left some
            _remove_judged(store)
        _LOGGER.info("the exports are up to date: nothing has changed since they were written")
        return last.counts
    own_names = OWN_NAMES.union(reserved)
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as name:
        folder = Path(name)
        counts = _join(folder, outcomes, rows, columns, own_names, json_array=json_array)
        if counts.rows != count:
            raise DatasetError("the dataset changed during the run: run again")
        for path in folder.iterdir():
            store.put(pairs_name if path.name == PAIRS else path.name, path)
        if pairs_name != ANSWERED_PAIRS:
            store.remove(ANSWERED_PAIRS)
        if pairs_name == PAIRS:
            _remove_judged(store)
    if inputs:
        LastExport(inputs=inputs, counts=counts).add(store, names)
    return counts


def _join(
    folder: Path,
    outcomes: Iterable[FinishedRow | None],
    rows: Iterable[Row],
    columns: Columns,
    own_names: Collection[str],
    *,
    json_array: bool,
) -> RunCounts:
    """Write the exports of the rows that have an outcome into a folder."""
    read = unanswered = lost_pairs = 0
    first_loss = ""
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        answers = QAJsonWriter(folder, stack, columns, json_array=json_array)
        left_out = filter(None, (columns.image, columns.conversation, columns.answer))
        tables = ParquetWriter(folder, stack, DatasetColumns([*left_out], own_names))
        quarantine = QuarantineWriter(folder, stack, columns)
        distinct = DistinctPairs()
        for row, outcome in zip(rows, outcomes, strict=False):
            read += 1
            if outcome is None:
                raise StoreError(f"{row.where} is neither answered nor quarantined")
            if isinstance(outcome, Answered):
                answers.add(row, outcome)
                pairs = distinct.of(row, outcome)
                digest = images_digest(row, columns) if pairs else ""
                tables.add(row, outcome, pairs, image_names(row, columns), digest)
                for failure in outcome.unanswered:
                    quarantine.add(row, failure)
                unanswered += len(outcome.unanswered)
                lost_pairs += outcome.lost
                if outcome.lost and not first_loss:
                    first_loss = row.where
            else:
                quarantine.add(row, outcome)
                reasons[outcome.kind] += 1
        answers.finish()
        tables.finish()
    if lost_pairs:
        _warn_of_lost(lost_pairs, first_loss)
    return RunCounts(
        rows=read,
        ok=read - reasons.total(),
        quarantined=reasons.total(),
        pairs=tables.pairs,
        duplicate_pairs=distinct.dropped,
        lost_pairs=lost_pairs,
        unanswered=unanswered,
        reasons=reasons,
    )


def _warn_of_lost(pairs: int, first: str) -> None:
    _LOGGER.warning(
        "%s in the replies of answered rows could not be read (a question without an answer, "
        "or damaged JSON), the first in that of %s; the replies are in %s",
        f"{pairs:,} pair{'' if pairs == 1 else 's'}",
        first,
        QA_JSONL,
    )


def _remove_judged(store: ObjectStore) -> None:
    """Remove what the checks of an earlier run have given: it is of no use without them."""
    if store.exists(JUDGED):  # else a file with the name of the filtered pairs is not ours
        store.remove(FILTERED)
    for name in (SPLIT, JUDGED_RECORD, ALL_PAIRS, JUDGED):
        store.remove(name)
