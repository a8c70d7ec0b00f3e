"""Stops a run in which too many rows fail, instead of burning through the dataset."""

from collections import Counter, deque
from collections.abc import Iterable

from ..tasks.errors import ErrorRateError
from ..tasks.records import Answered, Quarantined

WINDOW = 256
"""Number of newest rows over which the error rate is measured."""


class CircuitBreaker:
    """Measures the error rate of the newest rows that were sent to the model for the first time.

    Rows that cost no request do not count: stopping would save nothing. Nor do rows that failed in
    an earlier run: they come first in every later run, and say nothing about the rows after them.

    Args:
        max_error_rate: share of failed rows, 0 to 1, above which the run is stopped.
    """

    def __init__(self, max_error_rate: float) -> None:
        self.max_error_rate = max_error_rate
        self._newest: deque[Answered | Quarantined] = deque(maxlen=WINDOW)

    def add(self, rows: Iterable[Answered | Quarantined]) -> None:
        """Add the finished rows of a batch.

        Raises:
            ErrorRateError: too many of the newest `WINDOW` rows failed.
        """
        self._newest.extend(
            row
            for row in rows
            if isinstance(row, Answered) or (row.attempts > 0 and row.attempt == 0)
        )
        failed = [row for row in self._newest if isinstance(row, Quarantined)]
        full = len(self._newest) == WINDOW
        if not full or len(failed) <= self.max_error_rate * WINDOW:
            return
        kinds = Counter(row.kind for row in failed).most_common()
        raise ErrorRateError(
            f"stopped: {len(failed)} of the last {WINDOW} rows sent to the model failed, more than "
            f"max_error_rate {self.max_error_rate:g} allows "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds)}); the last: "
            f"{failed[-1].where}: {failed[-1].message}. All answers are stored; fix the cause, or "
            "raise max_error_rate"
        )
