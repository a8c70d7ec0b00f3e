"""A pass in progress: which rows are pending, their batches, and their results so far."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from prefect import get_run_logger

from ..tasks.concurrency import chunks, memory_of
from ..tasks.errors import StoreError
from ..tasks.generating.batching import make_batch
from ..tasks.generating.chat_requests import GUIDES, GenerationSettings
from ..tasks.generating.generate import answered_part
from ..tasks.generating.probe import takes_guide
from ..tasks.object_store.store import ObjectStore
from ..tasks.parsing.parse import ParseSettings
from ..tasks.prompting.keys import KeyList
from ..tasks.prompting.prompts import PromptSettings
from ..tasks.records import Batch, FinishedRow, Kind, Prompt, Quarantined
from ..tasks.runs.run_counts import RunCounts
from ..tasks.storing.ledger import Ledger, RowStatus
from ..tasks.storing.store import StoredBatch
from .open_model import RunModel
from .progress import RunProgress

FIRST_ROWS = 128
"""Rows of the first batch at most; each further one has twice as many, up to the batch size. So the
servers start at once, and the batches of a short run are spread over the cores."""


@dataclass
class OpenPass:
    """The settings of each step of a pass, and the state of its rows.

    Attributes:
        keys_name: name of the object for the row keys.
        completions: store of the completions.
        prompt_settings: how rows are turned into prompts.
        generation_settings: how prompts are sent.
        parse_settings: how replies are parsed.
        ledger: which rows are finished.
        progress: counts of the pass.
        batch_size: rows per batch at most; the first ones have fewer, see `FIRST_ROWS`.
        cache_buster: goes into all batch keys; if empty, stored completions are reused.
        row_keys: keys of the rows read so far, in the order of the table.
        suspects: rows that may have crashed the server.
        is_optional: whether the run goes on without the rest of the rows if the servers are lost.
        is_partial: whether it does.
        model: what is connected to before the first batch, and asked whether it takes guides; None
            if that is done.
    """

    keys_name: str
    completions: ObjectStore
    prompt_settings: PromptSettings
    generation_settings: GenerationSettings
    parse_settings: ParseSettings
    ledger: Ledger
    progress: RunProgress
    batch_size: int
    cache_buster: str = ""
    row_keys: KeyList = field(default_factory=KeyList)
    suspects: list[Prompt] = field(default_factory=list)
    is_optional: bool = False
    is_partial: bool = False
    model: RunModel | None = None
    _unread: Iterator[Prompt] = field(default_factory=lambda: iter(()))

    @property
    def parts_folder(self) -> str:
        """Folder of the stored batches."""
        return self.ledger.folder

    def batches(self, prompts: Iterable[Iterable[Prompt]], first: int = 0) -> Iterator[Batch]:
        """Batches of the rows that are not finished yet, in the order of the table.

        Args:
            prompts: the rows, in pieces that are each in memory at once.
            first: no batch has both rows before and after this many.
        """
        pending = self._unread = self._pending(prompts)
        yield from self._batches(islice(pending, first))
        yield from self._batches(pending)

    def leave_rest(self) -> int:
        """Ask about no more rows in this run, but read them; returns how many have no outcome.

        Those that an earlier run has asked about keep theirs.
        """
        self.is_partial = True
        deque(self._unread, maxlen=0)
        return self.ledger.counts(self.row_keys).missing

    def suspect_batches(self) -> Iterator[Batch]:
        """Batches of the rows that may crash the server: run one at a time, after all others."""
        if self.suspects:
            get_run_logger().warning(
                "the server was lost while working on %s rows: retrying these by bisection",
                len(self.suspects),
            )
        suspects, self.suspects = self.suspects, []
        return self._batches(iter(suspects), isolated=True)

    def answered_part(self, batch: Batch) -> Batch | None:
        """A batch of only those rows that have their final reply; None where no row has one."""
        return answered_part(batch, self.generation_settings)

    def record(self, batch: Batch, stored: StoredBatch) -> list[FinishedRow]:
        """Enter a stored batch in the ledger; returns its rows without those that are deferred.

        Deferred are rows that the server was lost with: one of them may have crashed it, so they
        are sent again in isolation.
        """
        rows = stored.rows
        self.ledger.add(stored.part, rows, stored.time)
        crashed = {row.key for row in rows if _is_crash(row)} if not batch.isolated else set()
        self.suspects += [prompt for prompt in batch.prompts if prompt.key in crashed]
        finished = [row for row in rows if row.key not in crashed]
        failed = sum(isinstance(row, Quarantined) for row in finished)
        self.progress.ok += len(finished) - failed
        self.progress.quarantined += failed
        self.progress.corrections += batch.corrections
        self.progress.corrected += len(batch.corrected)
        outcome = f"{len(finished) - failed} answered, {failed} quarantined"
        if crashed:
            outcome += f", {len(crashed)} deferred"
        if batch.corrections:
            outcome += f", {len(batch.corrected)} of {batch.corrections} corrected"
        if _is_logged(batch.number):
            get_run_logger().info("batch %s: %s; %s", batch, outcome, self.progress)
        return finished

    def outcomes(self) -> Iterator[FinishedRow | None]:
        """The stored outcome of each row read so far, in order."""
        return self.ledger.outcomes(self.row_keys)

    @property
    def stored_keys(self) -> Sequence[str]:
        """The keys of the rows that have an outcome: of all, unless the pass is partial."""
        if not self.is_partial:
            return self.row_keys
        index = self.ledger.rows.index
        return [key for key in self.row_keys if bytes.fromhex(key) in index]

    def counts(self) -> RunCounts:
        """Stored results of the rows read so far, and the requests and time they took.

        Raises:
            StoreError: some rows are neither answered nor quarantined; not of a partial pass.
        """
        stored = self.ledger.counts(self.row_keys)
        if stored.missing and not self.is_partial:
            raise StoreError(
                f"{stored.missing} of {len(self.row_keys)} rows are neither answered nor "
                "quarantined: run again to finish them"
            )
        results = {
            "rows": len(self.row_keys) - stored.missing,
            "ok": stored.answered,
            "quarantined": stored.quarantined,
            "reasons": {kind.value: count for kind, count in stored.reasons.items()},
        }
        return RunCounts(**{**self.progress.counts().model_dump(), **results})

    def _pending(self, prompts: Iterable[Iterable[Prompt]]) -> Iterator[Prompt]:
        """The rows that are not finished yet; a duplicate of a row is skipped."""
        for piece in map(list, prompts):
            statuses = self.ledger.statuses([prompt.key for prompt in piece])
            for prompt, status in zip(piece, statuses, strict=True):
                self.row_keys.append(prompt.key)
                match status:
                    case RowStatus.PENDING:
                        yield prompt
                    case RowStatus.SUSPECT:
                        self.suspects.append(prompt)
                    case _:
                        self.progress.add_skipped(status)

    def _batches(self, prompts: Iterator[Prompt], isolated: bool = False) -> Iterator[Batch]:
        first, most = min(FIRST_ROWS, self.batch_size), self.batch_size
        for some in chunks(prompts, first, _memory_of_prompt, grows_to=most):
            if self.model is not None:
                self._prepare(self.model, some[0])
            batch = self._batch(some, isolated)
            self.progress.attempted += len(some)
            self.progress.retried += sum(attempt > 0 for attempt in batch.attempts)
            yield batch

    def _prepare(self, model: RunModel, row: Prompt) -> None:
        model.connect()
        guide = {name: row.options[name] for name in GUIDES & row.options.keys()}
        if guide and not takes_guide(model.client, guide):
            self.generation_settings = replace(self.generation_settings, guided=False)
        self.progress.before = replace(model.client.stats)  # without the requests of `takes_guide`
        self.model = None

    def _batch(self, prompts: Sequence[Prompt], isolated: bool) -> Batch:
        self.progress.batches += 1
        return make_batch(
            self.progress.batches,
            prompts,
            self.ledger.attempts([prompt.key for prompt in prompts]),
            cache_buster=self.cache_buster,
            isolated=isolated,
            label=self.prompt_settings.label,
        )


def _is_logged(batch: int) -> bool:
    """Whether a batch has a line in the log: the first 999 have, then each tenth, and so on.

    So ten times as many rows have 900 lines more.
    """
    return batch % int(10 ** max(0, len(str(batch)) - 3)) == 0


def _memory_of_prompt(prompt: Prompt) -> int:
    return memory_of((prompt.messages, [image.data for image in prompt.images]))


def _is_crash(row: FinishedRow) -> bool:
    return isinstance(row, Quarantined) and row.kind is Kind.CRASH
