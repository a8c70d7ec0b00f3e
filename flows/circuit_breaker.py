"""Stops a run in which nearly everything fails, instead of burning through the dataset."""

from collections import Counter, deque
from collections.abc import Iterable

from ..tasks.errors import ErrorRateError
from ..tasks.records import Answered, Quarantined

WINDOW = 256
"""Rows over which the share of failing ones is taken."""


class CircuitBreaker:
    """Watches the newest rows that were asked for the first time.

    Rows that cost no request do not count: there is nothing to save by stopping. Nor do rows that
    failed before: they come first in every later run, and say nothing of the rows after them.

    Args:
        max_error_rate: share of failing rows, 0 to 1, above which the run is stopped.
    """

    def __init__(self, max_error_rate: float) -> None:
        self.max_error_rate = max_error_rate
        self._newest: deque[Answered | Quarantined] = deque(maxlen=WINDOW)

    def add(self, rows: Iterable[Answered | Quarantined]) -> None:
        """Take in what became of a batch's rows, less those that were set aside.

        Raises:
            ErrorRateError: of the newest `WINDOW` rows too many have failed.
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
            f"stopped: {len(failed)} of the last {WINDOW} rows asked have failed, more than "
            f"max_error_rate {self.max_error_rate:g} allows "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds)}); the last: "
            f"{failed[-1].where}: {failed[-1].message}. What was answered is kept; mend the cause, "
            "or raise max_error_rate"
        )
