"""Stops a run in which too many rows fail, and fails one in which no row was answered."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from ..tasks.errors import ErrorRateError
from ..tasks.exporting.quarantine_jsonl import QUARANTINE_JSONL
from ..tasks.records import TRANSIENT, Answered, FinishedRow, Quarantined
from .open_pass import OpenPass
from .summary import RunSummary

WINDOW = 256
"""Number of newest rows over which the error rate is measured."""


class CircuitBreaker:
    """Measures the error rate of the newest rows that should have been answered.

    Broken or missing images do not count: they cost no request, so stopping would save nothing.
    Unlike images whose host does not answer: it is likely to be away for the rows to come as well.
    Rows that failed in an earlier run do not count either: they come first in every later run, and
    say nothing about the rows after them.

    Args:
        max_error_rate: share of failed rows, 0 to 1, above which the run is stopped.
    """

    def __init__(self, max_error_rate: float) -> None:
        self.max_error_rate = max_error_rate
        self._newest: deque[FinishedRow] = deque(maxlen=WINDOW)

    def add(self, rows: Iterable[FinishedRow]) -> None:
        """Add the finished rows of a batch.

        Raises:
            ErrorRateError: too many of the newest `WINDOW` rows failed.
        """
        self._newest.extend(filter(_counts, rows))
        failed = [row for row in self._newest if isinstance(row, Quarantined)]
        full = len(self._newest) == WINDOW
        if not full or len(failed) <= self.max_error_rate * WINDOW:
            return
        kinds = Counter(row.kind for row in failed).most_common()
        raise ErrorRateError(
            f"stopped: {len(failed)} of the last {WINDOW} rows failed, more than max_error_rate "
            f"{self.max_error_rate:g} allows "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds)}); the last: "
            f"{failed[-1].where}: {failed[-1].message}. All answers are stored; fix the cause, or "
            "raise max_error_rate"
        )


def _counts(row: FinishedRow) -> bool:
    if isinstance(row, Answered):
        return True
    return row.attempt == 0 and (row.attempts > 0 or row.kind in TRANSIENT)


def check_answered(summary: RunSummary, passes: Sequence[OpenPass]) -> None:
    """Do not let a completed run without a single answer pass for a success, whatever the reasons.

    The last of the passes in which the last row failed gives the example.

    Raises:
        ErrorRateError: no row is answered.
    """
    if summary.quarantined < summary.rows:
        return
    lasts = [each.ledger.outcome(each.row_keys[-1]) for each in passes if each.row_keys]
    failed = [last for last in lasts if isinstance(last, Quarantined)]
    if not failed:
        return
    last = failed[-1]
    kind, count = max(summary.reasons.items(), key=lambda reason: reason[1])
    raise ErrorRateError(
        f"no row is answered; most often: {kind}, {count:,} of {summary.rows:,}; the last row, "
        f"{last.where}: {last.message}. All reasons are in {summary.output}/{QUARANTINE_JSONL}; "
        "fix the cause, and run again"
    )
