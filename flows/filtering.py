"""Filters the pairs of a finished output anew, without a run and without a request."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from ..tasks.checking.balance import Cap
from ..tasks.checking.best import Best
from ..tasks.errors import StoreError
from ..tasks.exporting.pairs_parquet import PAIRS
from ..tasks.exporting.split import split_pairs
from ..tasks.exporting.split_plan import PairSplit, plan_split
from ..tasks.object_store.store import ObjectStore
from ..tasks.runs.heartbeat import this_process
from ..tasks.runs.run_counts import RunCounts
from ..tasks.runs.run_record import RunRecord, complete_run, completed_run
from ..tasks.storing.layout import FILTERED, JUDGED, SPLIT, run_name
from ..tasks.storing.parts import reported_corruption
from .output_lease import OutputLease
from .progress import RunProgress

_LOGGER = logging.getLogger("prefect_imageqa.filtering")

_RUN_AGAIN = "run the same command again"


def planned_filter(
    output: ObjectStore, keep: str, caps: Sequence[Cap], best: Sequence[Best] = ()
) -> PairSplit:
    """What `filtered` would keep; nothing is written.

    Raises:
        ConditionError, StoreError: as `filtered`.
    """
    last = completed_run(output)
    name = _pairs_before(output, last)
    return plan_split(output, keep, caps, last.parameters.checks.seed, name, best=best).split


@contextmanager
def filtered(
    output: ObjectStore, keep: str, caps: Sequence[Cap], best: Sequence[Best] = ()
) -> Iterator[PairSplit]:
    """Split the pairs of the last completed run anew; nobody else writes inside the block.

    The manifest then has the new counts, and condition, shares and limits in place of the run's.

    Args:
        output: the output.
        keep: the condition; empty if there is none.
        caps: limits on what it keeps.
        best: shares to keep of that, before the limits.

    Raises:
        ConditionError: the condition is none, names a column that there is not, or cannot be
            evaluated; a share is of no column of numbers; or the limits leave no pair.
        OutputBusyError: a run is writing to the output.
        StoreError: no run has completed, or the output is damaged, cannot be read or written.
    """
    with _lease(output, completed_run(output)):
        last = completed_run(output)  # as it is now that no run writes
        if _pairs_before(output, last) == PAIRS:
            _copy(output, PAIRS, JUDGED)
        split = split_pairs(output, keep, caps, last.parameters.checks.seed, best=best)
        changed = {
            "keep": keep,
            "keep_best": tuple(map(str, best)),
            "max_per": tuple(map(str, caps)),
        }
        complete_run(output, _changed(last, split, changed))
        yield split


def _pairs_before(output: ObjectStore, last: RunRecord) -> str:
    """The file with all pairs: if there were no checks and no filter, it is PAIRS itself.

    Raises:
        StoreError: it is missing, or not that of the run.
    """
    name = JUDGED if output.exists(JUDGED) else PAIRS
    if name == PAIRS and output.exists(SPLIT):
        raise StoreError(
            f"{output.uri_of(JUDGED)} is missing, which has the pairs before they were filtered: "
            f"{_RUN_AGAIN}"
        )
    if name == PAIRS and output.exists(FILTERED):
        raise StoreError(
            f"{output.uri_of(FILTERED)} already exists and was not written by a run: move it away"
        )
    with reported_corruption(output, name, _RUN_AGAIN), output.open(name) as source:
        pairs = pq.read_metadata(pa.PythonFile(source, mode="r")).num_rows
    counted = last.counts.pairs + last.counts.filtered_pairs
    if pairs != counted:
        raise StoreError(
            f"{output.uri_of(name)} has {pairs:,} pairs, but the last completed run counts "
            f"{counted:,}: {_RUN_AGAIN}"
        )
    return name


def _copy(output: ObjectStore, source: str, target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder:
        path = Path(folder) / "copy"
        with output.open(source) as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        output.put(target, path)


def _changed(last: RunRecord, split: PairSplit, filtering: Mapping[str, Any]) -> RunRecord:
    """The record of the last run, as if it had filtered so."""
    before = last.counts
    ok = before.ok + before.filtered - split.filtered_rows
    changes = {
        "ok": ok,
        "reused": min(before.reused, ok),
        "filtered": split.filtered_rows,
        "pairs": split.pairs,
        "filtered_pairs": split.filtered_pairs,
    }
    counts = RunCounts(**{**before.model_dump(), **changes})
    checks = last.parameters.checks.model_copy(update=filtering)
    parameters = last.parameters.model_copy(update={"checks": checks})
    return last.model_copy(update={"counts": counts, "parameters": parameters})


@contextmanager
def _lease(output: ObjectStore, last: RunRecord) -> Iterator[None]:
    """Be the only writer, as a run without rows, whose record is removed again."""
    now = datetime.now(UTC)
    changes = {
        **this_process(),
        **dict.fromkeys(("queued", "started", "updated"), now),
        **dict.fromkeys(("configuration", "keys", "error"), ""),
        "run": str(uuid4()),
        "state": "waiting",
        "last_reply": None,
    }
    record = last.model_copy(update=changes)
    lease = OutputLease(output, record, RunProgress(), logger=_LOGGER)
    try:
        with lease.acquire(wait=False):
            yield
    finally:
        output.remove(run_name(record.run))
