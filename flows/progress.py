"""Progress of a run: counted by the flow, shown in the terminal, artifacts and log lines."""

import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from ..serving.client.stats import ClientStats
from ..tasks.errors import DatasetError
from ..tasks.loading.dataset import Dataset
from ..tasks.runs.run_record import RunCounts
from ..tasks.storing.ledger import RowStatus

COUNTING_SECONDS = 60
"""A million lines take about 20 seconds; a dataset that takes longer gets no ETA."""


@dataclass
class RunProgress:
    """Counts of a run, written by the flow and read by other threads.

    Attributes:
        stats: the client's counts.
        total: rows of the dataset; None until known.
        skipped: rows that are not in a batch, by their status in the ledger.
        batches: batches so far.
        attempted: rows in them; some are answered from stored completions, without a request.
        retried: rows in them that were quarantined before.
        ok: rows answered and stored in this run.
        quarantined: rows that could not be answered in this run.
        started: `time.monotonic()` when the first batch could be sent; 0 before.
        before: the client's counts at that time; an earlier pass may have used it.
        finished: the run has ended, so nobody needs the ETA any more.
    """

    stats: ClientStats = field(default_factory=ClientStats)
    total: int | None = None
    skipped: dict[RowStatus, int] = field(default_factory=dict)
    batches: int = 0
    attempted: int = 0
    retried: int = 0
    ok: int = 0
    quarantined: int = 0
    started: float = 0.0
    before: ClientStats = field(default_factory=ClientStats)
    finished: bool = False
    _counting: bool = False

    def begin(self, stats: ClientStats, total: int | None) -> None:
        """Start the clock and count from zero, once everything is ready."""
        self.stats, self.before, self.started = stats, replace(stats), time.monotonic()
        self.total = self.total if total is None else total
        self.skipped = {}
        self.batches = self.attempted = self.retried = self.ok = self.quarantined = 0

    def end(self) -> None:
        """Ignore what the client does from now on."""
        self.stats = replace(self.stats)

    def add_skipped(self, status: RowStatus) -> None:
        """Count a row that is not put in a batch."""
        self.skipped[status] = self.skipped.get(status, 0) + 1

    def count(self, source: Dataset) -> None:
        """Count the rows of a dataset whose length is unknown, for the ETA; only once."""
        if self._counting or self.total is not None:
            return
        self._counting = True
        deadline = time.monotonic() + COUNTING_SECONDS
        total = 0
        with suppress(DatasetError):  # the flow reads the same rows, and raises it
            for total, _ in enumerate(source.rows(), 1):
                if total % 1000 == 0 and (self.finished or time.monotonic() > deadline):
                    return
            self.total = total

    def counts(self) -> RunCounts:
        """Counts so far; duplicates of a row count once."""
        reused = self.skipped.get(RowStatus.ANSWERED, 0)
        failed = self.skipped.get(RowStatus.FAILED, 0)
        ok, quarantined = reused + self.ok, failed + self.quarantined
        return RunCounts(
            rows=ok + quarantined,
            ok=ok,
            quarantined=quarantined,
            reused=reused,
            attempted=self.attempted,
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
        """Rows finished or skipped."""
        return sum(self.skipped.values()) + self._done_now

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


_current: ContextVar[RunProgress | None] = ContextVar("_current", default=None)


def use_progress(progress: RunProgress) -> None:
    """Let runs started from this context count in `progress`."""
    _current.set(progress)


def current_progress() -> RunProgress:
    """The counts of the current run: those set by `use_progress`, or new ones."""
    return _current.get() or RunProgress()
