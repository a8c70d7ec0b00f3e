"""Unanswerable pairs: a pass that asks the questions of exported pairs about other images."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect import get_run_logger, task

from ..tasks.checking import AskedCheck
from ..tasks.checking.negatives import STYLE, check, tried_share, wanted
from ..tasks.concurrency import TASK_OPTIONS, quote
from ..tasks.errors import ErrorRateError
from ..tasks.exporting.added_pairs import add_pairs
from ..tasks.exporting.negatives import Tried, chosen_pairs, negative_rows, unanswerable
from ..tasks.exporting.row_pairs import join_rows, read_pairs
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.store import ObjectStore
from ..tasks.records import FinishedRow, Row
from ..tasks.runs.checks import Checks
from ..tasks.runs.run_counts import RunCounts
from ..tasks.storing.layout import ALL_PAIRS, ANSWERED_PAIRS
from .open_pass import OpenPass
from .run import Run
from .run_log import IS_RESULT
from .wording import counted


def add_negatives(
    run: Run,
    table: Dataset,
    counts: RunCounts,
    answer: Callable[[Run, OpenPass, Iterator[Row]], None],
) -> RunCounts:
    """Add unanswerable pairs to the exported ones, if the run wants some.

    Args:
        run: the run.
        table: its dataset.
        counts: of what is exported.
        answer: takes the rows of a pass through generate, parse and store.

    Returns:
        The counts with these pairs.

    Raises:
        ErrorRateError: too many requests failed.
        StoreError: the output cannot be read or written.
    """
    checks = run.checks.wanted
    if not checks.negatives:
        return counts
    asked = check()
    current = run.open_check(asked, round(counts.pairs * tried_share(checks.negatives)))
    pairs = read_pairs(run.output, ANSWERED_PAIRS)
    joined = join_rows(pairs, run.rows.read_again(), table.columns)
    try:
        answer(run, current, negative_rows(asked, joined, checks.negatives, checks.seed))
    except ErrorRateError as error:
        raise ErrorRateError(f"negatives: {error}") from None
    count = wanted(checks.negatives, counts.pairs)
    tried, added = write_negatives(
        run.output, quote(asked), quote(current.outcomes()), checks, count
    )
    get_run_logger().info("%s", _told(tried, added, count), extra={IS_RESULT: True})
    return counts.model_copy(update={"pairs": counts.pairs + added, "negatives": added})


@task(name="negatives", task_run_name="negatives", **TASK_OPTIONS)
def write_negatives(
    store: ObjectStore,
    asked: AskedCheck,
    outcomes: Iterator[FinishedRow | None],
    checks: Checks,
    count: int,
) -> tuple[Tried, int]:
    """Write all pairs: those of `ANSWERED_PAIRS`, and the unanswerable ones that are chosen.

    Args:
        store: the output.
        asked: how questions were asked.
        outcomes: of the requests.
        checks: share and seed.
        count: how many there should be.

    Returns:
        What became of the questions, and how many pairs were added.

    Raises:
        ObjectCorruptedError: the pairs are corrupted.
        StoreError: they cannot be read or written.
    """
    tried = Tried()
    joined = ((None, found) for found in read_pairs(store, ANSWERED_PAIRS))
    found = unanswerable(asked, joined, outcomes, checks.negatives, checks.seed, tried)
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        chosen = chosen_pairs(found, count, Path(folder) / "found")
        return tried, add_pairs(store, ANSWERED_PAIRS, ALL_PAIRS, chosen, STYLE)


def _told(tried: Tried, added: int, count: int) -> str:
    """What became of the questions, as a sentence."""
    text = (
        f"negatives: {tried.unanswerable:,} of {tried.questions:,} questions turned out "
        f"unanswerable with the image of another row; {added:,} pairs added"
    )
    if added < count:
        text += f", fewer than the {count:,} wanted"
    if tried.failed:
        why = counted(tried.reasons) or "no reply"
        text += f"; {tried.failed:,} questions without a result: {why}"
    return text
