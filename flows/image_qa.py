"""The flow: load -> prompt -> what is pending -> per batch (generate -> parse -> store) -> export.

Read it from top to bottom: `image_qa` is what a user calls, `answer_batches` the loop.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from prefect import get_run_logger
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from ..serving.client import ChatClient
from ..serving.endpoint import VLLMEndpoint
from ..serving.errors import ImageQAError
from ..tasks.caching import KeyList, RequestSpec, batch_key
from ..tasks.exporting import export
from ..tasks.generating import GenerationSettings, generate_batch
from ..tasks.images import ImageSettings
from ..tasks.loading import Dataset, load_dataset
from ..tasks.object_store import ObjectStore
from ..tasks.parsing import ParseSettings, parse_batch
from ..tasks.prompting import (
    DEFAULT_SYSTEM_PROMPT,
    DEFAULT_USER_PROMPT,
    PromptSettings,
    prompt_rows,
)
from ..tasks.records import Answered, Batch, Kind, Problem, Prompt, Quarantined, Row
from ..tasks.steps import result_of, whole
from ..tasks.storing import Ledger, RowStatus, store_batch, write_manifest
from .deployable import deployable_flow
from .endpoints import asked_model
from .plugins import find_parser, find_prompt_style
from .progress import RunProgress, current_progress
from .settings import DatasetLike, Sampling
from .summary import RunSummary, describe, run_id, summarise

MAX_BATCH_SIZE = 512
MAX_BATCHES = 64
"""Batches in flight at most; each has up to three task runs waiting in the pool below."""


@deployable_flow(
    name="image-qa",
    description="Question-answer pairs about the images of a table, from a running vLLM server.",
    task_runner=ThreadPoolTaskRunner(max_workers=3 * MAX_BATCHES),
    persist_result=False,  # it would be pickled
)
def image_qa(
    dataset: DatasetLike,
    output: str,
    endpoint: str | list[str] | VLLMEndpoint | None = None,
    model: str | None = None,
    model_revision: str = "",
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    user_prompt: str = DEFAULT_USER_PROMPT,
    prompt_style: str | Callable[..., Any] = "chat",
    parser: str | Callable[..., Any] = "qa_pairs",
    require_pairs: bool = True,
    image_key: str | None = "image",
    conversation_key: str = "conversation",
    output_key: str = "output",
    image_root: str | None = None,
    image_settings: ImageSettings = ImageSettings(),  # noqa: B008 - frozen, and shown as the form's default
    sampling: Sampling = Sampling(),  # noqa: B008
    batch_size: int = 256,
    max_in_flight: int = 128,
    limit: int | None = None,
) -> RunSummary:
    """Ask a vLLM server for question-answer pairs about every row's images.

    Rows that are answered already under `output` are not asked again: the same call means
    "finish what is missing". A row that cannot be answered is quarantined with the reason.

    Args:
        dataset: JSON array, JSON lines, CSV or Parquet (also compressed), a folder or glob of
            images; a local path or `s3://` URI; from Python also a pandas DataFrame.
        output: local path or `s3://` URI under which the run keeps everything.
        endpoint: URL of a running vLLM server, several URLs, or the name of a saved
            `VLLMEndpoint` block. Without it a server is started for `model`.
        model: name the server serves the model under; without an endpoint, the model's path or
            hub name.
        model_revision: tells versions of a model apart that are served under one name.
        system_prompt: said before every conversation.
        user_prompt: asked where a row has no conversation, or none that asks for a reply.
        prompt_style: builds the messages: a built-in name or `package.module:function`.
        parser: turns a completion into QA pairs: a built-in name or `package.module:function`.
        require_pairs: quarantine replies without a QA pair; else the raw text is the answer.
        image_key: image column; empty asks without images.
        conversation_key: conversation column, used where a row has one.
        output_key: column that gets the raw reply.
        image_root: folder that relative image paths start from, and may not leave.
        image_settings: limits on images, and how large they are sent.
        sampling: how the model samples.
        batch_size: rows that are generated, stored and retried together, 1 to 512.
        max_in_flight: requests sent and not yet answered, over all endpoints.
        limit: only the first rows of the dataset.

    Raises:
        DatasetError: the dataset cannot be used.
        EndpointError: a server is unreachable, refuses the key or does not serve the model.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    image_key = image_key or None  # a form sends an empty text
    try:
        style_name, style = find_prompt_style(prompt_style)
        parser_name, parse = find_parser(parser)
        _check_arguments(output_key, batch_size, max_in_flight, limit)
        source = load_dataset(whole(dataset), image_key, conversation_key, image_root)
        if output_key in source.columns:
            raise ImageQAError(
                f"{source.name} has a column {output_key!r}: take another output_key"
            )
        _check_outside(output, source)
        version = source.version()
        store = ObjectStore(output)
        ledger = Ledger.read(store)
        with asked_model(endpoint, model, max_in_flight) as (client, revision):
            started = time.perf_counter()
            spec = RequestSpec(
                model=client.model,
                model_revision=model_revision or revision,
                sampling=sampling.options(),
                images=image_settings.model_dump(mode="json"),
                prompt=style_name,
                parser=parser_name,
                require_pairs=require_pairs,
            )
            prompting = PromptSettings(
                image_key,
                conversation_key,
                source.base,
                style,
                system_prompt,
                user_prompt,
                image_settings,
                spec,
            )
            steps = BatchSteps(
                client,
                GenerationSettings(image_settings, spec.sampling),
                ParseSettings(parser_name, parse, require_pairs),
                store,
            )
            progress = current_progress()
            progress.begin(client.stats, source.count, limit)
            keys = KeyList()
            rows = refuse_column(islice(source.rows(), limit), output_key)
            batches = pending_batches(rows, prompting, ledger, keys, batch_size, progress)
            at_once = _batches_at_once(batch_size, max_in_flight)
            answer_batches(batches, steps, ledger, at_once, progress)
            counts = export(
                store,
                ledger,
                source.rows(),
                keys,
                output_key,
                image_key,
                unchanged=lambda: source.version() == version,
            )
            summary = summarise(counts, progress, output, time.perf_counter() - started)
        write_manifest(store, run_id(), describe(summary, source.name, prompting))
    except ImageQAError as error:
        # A state, not an exception: Prefect would log a traceback. The caller gets the exception.
        return cast("RunSummary", Failed(message=str(error), data=error))
    return cast("RunSummary", Completed(message=str(summary), data=summary))


@dataclass(frozen=True)
class BatchSteps:
    """What the steps of every batch share."""

    client: ChatClient
    generation: GenerationSettings
    parsing: ParseSettings
    store: ObjectStore

    def submit(self, batch: Batch) -> "PendingBatch":
        """Start generate -> parse -> store for a batch; none of them waits here."""
        replies = generate_batch.submit(whole(batch), whole(self.client), whole(self.generation))
        parsed = parse_batch.submit(whole(batch), result_of(replies), whole(self.parsing))
        stored = store_batch.submit(
            whole(batch), result_of(parsed), whole(self.store), whole(self.parsing)
        )
        return PendingBatch(batch, replies, parsed, stored)


@dataclass(frozen=True)
class PendingBatch:
    """A batch in flight, as the futures of its steps."""

    batch: Batch
    replies: PrefectFuture[Any]
    parsed: PrefectFuture[Any]
    stored: PrefectFuture[Any]

    def wait(self) -> list[Answered | Quarantined]:
        """Wait until the batch is stored; returns its rows.

        Raises:
            ImageQAError: what the first step that failed says.
        """
        self.replies.result()
        self.parsed.result()
        rows: list[Answered | Quarantined] = self.stored.result()
        return rows


def refuse_column(rows: Iterator[Row], output_key: str) -> Iterator[Row]:
    """Give rows that hold the output column already a problem: theirs would be overwritten."""
    for row in rows:
        if output_key in row.record:
            message = f"the row has a column {output_key!r} already: take another output_key"
            yield replace(row, problem=Problem(Kind.BAD_ROW, message))
        else:
            yield row


def pending_batches(
    rows: Iterator[Row],
    prompting: PromptSettings,
    ledger: Ledger,
    keys: KeyList,
    batch_size: int,
    progress: RunProgress,
) -> Iterator[Batch]:
    """Prompt the dataset piece by piece and collect the rows that are not finished yet.

    Every row's key is appended to `keys`; a row that stands twice in the dataset is asked once.
    """
    waiting: list[Prompt] = []
    number = 0
    while piece := list(islice(rows, batch_size)):
        for prompt in prompt_rows(whole(piece), whole(prompting)):
            keys.append(prompt.key)
            match ledger.status(prompt.key):
                case RowStatus.PENDING:
                    waiting.append(prompt)
                case RowStatus.ANSWERED:
                    progress.reused += 1
                case _:
                    progress.skipped += 1
            if len(waiting) == batch_size:
                number += 1
                yield _batch(number, waiting, ledger)
                waiting = []
    if waiting:
        yield _batch(number + 1, waiting, ledger)


def answer_batches(
    batches: Iterator[Batch],
    steps: BatchSteps,
    ledger: Ledger,
    at_once: int,
    progress: RunProgress,
) -> None:
    """Answer all batches, `at_once` at a time, and enter them in the ledger.

    When a batch fails no further one is started, but those in flight are finished and stored.
    """
    window: deque[PendingBatch] = deque()
    error: ImageQAError | None = None
    while True:
        try:
            batch = next(batches, None) if error is None and len(window) < at_once else None
            if batch is not None:
                window.append(steps.submit(batch))
            elif window:
                finish_batch(window.popleft(), ledger, progress)
            else:
                break
        except ImageQAError as failed:
            error = error or failed
    if error is not None:
        raise error


def finish_batch(pending: PendingBatch, ledger: Ledger, progress: RunProgress) -> None:
    """Wait for a batch, enter it in the ledger, and say what became of it."""
    rows = pending.wait()
    ledger.add(pending.batch.key, rows)
    quarantined = sum(isinstance(row, Quarantined) for row in rows)
    progress.ok += len(rows) - quarantined
    progress.quarantined += quarantined
    get_run_logger().info(
        "batch %s: %s answered, %s quarantined; %s",
        pending.batch.number,
        len(rows) - quarantined,
        quarantined,
        progress,
    )


def _batch(number: int, prompts: Sequence[Prompt], ledger: Ledger) -> Batch:
    keys = [prompt.key for prompt in prompts]
    return Batch(number, batch_key(keys, map(ledger.attempts, keys)), tuple(prompts))


def _batches_at_once(batch_size: int, max_in_flight: int) -> int:
    """Enough batches to keep all slots busy while one of them is parsed and stored."""
    return min(-(-max_in_flight // batch_size) + 1, MAX_BATCHES)


def _check_outside(output: str, source: Dataset) -> None:
    """An output among the data would be data to the next run."""
    if source.folder is None:
        return
    place = output if "://" in output else str(Path(output).expanduser().absolute())
    if f"{place.rstrip('/')}/".startswith(f"{source.folder.rstrip('/')}/"):
        raise ImageQAError(
            f"the output {output} lies in the dataset's folder {source.folder}: choose another"
        )


def _check_arguments(
    output_key: str, batch_size: int, max_in_flight: int, limit: int | None
) -> None:
    if not output_key:
        raise ImageQAError("output_key is empty: name the column that gets the replies")
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ImageQAError(f"batch_size is {batch_size}; it must be from 1 to {MAX_BATCH_SIZE}")
    if max_in_flight < 1:
        raise ImageQAError(f"max_in_flight is {max_in_flight}; it must be at least 1")
    if limit is not None and limit < 1:
        raise ImageQAError(f"limit is {limit}; it must be at least 1")
