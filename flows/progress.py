"""How far a run is: counted by the flow, watched by a terminal or told in log lines."""

import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice

from ..serving.client import ClientStats
from ..tasks.errors import DatasetError
from ..tasks.loading import Dataset

COUNTING_SECONDS = 60
"""A million lines take about 20 seconds; a file that takes longer goes without an ETA."""


@dataclass
class RunProgress:
    """Counts of a run, written by the flow and read by whoever watches.

    Attributes:
        stats: what the client has done.
        total: rows of the dataset, as soon as that is known.
        reused: rows that an earlier run has answered.
        skipped: rows that need no asking for another reason: repeated, or known to fail.
        batches: batches that were formed.
        asked: rows in them; stored completions answer some without a request.
        retried: rows in them that were quarantined before.
        ok: rows answered and stored in this run.
        quarantined: rows that could not be answered in this run.
        started: monotonic seconds when the first batch could be sent; 0 before.
        over: nobody needs the counts any more.
    """

    stats: ClientStats = field(default_factory=ClientStats)
    total: int | None = None
    reused: int = 0
    skipped: int = 0
    batches: int = 0
    asked: int = 0
    retried: int = 0
    ok: int = 0
    quarantined: int = 0
    started: float = 0.0
    over: bool = False
    _counting: bool = False

    def begin(self, stats: ClientStats, count: int | None, limit: int | None) -> None:
        """Start the clock: everything that is needed is up."""
        self.stats, self.started = stats, time.monotonic()
        if count is not None:
            self.total = min(count, limit or count)

    def count(self, source: Dataset, limit: int | None) -> None:
        """Count the rows of a dataset that does not say how many it has, for the ETA; once."""
        if self._counting or self.total is not None:
            return
        self._counting = True
        deadline = time.monotonic() + COUNTING_SECONDS
        total = 0
        with suppress(DatasetError):  # the pass that asks comes to the same place, and tells
            for total, _ in enumerate(islice(source.rows(), limit), 1):
                if total % 1000 == 0 and (self.over or time.monotonic() > deadline):
                    return
            self.total = total

    @property
    def done(self) -> int:
        """Rows that are finished, or known to need nothing more."""
        return self.reused + self.skipped + max(self.ok + self.quarantined, self.stats.completions)

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second since the start."""
        seconds = time.monotonic() - self.started if self.started else 0.0
        return (self.done - self.reused - self.skipped) / seconds if seconds > 0 else 0.0

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
