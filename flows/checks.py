"""The checks of a run: each that asks the model is a pass in which each pair is a row."""

from collections.abc import Callable, Iterator

from prefect import get_run_logger, task

from ..tasks.checking import AskedCheck, Check, Values
from ..tasks.checking.catalogue import READING
from ..tasks.concurrency import TASK_OPTIONS, quote
from ..tasks.errors import ErrorRateError, StoreError
from ..tasks.exporting.checked_rows import asked_values, check_rows, checked_pairs
from ..tasks.exporting.judged import Judged, last_judged, write_judged
from ..tasks.exporting.row_pairs import join_rows, read_pairs
from ..tasks.exporting.split import split_pairs
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.store import ObjectStore
from ..tasks.records import Row
from ..tasks.runs.checks import Checks
from ..tasks.runs.run_record import RunCounts
from ..tasks.storing.layout import ALL_PAIRS
from .open_pass import OpenPass
from .run import Run
from .run_log import IS_RESULT

Answer = Callable[[Run, OpenPass, Iterator[Row]], None]
"""Makes one pass over rows."""


def judge_pairs(run: Run, table: Dataset, pairs: int, answer: Answer) -> Judged:
    """Make all checks of the exported pairs, and store what they say of each.

    Nothing is asked twice, and a pair of which a request failed has no result.

    Args:
        run: the run.
        table: its dataset.
        pairs: how many pairs there are.
        answer: takes the rows of a pass through generate, parse and store.

    Raises:
        ErrorRateError: too many requests of a check failed.
        StoreError: the output cannot be read or written.
    """
    checks, seed = run.checks.checks, run.checks.wanted.seed
    passes = list[OpenPass | None]()
    for check in checks:
        if not isinstance(check, AskedCheck):
            passes.append(None)
            continue
        current = run.open_check(check, pairs)
        joined = join_rows(read_pairs(run.output, ALL_PAIRS), run.rows.read_again(), table.columns)
        try:
            answer(run, current, check_rows(check, joined, seed))
        except ErrorRateError as error:
            raise ErrorRateError(f"check {check.name}: {error}") from None
        passes.append(current)
    inputs = "" if READING.intersection(run.checks.wanted.names) else run.export_inputs()
    judged = last_judged(run.output, inputs)
    if judged is None:
        values = [_values(run, *each) for each in zip(checks, passes, strict=True)]
        judged = write_judged(run.output, quote(checks), quote(values), inputs)
    for check, asked in zip(checks, passes, strict=True):
        get_run_logger().info("%s", _told(check, asked, judged), extra={IS_RESULT: True})
    return judged


def _values(run: Run, check: Check, asked: OpenPass | None) -> Iterator[Values]:
    """What a check says of each pair."""
    if isinstance(check, AskedCheck):
        outcomes = asked.outcomes() if asked else iter(())
        pairs = read_pairs(run.output, ALL_PAIRS)
        return asked_values(check, pairs, outcomes, run.checks.wanted.seed)
    return check.judge(lambda: checked_pairs(run.output))


def _told(check: Check, asked: OpenPass | None, judged: Judged) -> str:
    """What became of a check, as a sentence."""
    count = judged.pairs - judged.unjudged.get(check.name, 0)
    text = f"check {check.name}: {count:,} of {judged.pairs:,} pairs have a result"
    if asked and (failed := asked.counts()).quarantined:
        kinds = sorted(failed.reasons.items(), key=lambda item: (-item[1], item[0]))
        why = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
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
    split = split_pairs(store, checks.keep or "", checks.caps, checks.seed)
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
