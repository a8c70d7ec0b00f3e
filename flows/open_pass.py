"""A pass in progress: which rows are pending, their batches, and what has become of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from prefect import get_run_logger
from prefect.tasks import Task

from ..tasks.errors import StoreError
from ..tasks.generating.requests import GenerationSettings
from ..tasks.parsing.parse import ParseSettings
from ..tasks.prompting.keys import KeyList, batch_key
from ..tasks.prompting.prompts import PromptSettings
from ..tasks.records import Batch, FinishedRow, Kind, Prompt, Quarantined
from ..tasks.runs.records import RunCounts
from ..tasks.storing.ledger import Ledger, RowStatus
from ..tasks.storing.store import StoredBatch
from .progress import RunProgress


@dataclass
class OpenPass:
    """What the steps of a pass are given, and what is known of its rows.

    Attributes:
        generate: the task `generate_batch`, with its cache.
        prompting: how rows become prompts.
        generation: how they are sent.
        parsing: how replies are parsed.
        ledger: which rows are finished.
        progress: counts what is done.
        batch_size: rows of a batch.
        cache_buster: makes all batches new; empty means that stored completions are used.
        keys: of the rows so far, in the order of the table.
        suspects: rows that the server was lost with.
    """

    generate: Task[..., Any]
    prompting: PromptSettings
    generation: GenerationSettings
    parsing: ParseSettings
    ledger: Ledger
    progress: RunProgress
    batch_size: int
    cache_buster: str = ""
    keys: KeyList = field(default_factory=KeyList)
    suspects: list[Prompt] = field(default_factory=list)

    @property
    def parts(self) -> str:
        """Folder of the stored batches."""
        return self.ledger.folder

    def batches(self, prompts: Iterable[Prompt]) -> Iterator[Batch]:
        """Batches of the rows that are not finished yet, in the order of the table."""
        return self._batches(self._pending(prompts))

    def suspect_batches(self) -> Iterator[Batch]:
        """Batches of the rows that may kill the server; nothing else must be asked meanwhile."""
        if self.suspects:
            get_run_logger().warning(
                "the server was lost with %s rows: they are asked again, in halves",
                len(self.suspects),
            )
        suspects, self.suspects = self.suspects, []
        return self._batches(iter(suspects), isolated=True)

    def answered_part(self, batch: Batch) -> Batch | None:
        """The rows of a batch that were answered before it failed or was stopped, as a batch."""
        answered = [prompt for prompt in batch.prompts if prompt.key in batch.replies]
        if not answered:
            return None
        saved = self._batch(answered, batch.isolated)
        saved.replies.update(batch.replies)
        return saved

    def enter(self, batch: Batch, stored: StoredBatch) -> list[FinishedRow]:
        """Enter a finished batch in the ledger; returns its rows, less those that are set aside.

        Rows that the server was lost with are only suspected, and asked again alone.
        """
        rows = stored.parsed.rows
        self.ledger.add(stored.part, rows, stored.parsed.time)
        crashed = {row.key for row in rows if _is_crash(row)} if not batch.isolated else set()
        self.suspects += [prompt for prompt in batch.prompts if prompt.key in crashed]
        finished = [row for row in rows if row.key not in crashed]
        failed = sum(isinstance(row, Quarantined) for row in finished)
        self.progress.ok += len(finished) - failed
        self.progress.quarantined += failed
        told = f"{len(finished) - failed} answered, {failed} quarantined"
        if crashed:
            told += f", {len(crashed)} set aside"
        get_run_logger().info("batch %s: %s; %s", batch.number, told, self.progress)
        return finished

    def counts(self) -> RunCounts:
        """What has become of the rows of the table so far, as it is stored, and what it took.

        Raises:
            StoreError: some are neither answered nor quarantined.
        """
        stored = self.ledger.counts(self.keys)
        if stored.missing:
            raise StoreError(
                f"{stored.missing} of {len(self.keys)} rows are neither answered nor quarantined: "
                "run it again"
            )
        found = {
            "rows": len(self.keys),
            "ok": stored.answered,
            "quarantined": stored.quarantined,
            "reasons": {kind.value: count for kind, count in stored.reasons.items()},
        }
        return RunCounts(**{**self.progress.counts().model_dump(), **found})

    def _pending(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """The rows that are not finished yet; one that stands twice in the table is asked once."""
        for prompt in prompts:
            self.keys.append(prompt.key)
            match status := self.ledger.status(prompt.key):
                case RowStatus.PENDING:
                    yield prompt
                case RowStatus.SUSPECT:
                    self.suspects.append(prompt)
                case _:
                    self.progress.add_known(status)

    def _batches(self, prompts: Iterator[Prompt], isolated: bool = False) -> Iterator[Batch]:
        while some := tuple(islice(prompts, self.batch_size)):
            batch = self._batch(some, isolated)
            self.progress.asked += len(some)
            self.progress.retried += sum(attempt > 0 for attempt in batch.attempts)
            yield batch

    def _batch(self, prompts: Sequence[Prompt], isolated: bool) -> Batch:
        self.progress.batches += 1
        attempts = tuple(self.ledger.attempt(prompt.key) for prompt in prompts)
        key = batch_key([prompt.key for prompt in prompts], attempts, self.cache_buster)
        return Batch(
            self.progress.batches, key, tuple(prompts), attempts, self.cache_buster, isolated
        )


def _is_crash(row: FinishedRow) -> bool:
    return isinstance(row, Quarantined) and row.kind is Kind.CRASH
