"""The checks of a run: each that asks the model is a pass in which each pair is a row."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from prefect import get_run_logger, task

from ..tasks.checking import AskedCheck
from ..tasks.checking.catalogue import READING
from ..tasks.checking.duplicates import first_images
from ..tasks.checking.hashed_rows import row_hasher
from ..tasks.concurrency import TASK_OPTIONS, quote
from ..tasks.errors import (
    EndpointLostError,
    EndpointUnreachableError,
    ErrorRateError,
    StoreError,
)
from ..tasks.exporting.check_values import CheckValues
from ..tasks.exporting.checked_rows import asked_values, check_rows, checked_pairs
from ..tasks.exporting.judged import Judged, last_judged, write_judged
from ..tasks.exporting.row_pairs import RowPairs, join_rows, read_pairs
from ..tasks.exporting.split import split_pairs
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.store import ObjectStore
from ..tasks.records import Row
from ..tasks.runs.checks import Checks
from ..tasks.runs.run_counts import RunCounts
from ..tasks.storing.layout import ALL_PAIRS
from .open_pass import OpenPass
from .run import Run
from .run_log import IS_RESULT
from .wording import counted

Answer = Callable[[Run, OpenPass, Iterator[Row]], None]
"""Makes one pass over rows."""


def check_pairs(run: Run, table: Dataset, pairs: int, answer: Answer) -> Judged:
    """Make all checks of the exported pairs, and store what they say of each.

    Nothing is asked twice, and a pair of which a request failed has no result.

    Args:
        run: the run.
        table: its dataset.
        pairs: how many pairs there are.
        answer: takes the rows of a pass through generate, parse and store.

    Raises:
        ConditionError: the condition cannot be evaluated for a pair.
        ErrorRateError: too many requests of a check failed.
        StoreError: the output cannot be read or written.
    """
    checks, passes = run.checks.checks, dict[str, OpenPass]()
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        values = CheckValues(run.output, checks, run.checks.dropping, pairs, folder)
        for check in run.checks.by_cost:
            if isinstance(check, AskedCheck):
                passes[check.name] = _ask(run, table, check, values, answer)
            else:
                said = check.judge(lambda: checked_pairs(run.output))
                values.add(check.name, said, np.zeros(pairs, bool))
        wanted, inputs = run.checks.wanted, run.export_inputs()
        if inputs:  # and which unanswerable pairs were added
            inputs = values.digest(f"{inputs} {wanted.negatives} {wanted.seed}", READING)
        judged = last_judged(run.output, inputs)
        if judged is None:
            judged = write_judged(run.output, quote(checks), quote(values), inputs)
        for check in checks:
            told = _told(judged, check.name, values.skipped(check.name), passes.get(check.name))
            get_run_logger().info("%s", told, extra={IS_RESULT: True})
    return judged


def _ask(
    run: Run, table: Dataset, check: AskedCheck, values: CheckValues, answer: Answer
) -> OpenPass:
    """Make a check about the pairs that no part of the condition drops so far."""
    seed, dropped = run.checks.wanted.seed, values.dropped()
    current = run.open_check(check, int((~dropped).sum()))
    joined = join_rows(read_pairs(run.output, ALL_PAIRS), run.rows.read_again(), table.columns)
    firsts = dict[str, str]()
    if check.other_image:
        firsts = first_images(checked_pairs(run.output), row_hasher(run.image_source(), run.output))

    def of_first(found: RowPairs) -> RowPairs:  # no image is shown in place of a copy of it
        return replace(found, images=firsts.get(found.images, found.images))

    rows = ((row, of_first(found)) for row, found in joined)
    try:
        answer(run, current, check_rows(check, rows, seed, dropped))
    except ErrorRateError as error:
        raise ErrorRateError(f"check {check.name}: {error}") from None
    except (EndpointLostError, EndpointUnreachableError) as error:
        if not current.is_optional:
            raise
        run.client.stop()
        get_run_logger().warning(
            "check %s: %s pairs stay unjudged, the next run asks about them: %s",
            check.name,
            f"{current.leave_rest():,}",
            error,
        )
    pairs, outcomes = map(of_first, read_pairs(run.output, ALL_PAIRS)), current.outcomes()
    values.add(check.name, asked_values(check, pairs, outcomes, seed, dropped), dropped)
    return current


def _told(judged: Judged, check: str, skipped: int, asked: OpenPass | None) -> str:
    """What became of a check, as a sentence."""
    count = judged.pairs - skipped - judged.unjudged.get(check, 0)
    text = f"check {check}: {count:,} of {judged.pairs:,} pairs have a result"
    if skipped:
        text += f"; {skipped:,} were not asked about, since the condition drops them anyway"
    if asked and (failed := asked.counts()).quarantined:
        why = counted(failed.reasons)
        text += f"; {failed.quarantined:,} of {failed.rows:,} requests failed: {why}"
    return text


@task(name="filter", task_run_name="filter", **TASK_OPTIONS)
def keep_pairs(store: ObjectStore, checks: Checks, counts: RunCounts, judged: Judged) -> RunCounts:
    """Split the judged pairs into those that are kept and those that are not.

    Args:
        store: the output.
        checks: which are kept.
        counts: of the run, before.
        judged: the judged pairs.

    Returns:
        The counts, now with the filtered rows and pairs.

    Raises:
        StoreError: a pair is lost, or the output cannot be read or written.
    """
    split = split_pairs(store, checks.keep or "", checks.caps, checks.seed, best=checks.best)
    if counts.pairs != judged.pairs or counts.pairs != split.pairs + split.filtered_pairs:
        raise StoreError(
            f"{store.uri}: of {counts.pairs:,} pairs, {judged.pairs:,} are judged, "
            f"{split.pairs:,} kept and {split.filtered_pairs:,} filtered: run again"
        )
    changed = {
        "ok": counts.ok - split.filtered_rows,
        "filtered": split.filtered_rows,
        "pairs": split.pairs,
        "filtered_pairs": split.filtered_pairs,
        "unjudged": judged.unjudged,
    }
    return RunCounts(**{**counts.model_dump(), **changed})
