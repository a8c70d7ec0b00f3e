"""The requests that a run would send, without a server: what batch files are written of."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from logging import getLogger

from ..serving.client.batch_lines import request_line
from ..tasks.concurrency import STORE_THREADS, chunks, memory_of, prefetch
from ..tasks.generating.cache import read_completions
from ..tasks.generating.chat_requests import build_request
from ..tasks.images.reader import ImageReader
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.patience import Patience
from ..tasks.object_store.store import ObjectStore
from ..tasks.prompting.keys import KeyList
from ..tasks.prompting.open_style import OpenStyle
from ..tasks.prompting.prompts import prompt_rows
from ..tasks.records import Prompt, Row, RowError, is_transient
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import Pass, answers_pass, main_pass, run_style
from ..tasks.runs.run_record import last_completed
from ..tasks.storing.layout import PassFolder, read_manifest
from ..tasks.storing.ledger import Ledger, RowStatus
from ..tasks.storing.questions import question_rows
from .open_store import open_store
from .pass_settings import (
    generation_settings,
    image_reader,
    open_table,
    prompt_settings,
    request_spec,
)

_LOGGER = getLogger(__name__)


@dataclass
class RequestCounts:
    """What became of the rows of an export.

    Attributes:
        requests: rows whose request is exported.
        finished: rows that have an answer, in the dataset or the output, or failed for good.
        duplicates: rows that ask the same as an earlier one.
        problems: rows that cannot be asked, such as those with a broken image.
        suspects: rows that may crash the server, which would cost a whole file.
    """

    requests: int = 0
    finished: int = 0
    duplicates: int = 0
    problems: int = 0
    suspects: int = 0


@dataclass
class PendingRequests:
    """The rows of a run that are not finished, and their requests. Only reads the output.

    Attributes:
        parameters: those of the run; the model must be named.
        output: its output.
        reader: reads the images.
        style: what is asked about each row.
        table: the dataset.
        counts: what became of the rows so far.
    """

    parameters: RunParameters
    output: ObjectStore
    reader: ImageReader
    style: OpenStyle
    table: Dataset
    counts: RequestCounts = field(default_factory=RequestCounts)

    @property
    def model(self) -> str:
        """The name the model is served under."""
        return str(self.parameters.model)

    def lines(self) -> Iterator[bytes]:
        """The lines of batch files in the order of the rows, read lazily.

        If questions are answered separately, these are the questions as soon as every row has some.

        Raises:
            DatasetError: a file of the dataset is corrupted.
            StoreError: the output cannot be read, or the store of the images is lost.
        """
        main, keys = self._main(), KeyList()
        yield from self._lines(main, _recorded(self._prompts(main, self.table.rows()), keys))
        if self.parameters.asking.answer == "separately" and not self.counts.requests:
            yield from self._lines(answers_pass(main, self.style), self._questions(main, keys))

    def keys(self) -> Iterator[str]:
        """The row keys of all rows, finished or not, in the order of the rows."""
        main, keys = self._main(), KeyList()
        for piece in _recorded(self._prompts(main, self.table.rows()), keys):
            yield from (prompt.key for prompt in piece)
        if self.parameters.asking.answer == "separately":
            for piece in self._questions(main, keys):
                yield from (prompt.key for prompt in piece)

    def _main(self) -> Pass:
        columns = self.table.columns
        parameters = self.parameters.model_copy(update={"columns": columns})
        return main_pass(parameters, self.style, columns)

    def _prompts(self, definition: Pass, rows: Iterable[Row]) -> Iterator[list[Prompt]]:
        """The prompts of a pass, finished or not, in pieces that are each in memory at once."""
        spec = request_spec(self.parameters, definition, self.model, "")
        base = self.table.base
        settings = prompt_settings(self.parameters, definition, spec, base, self.reader)
        size = self.parameters.limits.batch_size
        for chunk in chunks(rows, size, lambda row: memory_of(row.record)):
            yield list(prompt_rows.fn(chunk, settings))

    def _questions(self, main: Pass, keys: KeyList) -> Iterator[list[Prompt]]:
        """The prompts that answer the questions of the rows with these keys."""
        outcomes = self._ledger(main).outcomes(keys)
        rows = question_rows(self.table.rows(), outcomes)
        return self._prompts(answers_pass(main, self.style), rows)

    def _lines(self, definition: Pass, prompts: Iterable[Sequence[Prompt]]) -> Iterator[bytes]:
        settings = generation_settings(self.parameters, definition, self.reader)

        def build(pending: tuple[Prompt, int]) -> bytes:
            prompt, attempt = pending
            return request_line(prompt.key, self.model, build_request(prompt, settings, attempt))

        pending = self._pending(definition, prompts)
        for _, line in prefetch(self.reader.executor, build, pending, STORE_THREADS):
            try:
                built = line.result()
            except (RowError, TypeError):  # the import quarantines the row, with the reason
                self.counts.problems += 1
                continue
            self.counts.requests += 1
            yield built

    def _pending(
        self, definition: Pass, prompts: Iterable[Sequence[Prompt]]
    ) -> Iterator[tuple[Prompt, int]]:
        """The prompts of rows that are not finished, with the number of their earlier attempts."""
        ledger, counts = self._ledger(definition), self.counts
        unparsed = self._unparsed(definition, ledger)
        for piece in prompts:
            keys = [prompt.key for prompt in piece]
            found = zip(piece, ledger.statuses(keys), ledger.attempts(keys), strict=True)
            for prompt, status, attempt in found:
                match status:
                    case RowStatus.PENDING if prompt.problem:
                        counts.problems += 1
                    case RowStatus.PENDING if not (prompt.given_answer or prompt.key in unparsed):
                        yield prompt, attempt
                    case RowStatus.DUPLICATE:
                        counts.duplicates += 1
                    case RowStatus.SUSPECT:
                        counts.suspects += 1
                    case _:
                        counts.finished += 1

    def _ledger(self, definition: Pass) -> Ledger:
        caching, folder = self.parameters.caching, PassFolder(definition.name)
        return Ledger.read(
            self.output,
            folder.parts(definition.parsing.label),
            retry_quarantined=caching.retry_quarantined,
            refresh=caching.refresh,
        )

    def _unparsed(self, definition: Pass, ledger: Ledger) -> set[str]:
        """Rows that have a reply that the next run parses, so that they need not be asked."""
        if self.parameters.caching.refresh:
            return set()
        completions = self.output.with_uri(
            f"{self.output.uri}/{PassFolder(definition.name).completions}"
        )
        found: set[str] = set()
        for name in set(completions.list()) - ledger.batches:
            stored = read_completions(completions, name, _LOGGER)
            replies = stored.replies if stored else ()
            found |= {reply.key for reply in replies if not is_transient(reply.reply)}
        return found


def _recorded(prompts: Iterable[list[Prompt]], keys: KeyList) -> Iterator[list[Prompt]]:
    for piece in prompts:
        for prompt in piece:
            keys.append(prompt.key)
        yield piece


@contextmanager
def open_pending(parameters: RunParameters) -> Iterator[PendingRequests]:
    """Open the output, the dataset and the image reader of a run, without a server.

    Raises:
        ImageQAError: one of them cannot be used; or there is no such style, or it does not go with
            the other parameters.
    """
    patience = Patience(parameters.limits.store_wait)
    with ExitStack() as stack:
        stack.callback(patience.stop)
        output = open_store(parameters.output, parameters.store).with_patience(patience)
        if read_manifest(output) is not None:  # fail early if it has another layout
            last_completed(output)
        reader = stack.enter_context(image_reader(parameters.images, output.s3_credentials))
        style = run_style(parameters, output.s3_credentials)
        table = open_table(parameters, style, output.s3_credentials)
        yield PendingRequests(parameters, output, reader, style, table)
