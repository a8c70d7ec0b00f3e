"""How far a run is: counted by the flow, watched by a terminal or told in log lines."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..serving.client import ClientStats


@dataclass
class RunProgress:
    """Counts of a run, written by the flow and read by whoever watches.

    Attributes:
        stats: what the client has done.
        total: rows of the dataset where that is known before reading it.
        reused: rows that needed no asking.
        ok: rows answered and stored in this run.
        quarantined: rows that could not be answered in this run.
        started: monotonic seconds when the first batch could be sent; 0 before.
    """

    stats: ClientStats = field(default_factory=ClientStats)
    total: int | None = None
    reused: int = 0
    ok: int = 0
    quarantined: int = 0
    started: float = 0.0

    def begin(self, stats: ClientStats, total: int | None) -> None:
        """Start the clock: everything that is needed is up."""
        self.stats, self.total, self.started = stats, total, time.monotonic()

    @property
    def done(self) -> int:
        """Rows that are finished, or known to need nothing more."""
        return self.reused + max(self.ok + self.quarantined, self.stats.completions)

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second since the start."""
        seconds = time.monotonic() - self.started if self.started else 0.0
        return (self.done - self.reused) / seconds if seconds > 0 else 0.0

    def __str__(self) -> str:
        of_total = f" of {self.total:,}" if self.total is not None else ""
        rate = self.rows_per_second
        text = f"{self.done:,}{of_total} rows done, {rate:,.1f} rows/s"
        if self.total is not None and rate > 0 and self.total > self.done:
            text += f", {(self.total - self.done) / rate:,.0f} s to go"
        return text


_watched: ContextVar[RunProgress | None] = ContextVar("_watched", default=None)


def watch(progress: RunProgress) -> None:
    """Have runs that are started from this context count here."""
    _watched.set(progress)


def current_progress() -> RunProgress:
    """Where the current run counts."""
    return _watched.get() or RunProgress()
