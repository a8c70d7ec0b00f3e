"""The loop of a run: what is pending -> batches -> generate, parse and store each of them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from ..serving.client import ChatClient
from ..serving.errors import EndpointError, ImageQAError, ServerError
from ..tasks.caching import KeyList, batch_key
from ..tasks.ledger import Ledger, RowStatus
from ..tasks.object_store import ObjectStore
from ..tasks.parsing import ParsedBatch, ParseSettings, parse_batch
from ..tasks.prompting import PromptSettings, prompt_rows
from ..tasks.records import Answered, Batch, Kind, Prompt, Quarantined, Row
from ..tasks.row_requests import GenerationSettings
from ..tasks.steps import result_of, whole
from ..tasks.storing import store_batch
from .breaker import Breaker
from .progress import RunProgress

PROMPTED_AHEAD = 2
"""Pieces of the dataset that are prompted while earlier ones are asked."""

STRETCH = 64
"""Batches that a run beside another one takes from their end."""

STRETCH_BYTES = 256 << 20
"""Of embedded images that such a run holds in memory."""


@dataclass(frozen=True)
class BatchSteps:
    """What the steps of every batch share.

    Attributes:
        generate: the task `generate_batch`, cached or not.
        client: asks the model.
        generation: how it is asked.
        parsing: how its replies are parsed.
        store: the output.
    """

    generate: Task[..., Any]
    client: ChatClient
    generation: GenerationSettings
    parsing: ParseSettings
    store: ObjectStore

    def submit(self, batch: Batch) -> "PendingBatch":
        """Start generate -> parse -> store for a batch; none of them waits here."""
        replies = self.generate.submit(whole(batch), whole(self.client), whole(self.generation))
        parsed = parse_batch.submit(whole(batch), result_of(replies), whole(self.parsing))
        stored = store_batch.submit(
            whole(batch), result_of(parsed), whole(self.store), self.parsing.label
        )
        return PendingBatch(batch, replies, parsed, stored)


@dataclass(frozen=True)
class PendingBatch:
    """A batch in flight, as the futures of its steps."""

    batch: Batch
    replies: PrefectFuture[Any]
    parsed: PrefectFuture[Any]
    stored: PrefectFuture[Any]

    def wait(self) -> tuple[ParsedBatch, list[str]]:
        """Wait until the batch is stored; returns its rows, and the names of the objects.

        Raises:
            ImageQAError: what the first step that failed says.
        """
        self.replies.result()
        parsed: ParsedBatch = self.parsed.result()
        names: list[str] = self.stored.result()
        return parsed, names


@dataclass
class BatchLoop:
    """Answers all rows that are not finished yet, some batches at a time.

    Attributes:
        steps: what is done with a batch.
        ledger: which rows are finished.
        progress: counts what is done.
        breaker: stops a run in which too much fails.
        batch_size: rows of a batch.
        at_once: batches in flight.
        salt: makes all batches new; empty means that stored completions are used.
        beside: an earlier run answers the same rows just now.
        suspects: rows that the server was lost with.
    """

    steps: BatchSteps
    ledger: Ledger
    progress: RunProgress
    breaker: Breaker
    batch_size: int
    at_once: int
    salt: str = ""
    beside: bool = False
    suspects: list[Prompt] = field(default_factory=list)

    def run(self, rows: Iterator[Row], prompting: PromptSettings) -> KeyList:
        """Answer all rows; returns the key of each, in dataset order.

        Rows that may kill the server come last, while nothing else is asked.
        """
        keys = KeyList()
        batches = self._batches(self._pending(rows, prompting, keys))
        self._answer(from_behind(batches, STRETCH) if self.beside else batches, self.at_once)
        if self.suspects:
            get_run_logger().warning(
                "the server was lost with %s rows: they are asked again, in halves",
                len(self.suspects),
            )
            suspects, self.suspects = self.suspects, []
            self._answer(self._batches(iter(suspects), alone=True), 1)
        return keys

    def _pending(
        self, rows: Iterator[Row], prompting: PromptSettings, keys: KeyList
    ) -> Iterator[Prompt]:
        """Prompt the dataset piece by piece; gives the rows that are not finished yet.

        A row that stands twice in the dataset is asked once.
        """
        for prompt in self._prompted(rows, prompting):
            keys.append(prompt.key)
            match self.ledger.status(prompt.key):
                case RowStatus.PENDING:
                    yield prompt
                case RowStatus.SUSPECT:
                    self.suspects.append(prompt)
                case RowStatus.ANSWERED:
                    self.progress.reused += 1
                case _:
                    self.progress.skipped += 1

    def _prompted(self, rows: Iterator[Row], prompting: PromptSettings) -> Iterator[Prompt]:
        """Prompt all rows, some pieces ahead of what is asked.

        Where the dataset cannot be read further, what came before is still given.
        """
        window: deque[PrefectFuture[list[Prompt]]] = deque()
        error: ImageQAError | None = None
        more = True
        while more or window:
            if more and len(window) <= PROMPTED_AHEAD:
                try:
                    piece = list(islice(rows, self.batch_size))
                except ImageQAError as failed:
                    error, piece = failed, []
                if more := bool(piece):
                    window.append(prompt_rows.submit(whole(piece), whole(prompting)))
            else:
                yield from window.popleft().result()
        if error is not None:
            raise error

    def _batches(self, prompts: Iterator[Prompt], alone: bool = False) -> Iterator[Batch]:
        while some := tuple(islice(prompts, self.batch_size)):
            yield self._batch(some, alone)

    def _batch(self, prompts: Sequence[Prompt], alone: bool = False) -> Batch:
        self.progress.batches += 1
        attempts = tuple(self.ledger.attempt(prompt.key) for prompt in prompts)
        key = batch_key([prompt.key for prompt in prompts], attempts, self.salt)
        return Batch(self.progress.batches, key, tuple(prompts), attempts, self.salt, alone)

    def _answer(self, batches: Iterator[Batch], at_once: int) -> None:
        """Answer batches, `at_once` at a time, and enter them in the ledger.

        When one fails no further one is started, but those in flight are finished and stored.
        When the run is stopped from outside, the replies that have come are stored.
        """
        window: deque[PendingBatch] = deque()
        error: ImageQAError | None = None
        while True:
            try:
                batch = next(batches, None) if error is None and len(window) < at_once else None
                if batch is not None:
                    self.progress.asked += len(batch.prompts)
                    self.progress.retried += sum(attempt > 0 for attempt in batch.attempts)
                    window.append(self.steps.submit(batch))
                elif window:
                    self._finish(window)
                else:
                    break
            except ImageQAError as failed:
                error = error or failed
            except BaseException:
                self._stop(window)
                raise
        if error is not None:
            raise error

    def _finish(self, window: deque[PendingBatch]) -> None:
        """Wait for the first batch, enter it in the ledger, and say what became of it.

        Raises:
            ImageQAError: the batch failed, or too many rows have.
        """
        batch = window[0].batch
        try:
            parsed, names = window[0].wait()
        except ImageQAError as error:
            window.popleft()
            if isinstance(error, EndpointError | ServerError):
                self._save_answered(batch)
            raise
        window.popleft()
        self._enter(batch, parsed, names)
        self.breaker.add(row for row in parsed.rows if not _is_set_aside(row, batch))

    def _stop(self, window: Iterable[PendingBatch]) -> None:
        """Ask nothing more, and store what has been answered: the next run goes on from there."""
        self.steps.client.stop()
        try:
            for pending in window:
                self._save_answered(pending.batch)
        except ImageQAError as error:  # why the run is stopped is more important
            get_run_logger().warning("some replies could not be stored: %s", error)

    def _save_answered(self, batch: Batch) -> None:
        """Store the rows of a batch that were answered before it failed or was stopped."""
        answered = [prompt for prompt in batch.prompts if prompt.key in batch.replies]
        if answered:
            saved = self._batch(answered, batch.alone)
            saved.replies.update(batch.replies)
            self._enter(saved, *self.steps.submit(saved).wait())

    def _enter(self, batch: Batch, parsed: ParsedBatch, names: Iterable[str]) -> None:
        self.ledger.add(list(names), parsed.rows, parsed.time)
        failed = [row for row in parsed.rows if isinstance(row, Quarantined)]
        answered = len(parsed.rows) - len(failed)
        crashed = {row.key for row in failed if _is_set_aside(row, batch)}
        self.suspects += [prompt for prompt in batch.prompts if prompt.key in crashed]
        self.progress.ok += answered
        self.progress.quarantined += len(failed) - len(crashed)
        told = f"{answered} answered, {len(failed) - len(crashed)} quarantined"
        if crashed:
            told += f", {len(crashed)} set aside"
        get_run_logger().info("batch %s: %s; %s", batch.number, told, self.progress)


def _is_set_aside(row: Answered | Quarantined, batch: Batch) -> bool:
    """Whether a row is only suspected, and asked again alone."""
    return isinstance(row, Quarantined) and row.kind is Kind.CRASH and not batch.alone


def from_behind(batches: Iterator[Batch], stretch: int) -> Iterator[Batch]:
    """Give the batches of each stretch from its end.

    A run that goes this way meets one that goes forward once a stretch, and finds stored what the
    other has asked; going the same way, both would ask every batch at the same moment. Stretches
    are shorter where the dataset embeds its images.
    """
    some: list[Batch] = []
    held = 0
    for batch in batches:
        some.append(batch)
        held += sum(len(ref.data or b"") for prompt in batch.prompts for ref in prompt.images)
        if len(some) == stretch or held > STRETCH_BYTES:
            yield from reversed(some)
            some, held = [], 0
    yield from reversed(some)
