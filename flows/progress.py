"""Progress of a run: counted by the flow, shown in the terminal, artifacts and log lines."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Protocol

from ..serving.client.stats import ClientStats
from ..tasks.errors import DatasetError
from ..tasks.loading.dataset import Dataset
from ..tasks.runs.run_counts import RunCounts
from ..tasks.runs.run_record import LINE_LENGTH, MAX_NOTES
from ..tasks.storing.ledger import RowStatus
from .recent_rate import Pace, RecentRate
from .wording import duration, rate

COUNTING_AFTER = 5.0
"""Seconds of a run before its rows are counted: a shorter one is over before it needs an ETA,
unless it has a pilot."""

COUNTING_SECONDS = 60
"""A million lines take about 20 seconds; a dataset that takes longer gets no ETA."""


class NoteSource(Protocol):
    """Something that knows what a user should know now, such as what the run waits for."""

    @property
    def notes(self) -> Sequence[str]:
        """One sentence each; replaced, never changed."""


@dataclass(frozen=True, eq=False)
class _Note:
    notes: Sequence[str]


@dataclass
class RunProgress:
    """Counts of a run, written by the flow and read by other threads.

    As text: '3,340 of 6,000, 58 rows/s, 9 min left'.

    Attributes:
        stats: the client's counts.
        sources: where `notes` come from; replaced, never changed.
        total: rows of the dataset; None until known.
        skipped: rows that are not in a batch, by their status in the ledger.
        batches: batches so far.
        attempted: rows in them; some are answered from stored completions, without a request.
        retried: rows in them that were quarantined before.
        ok: rows answered and stored in this run.
        quarantined: rows that could not be answered in this run.
        corrections: corrective requests of this run.
        corrected: rows that these made usable.
        started: `time.monotonic()` when the first batch could be sent; 0 before.
        before: the client's counts at that time; an earlier pass may have used it.
        finished: the run has ended, so nobody needs the ETA any more.
        unit: what the rows of the current pass are.
        ended: `time.monotonic()` when the pass ended; 0 before.
        ask: asks the person who watches the progress a question, for so many seconds; None if
            nobody does.
        needs_total: set if the rows are to be counted at once.
    """

    stats: ClientStats = field(default_factory=ClientStats)
    sources: Sequence[NoteSource] = ()
    total: int | None = None
    skipped: Counter[RowStatus] = field(default_factory=Counter)
    batches: int = 0
    attempted: int = 0
    retried: int = 0
    ok: int = 0
    quarantined: int = 0
    corrections: int = 0
    corrected: int = 0
    started: float = 0.0
    before: ClientStats = field(default_factory=ClientStats)
    finished: bool = False
    unit: str = "rows"
    ended: float = 0.0
    ask: Callable[[str, float], bool] | None = None
    needs_total: Event = field(default_factory=Event)
    _counting: bool = False
    _live: ClientStats = field(default_factory=ClientStats)
    _recent: RecentRate = field(default_factory=lambda: RecentRate(time.monotonic()))

    def begin(self, stats: ClientStats, total: int | None, unit: str = "rows") -> None:
        """Start the clock and count from zero, once everything is ready.

        Args:
            stats: the client's counts.
            total: how many rows there are, if that is known.
            unit: what they are.
        """
        now = time.monotonic()
        if unit != self.unit:
            self.unit, self.total, self._counting = unit, None, True
        self._live, self._recent = stats, RecentRate(now)
        self.stats, self.before, self.started, self.finished = stats, replace(stats), now, False
        self.total = self.total if total is None else total
        self.skipped = Counter()
        self.batches = self.attempted = self.retried = self.ok = self.quarantined = 0
        self.corrections = self.corrected = 0

    @property
    def all_quarantined(self) -> int:
        """Rows that could not be answered, now or by an earlier run."""
        return self.skipped[RowStatus.FAILED] + self.quarantined

    def end(self) -> "RunProgress":
        """The counts of a pass that has ended, which `begin` does not change."""
        return replace(self, stats=replace(self.stats), ended=time.monotonic())

    def add_skipped(self, status: RowStatus) -> None:
        """Count a row that is not put in a batch."""
        self.skipped[status] += 1

    @contextmanager
    def watching(self, source: NoteSource) -> Iterator[None]:
        """Show the notes of `source` during the block."""
        self.sources = (*self.sources, source)
        try:
            yield
        finally:
            self.sources = tuple(other for other in self.sources if other is not source)

    @contextmanager
    def saying(self, note: str) -> Iterator[None]:
        """Show a note during the block."""
        with self.watching(_Note((note,))):
            yield

    def count(self, source: Dataset) -> None:
        """Count the rows of a dataset whose length is unknown, for the ETA; only once."""
        if self._counting or self.total is not None:
            return
        self._counting = True
        unit = self.unit
        self.needs_total.wait(COUNTING_AFTER)
        deadline = time.monotonic() + COUNTING_SECONDS

        def is_useless() -> bool:  # a further pass has other rows
            return self.finished or self.unit != unit or time.monotonic() > deadline

        total = 0
        with suppress(DatasetError):  # the flow reads the same rows, and raises it
            for total, _ in enumerate(source.rows(), 1):
                if total % 1000 == 1 and is_useless():
                    return
            if self.unit == unit:
                self.total = total

    def counts(self) -> RunCounts:
        """Counts so far; duplicates of a row count once."""
        reused, failed = self.skipped[RowStatus.ANSWERED], self.skipped[RowStatus.FAILED]
        ok, quarantined = reused + self.ok, failed + self.quarantined
        return RunCounts(
            rows=ok + quarantined,
            ok=ok,
            quarantined=quarantined,
            reused=reused,
            attempted=self.attempted,
            retried=self.retried,
            duplicates=self.skipped[RowStatus.DUPLICATE],
            corrections=self.corrections,
            corrected=self.corrected,
            requests=self.stats.requests - self.before.requests,
            prompt_tokens=self.stats.prompt_tokens - self.before.prompt_tokens,
            completion_tokens=self.stats.completion_tokens - self.before.completion_tokens,
            seconds=round(self.seconds, 3),
        )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    @property
    def done(self) -> int:
        """Rows finished or skipped."""
        return self.skipped.total() + self._done_now

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know now, in a bounded number of plain lines."""
        return _shown(note for source in self.sources for note in source.notes)

    @property
    def last_reply(self) -> datetime | None:
        """When the model answered last, in any pass; None if it has not."""
        last = self._live.last_completion
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - last) if last else None

    @property
    def headline(self) -> str:
        """The same as its text, but what matters most comes first: '9 min left: 3,340 of 6,000'."""
        pace = self._pace()
        outlook, amounts = self._outlook(pace), self._amounts(pace)
        return f"{outlook}: {amounts}" if outlook else amounts

    def __str__(self) -> str:
        pace = self._pace()
        outlook, amounts = self._outlook(pace), self._amounts(pace)
        return f"{amounts}, {outlook}" if outlook else amounts

    @property
    def is_done(self) -> bool:
        """Whether every row has an outcome, as far as is known."""
        return self.finished or (self.total is not None and self.done >= self.total)

    @property
    def _done_now(self) -> int:
        # Some replies are second ones to a row; those of the batches in flight are not known yet.
        answered = self.stats.completions - self.before.completions - self.corrections
        return max(self.ok + self.quarantined, min(answered, self.attempted))

    def _pace(self) -> Pace:
        return self._recent.update(time.monotonic(), self._done_now)

    def _amounts(self, pace: Pace) -> str:
        if not self.started:
            return "starting"
        text = (
            f"{self.done:,} {self.unit}"
            if self.total is None
            else f"{self.done:,} of {self.total:,}"
        )
        known = pace.rows_per_second > 0 and not pace.idle
        return f"{text}, {rate(pace.rows_per_second)}" if known else text

    def _outlook(self, pace: Pace) -> str:
        """The time left, or since when nothing has happened; may be empty."""
        if not self.started or self.is_done:
            return ""
        if pace.idle:
            return f"no {self.unit.removesuffix('s')} done for {duration(pace.idle)}"
        if self.total is None or pace.rows_per_second <= 0:
            return ""
        return f"{duration((self.total - self.done) / pace.rows_per_second)} left"


def _shown(notes: Iterable[str]) -> tuple[str, ...]:
    """Notes as the record of a run may have them: they quote errors of servers."""
    lines = list(dict.fromkeys(map(_line, notes)))
    if len(lines) <= MAX_NOTES:
        return tuple(lines)
    return (*lines[: MAX_NOTES - 1], f"and {len(lines) - MAX_NOTES + 1:,} more")


def _line(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 1]}\u2026"


_current: ContextVar[RunProgress | None] = ContextVar("_current", default=None)


@contextmanager
def use_progress(progress: RunProgress) -> Iterator[None]:
    """Let runs that are started during the block count in `progress`."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def current_progress() -> RunProgress:
    """The counts of the current run: those set by `use_progress`, or new ones."""
    return _current.get() or RunProgress()
