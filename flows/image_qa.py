"""The flow: load -> prompt -> what is pending -> per batch (generate -> parse -> store) -> export.

Read it from top to bottom: `image_qa` is what a user calls; the loop over batches is in `batches`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from ..serving.endpoint import VLLMEndpoint
from ..serving.errors import ImageQAError
from ..tasks.batch_cache import cached
from ..tasks.caching import RequestSpec
from ..tasks.compaction import compact
from ..tasks.exporting import export
from ..tasks.file_digests import FileDigests
from ..tasks.generating import GenerationSettings, generate_batch
from ..tasks.image_reader import ImageReader
from ..tasks.images import ImageSettings
from ..tasks.loading import Dataset, load_dataset
from ..tasks.object_store import ObjectStore
from ..tasks.parsing import ParseSettings
from ..tasks.prompting import DEFAULT_SYSTEM_PROMPT, DEFAULT_USER_PROMPT, PromptSettings
from ..tasks.records import Kind, Problem, Row
from ..tasks.steps import whole
from ..tasks.storing import write_keys
from .batches import BatchLoop, BatchSteps
from .breaker import Breaker
from .deployable import deployable_flow
from .endpoints import asked_model
from .places import find_places
from .plugins import find_parser, find_prompt_style
from .progress import current_progress
from .run_record import RunRecord, dataset_key
from .settings import DatasetLike, Sampling
from .summary import RunSummary, summarise

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
    store: str | ObjectStore | None = None,
    cache: str | None = None,
    refresh: bool = False,
    retry_quarantined: bool = False,
    max_error_rate: float = 0.5,
    allow_private_hosts: bool = False,
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
        store: name of a saved `ObjectStore` block whose credentials are used for every `s3://`
            URI; by default the AWS environment, profile or role says who we are.
        cache: local path or `s3://` URI for raw completions, to share them between outputs; by
            default they lie in the output.
        refresh: ask every row again, whatever is stored.
        retry_quarantined: ask also those quarantined rows again whose failure will not pass by
            itself; each time with another seed.
        max_error_rate: stop when more than this share of the last 256 rows asked has failed.
        allow_private_hosts: fetch web images also from private and loopback addresses.

    Raises:
        DatasetError: the dataset cannot be used.
        EndpointError: a server is unreachable, refuses the key or does not serve the model.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    image_key = image_key or None  # a form sends an empty text
    try:
        style_name, style = find_prompt_style(prompt_style)
        parsing = ParseSettings(*find_parser(parser), require_pairs)
        _check_arguments(output_key, batch_size, max_in_flight, limit, max_error_rate)
        places = find_places(output, cache, store)
        credentials = whole(places.credentials)
        source = load_dataset(whole(dataset), image_key, conversation_key, image_root, credentials)
        _check_dataset(source, output, output_key)
        version = source.version()
        ledger = places.ledger(parsing, retry_quarantined=retry_quarantined, refresh=refresh)
        reader = ImageReader(
            image_settings.max_file_bytes,
            credentials=places.credentials,
            allow_private_hosts=allow_private_hosts,
            digests=FileDigests(),
        )
        with reader, asked_model(endpoint, model, max_in_flight) as asked:
            spec = RequestSpec(
                model=asked.client.model,
                model_revision=model_revision or asked.revision,
                sampling=sampling.options(),
                images=image_settings.model_dump(mode="json"),
                prompt=style_name,
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
                reader,
            )
            generate = cached(generate_batch, places.completions)
            progress = current_progress()
            progress.begin(asked.client.stats, source.count, limit)
            key = dataset_key(dataset, limit)
            record = RunRecord(places.output, source.name, key, prompting, parsing, progress)
            steps = BatchSteps(
                generate,
                asked.client,
                GenerationSettings(image_settings, spec.sampling, reader, asked.revive),
                parsing,
                places.output,
            )
            loop = BatchLoop(
                steps,
                ledger,
                progress,
                Breaker(max_error_rate),
                batch_size,
                _batches_at_once(batch_size, max_in_flight),
                salt=record.run_id if refresh else "",
            )
            with record.kept():
                loop.beside = record.is_beside()
                rows = refuse_column(islice(source.rows(), limit), output_key)
                keys = loop.run(rows, prompting)
                counts = export(
                    places.output,
                    ledger,
                    source.rows(),
                    keys,
                    output_key,
                    image_key,
                    unchanged=lambda: source.version() == version,
                )
                compact(places.output, ledger, keys)
                write_keys(places.output, record.keys_name, keys)
                summary = summarise(counts, progress, places.output)
                record.complete(summary)
    except ImageQAError as error:
        # A state, not an exception: Prefect would log a traceback. The caller gets the exception.
        return cast("RunSummary", Failed(message=str(error), data=error))
    return cast("RunSummary", Completed(message=str(summary), data=summary))


def refuse_column(rows: Iterator[Row], output_key: str) -> Iterator[Row]:
    """Give rows that hold the output column already a problem: theirs would be overwritten."""
    for row in rows:
        if output_key in row.record:
            message = f"the row has a column {output_key!r} already: take another output_key"
            yield replace(row, problem=Problem(Kind.BAD_ROW, message))
        else:
            yield row


def _batches_at_once(batch_size: int, max_in_flight: int) -> int:
    """Enough batches to keep all slots busy while one of them is parsed and stored."""
    return min(-(-max_in_flight // batch_size) + 1, MAX_BATCHES)


def _check_dataset(source: Dataset, output: str, output_key: str) -> None:
    if output_key in source.columns:
        raise ImageQAError(f"{source.name} has a column {output_key!r}: take another output_key")
    if source.folder is None:
        return
    # An output among the data would be data to the next run.
    place = output if "://" in output else str(Path(output).expanduser().absolute())
    if f"{place.rstrip('/')}/".startswith(f"{source.folder.rstrip('/')}/"):
        raise ImageQAError(
            f"the output {output} lies in the dataset's folder {source.folder}: choose another"
        )


def _check_arguments(
    output_key: str,
    batch_size: int,
    max_in_flight: int,
    limit: int | None,
    max_error_rate: float,
) -> None:
    if not output_key:
        raise ImageQAError("output_key is empty: name the column that gets the replies")
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ImageQAError(f"batch_size is {batch_size}; it must be from 1 to {MAX_BATCH_SIZE}")
    if max_in_flight < 1:
        raise ImageQAError(f"max_in_flight is {max_in_flight}; it must be at least 1")
    if limit is not None and limit < 1:
        raise ImageQAError(f"limit is {limit}; it must be at least 1")
    if not 0 <= max_error_rate <= 1:
        raise ImageQAError(f"max_error_rate is {max_error_rate}; it must be from 0 to 1")
