"""How far a run is: counted by the flow, watched by a terminal or told in log lines."""

import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from ..serving.client.client import ClientStats
from ..tasks.errors import DatasetError
from ..tasks.loading.dataset import Dataset
from ..tasks.runs.records import RunCounts
from ..tasks.storing.ledger import RowStatus

COUNTING_SECONDS = 60
"""A million lines take about 20 seconds; a file that takes longer goes without an ETA."""


@dataclass
class RunProgress:
    """Counts of a run, written by the flow and read by whoever watches.

    Attributes:
        stats: what the client has done.
        total: rows of the dataset, as soon as that is known.
        known: rows that are not asked, by where they stand in the ledger.
        batches: batches that were formed.
        asked: rows in them; stored completions answer some without a request.
        retried: rows in them that were quarantined before.
        ok: rows answered and stored in this run.
        quarantined: rows that could not be answered in this run.
        started: monotonic seconds when the first batch could be sent; 0 before.
        before: what the client had done by then, for an earlier pass say.
        over: nobody needs the counts any more.
    """

    stats: ClientStats = field(default_factory=ClientStats)
    total: int | None = None
    known: dict[RowStatus, int] = field(default_factory=dict)
    batches: int = 0
    asked: int = 0
    retried: int = 0
    ok: int = 0
    quarantined: int = 0
    started: float = 0.0
    before: ClientStats = field(default_factory=ClientStats)
    over: bool = False
    _counting: bool = False

    def begin(self, stats: ClientStats, total: int | None) -> None:
        """Start the clock, and count from zero: everything that is needed is up."""
        self.stats, self.before, self.started = stats, replace(stats), time.monotonic()
        self.total = self.total if total is None else total
        self.known = {}
        self.batches = self.asked = self.retried = self.ok = self.quarantined = 0

    def end(self) -> None:
        """Count no more of what the client does."""
        self.stats = replace(self.stats)

    def add_known(self, status: RowStatus) -> None:
        """Count a row that is not asked."""
        self.known[status] = self.known.get(status, 0) + 1

    def count(self, source: Dataset) -> None:
        """Count the rows of a dataset that does not say how many it has, for the ETA; once."""
        if self._counting or self.total is not None:
            return
        self._counting = True
        deadline = time.monotonic() + COUNTING_SECONDS
        total = 0
        with suppress(DatasetError):  # the pass that asks comes to the same place, and tells
            for total, _ in enumerate(source.rows(), 1):
                if total % 1000 == 0 and (self.over or time.monotonic() > deadline):
                    return
            self.total = total

    def counts(self) -> RunCounts:
        """What has become of the rows so far; one that stands twice in the dataset counts once."""
        reused = self.known.get(RowStatus.ANSWERED, 0)
        failed = self.known.get(RowStatus.FAILED, 0)
        ok, quarantined = reused + self.ok, failed + self.quarantined
        return RunCounts(
            rows=ok + quarantined,
            ok=ok,
            quarantined=quarantined,
            reused=reused,
            asked=self.asked,
            retried=self.retried,
            requests=self.stats.requests - self.before.requests,
            prompt_tokens=self.stats.prompt_tokens - self.before.prompt_tokens,
            completion_tokens=self.stats.completion_tokens - self.before.completion_tokens,
            seconds=round(self.seconds, 3),
        )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started if self.started else 0.0

    @property
    def done(self) -> int:
        """Rows that are finished, or known to need nothing more."""
        return sum(self.known.values()) + self._done_now

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second since the start."""
        seconds = self.seconds
        return self._done_now / seconds if seconds > 0 else 0.0

    @property
    def _done_now(self) -> int:
        answered = self.stats.completions - self.before.completions
        return max(self.ok + self.quarantined, answered)

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
