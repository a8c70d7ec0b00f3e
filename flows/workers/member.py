"""One worker of a run, as the run sees it."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from ...serving.client.stats import ClientStats
from ...tasks.errors import ImageQAError, ObjectMissingError
from ...tasks.records import Batch
from ...tasks.storing.layout import WorkerFolder
from .channel import Channel
from .engine import StartedWorker
from .messages import BatchResult, WorkerStatus, numbers

SILENT_SECONDS = 60.0
"""A worker that says nothing for so long, while the output can be read, is lost."""

START_SECONDS = 300.0
"""A worker that has been started and says nothing for so long is lost, too."""

MAX_UNKNOWN = 60
"""A batch that its worker has not named so often, of those that it has, is lost: somebody else has
removed it, or what became of it. A worker names them each second."""

_COUNTERS = ("requests", "completions", "failures", "prompt_tokens", "completion_tokens")


@dataclass(eq=False)
class GivenBatch:
    """A batch on its way: the future has its result, or None where its worker was lost.

    Attributes:
        number: unique in the run; each pass numbers its batches from 1.
        batch: the batch.
        result: set once.
        unknown: how often its worker has said what it has, and not named this one.
    """

    number: int
    batch: Batch
    result: "Future[BatchResult | None]" = field(default_factory=Future)
    unknown: int = 0


@dataclass(eq=False)
class Member:
    """A worker.

    Attributes:
        folder: what is exchanged with it.
        started: how its engine sees it.
        losses: how many workers before it were lost one after the other, in whose place it is.
        status: what it has said last; None before.
        silent: seconds since then, as far as the output could be read.
        batches: what it has to do, by number.
    """

    folder: WorkerFolder
    started: StartedWorker
    losses: int = 0
    status: WorkerStatus | None = None
    silent: float = 0.0
    batches: dict[int, GivenBatch] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"worker {self.folder.worker}"

    @property
    def notes(self) -> list[str]:
        """What a user should know of it now."""
        if self.status is None:
            return [f"{self}: {self.started.note or 'is starting'}"]
        return [f"{self}: {note}" for note in self.status.notes]

    @property
    def is_working(self) -> bool:
        """Whether it has not ended, as far as is known; a lost engine has no workers."""
        try:
            return self.started.ended is None
        except ImageQAError:
            return False
        except BaseException:  # such as a cancelled call
            return True

    def room(self, batch_size: int) -> int:
        """How many more rows it could take; one batch is prepared ahead of the free slots."""
        if self.status is None:
            return 0
        unsent = sum(given.batch.unsent for given in self.batches.values())
        busy = self.status.stats.in_flight + self.status.stats.queued
        return self.status.max_in_flight + batch_size - busy - unsent

    def why_lost(self, passed: float) -> str | None:
        """Why it is lost; None if it is not.

        Args:
            passed: seconds since it was asked last, in which it could have said something.

        Raises:
            ImageQAError: the engine is lost.
        """
        is_waiting = self.status is None and bool(self.started.note)
        self.silent = 0.0 if is_waiting else self.silent + passed
        if (reason := self.started.ended) is not None:
            return reason
        if self.silent <= (SILENT_SECONDS if self.status else START_SECONDS):
            return None
        return f"it has said nothing for {self.silent:.0f} s"

    def read_status(self, channel: Channel) -> WorkerStatus | None:
        """What it says now; None if that is what it has said before."""
        with suppress(ObjectMissingError):
            status = WorkerStatus.from_plain(channel.read(self.folder.status))
            if self.status is None or self.status.beat != status.beat:
                return status
        return None

    def hear(self, status: WorkerStatus) -> ClientStats:
        """Take what it says; returns what it has counted since it said something."""
        before, self.status, self.silent = self.status, status, 0.0
        for number, given in self.batches.items():
            given.unknown = 0 if number in status.unsent else given.unknown + 1
            if (unsent := status.unsent.get(number)) is not None:
                given.batch.unsent = unsent
        is_same = before is not None and before.process == status.process
        known = before.stats if before and is_same else ClientStats()
        now = status.stats
        return ClientStats(
            **{name: getattr(now, name) - getattr(known, name) for name in _COUNTERS}
        )

    def results(self, names: set[str], channel: Channel) -> Iterator[tuple[int, BatchResult]]:
        """What has become of batches, of the objects in the output; nothing of them stays there."""
        for number in sorted(numbers(names, self.folder.result(0)[:-1])):
            with suppress(ObjectMissingError):  # somebody has removed it since
                result = BatchResult(**channel.read(self.folder.result(number)))
                self.clear(number, channel)
                yield number, result

    def take_back(self) -> Iterator[GivenBatch]:
        """Batches that it does not have, although it was given them; it has them no longer."""
        lost = [each for each in self.batches.values() if each.unknown >= MAX_UNKNOWN]
        for given in lost:
            yield self.batches.pop(given.number)

    def clear(self, number: int, channel: Channel) -> None:
        """Remove the messages about a batch."""
        channel.store.remove_all([self.folder.batch(number), self.folder.result(number)])

    def tell_to_end(self, channel: Channel) -> None:
        """If it is alive, it ends when it finds this."""
        channel.write(self.folder.end, "end")


def add_counts(stats: ClientStats, more: ClientStats) -> None:
    """Add what a worker has counted."""
    for name in _COUNTERS:
        setattr(stats, name, getattr(stats, name) + getattr(more, name))
