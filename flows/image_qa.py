"""The flow: load -> prompt -> what is pending -> per batch (generate -> parse -> store) -> export.

Read it from top to bottom: `image_qa` is what a user calls; the loop over batches is in `batches`.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from ..serving.errors import ImageQAError
from ..tasks.batch_cache import cached
from ..tasks.caching import RequestSpec
from ..tasks.compaction import compact
from ..tasks.exporting import export
from ..tasks.file_digests import FileDigests
from ..tasks.generating import generate_batch
from ..tasks.image_reader import ImageReader
from ..tasks.loading import Dataset, load_dataset
from ..tasks.parsing import ParseSettings
from ..tasks.prompting import DEFAULT_SYSTEM_PROMPT, PromptSettings, default_user_prompt
from ..tasks.records import Kind, Problem, Row
from ..tasks.row_requests import GenerationSettings
from ..tasks.steps import whole
from ..tasks.storing import write_keys
from .batches import BatchLoop, BatchSteps
from .breaker import Breaker
from .deployable import deployable_flow
from .endpoints import asked_model
from .places import find_places
from .plugins import find_parser, find_prompt_style
from .presenting import present
from .progress import current_progress
from .run_artifacts import progress_shown
from .run_name import run_name
from .run_record import RowSource, RunRecord
from .settings import (
    Columns,
    DatasetLike,
    EndpointLike,
    Images,
    Limits,
    OptionalText,
    PairsPerImage,
    PromptStyleLike,
    Replies,
    Reuse,
    RowLimit,
    Sampling,
    StoreLike,
)
from .summary import RunSummary, summarise

MAX_BATCHES = 64
"""Batches in flight at most; each has up to three task runs waiting in the pool below."""


@deployable_flow(
    name="image-qa",
    flow_run_name=run_name,
    description="Question-answer pairs about the images of a table, from a running vLLM server.",
    task_runner=ThreadPoolTaskRunner(max_workers=3 * MAX_BATCHES),
    persist_result=False,  # it would be pickled
)
def image_qa(
    dataset: DatasetLike,
    output: str,
    endpoint: EndpointLike = None,
    prompt_style: PromptStyleLike = "chat",
    pairs_per_image: PairsPerImage = 1,
    limit: RowLimit | None = None,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    user_prompt: str = "",
    model: OptionalText = None,
    model_revision: str = "",
    store: StoreLike = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen, and shown as the form's default
    limits: Limits = Limits(),  # noqa: B008
    columns: Columns = Columns(),  # noqa: B008
    replies: Replies = Replies(),  # noqa: B008
    reuse: Reuse = Reuse(),  # noqa: B008
    images: Images = Images(),  # noqa: B008
) -> RunSummary:
    """Ask a vLLM server for question-answer pairs about every row's images.

    Rows that are answered already under `output` are not asked again: the same call means
    "finish what is missing". A row that cannot be answered is quarantined with the reason.

    Args:
        dataset: Table with images (JSON, JSON lines or CSV, also compressed; Parquet), or a folder
            or glob of images: a local path or s3://bucket/qas.json; from Python also a pandas
            DataFrame.
        output: Local path or s3://bucket/prefix under which the run keeps everything; the same
            output again means "finish what is missing".
        endpoint: Name of a saved VLLMEndpoint block, or the URL of a running vLLM server, or
            several with spaces between. Without it a server is started for the model named below.
        prompt_style: How a row becomes messages.
        pairs_per_image: QA pairs to ask for where neither the row nor the user prompt says what.
        limit: How many rows, for a first look.
        system_prompt: Said before every conversation.
        user_prompt: Asked where a row has no conversation; by default, for the number of pairs.
        model: Name the server serves the model under, where it serves several; without an
            endpoint, the path or hub name of the model to serve.
        model_revision: Tells versions of a model apart that are served under one name.
        store: Name of a saved ObjectStore block whose credentials are used for every s3:// URI;
            by default the AWS environment, profile or role says who we are.
        sampling: How the model samples.
        limits: How much is done at once, and when to stop.
        columns: Which columns of the dataset are read and written.
        replies: What is made of the model's replies.
        reuse: What is taken from earlier runs.
        images: Where images may come from, and how large they are sent.

    Raises:
        DatasetError: the dataset cannot be used.
        EndpointError: a server is unreachable, refuses the key or does not serve the model.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    try:
        style_name, style = find_prompt_style(prompt_style)
        parsing = ParseSettings(*find_parser(replies.parser), replies.require_pairs)
        places = find_places(output, reuse.cache, store)
        credentials = whole(places.credentials)
        source = load_dataset(
            whole(dataset), columns.image, columns.conversation, images.root or None, credentials
        )
        _check_dataset(source, output, columns.output)
        version = source.version()
        ledger = places.ledger(
            parsing, retry_quarantined=reuse.retry_quarantined, refresh=reuse.refresh
        )
        image_settings = images.settings
        reader = ImageReader(
            image_settings.max_file_bytes,
            credentials=places.credentials,
            allow_private_hosts=images.allow_private_hosts,
            digests=FileDigests(),
            root=images.root or None,
        )
        with reader, asked_model(endpoint or None, model or None, limits.max_in_flight) as asked:
            spec = RequestSpec(
                model=asked.client.model,
                model_revision=model_revision or asked.revision,
                sampling=sampling.options(),
                images=image_settings.model_dump(mode="json"),
                prompt=style_name,
            )
            prompting = PromptSettings(
                columns.image,
                columns.conversation,
                source.base,
                style,
                system_prompt,
                user_prompt.strip() or default_user_prompt(pairs_per_image),
                image_settings,
                spec,
                reader,
            )
            generate = cached(generate_batch, places.completions)
            progress = current_progress()
            progress.begin(asked.client.stats, source.count, limit)
            rows_from = RowSource(dataset, columns, images.root or None, limit)
            record = RunRecord(places.output, source.name, rows_from, prompting, parsing, progress)
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
                Breaker(limits.max_error_rate),
                limits.batch_size,
                _batches_at_once(limits.batch_size, limits.max_in_flight),
                salt=record.run_id if reuse.refresh else "",
            )
            with record.kept(), progress_shown(places.output, source, limit, progress):
                loop.beside = record.is_beside()
                rows = refuse_column(islice(source.rows(), limit), columns.output)
                keys = loop.run(rows, prompting)
                counts = export(
                    places.output,
                    ledger,
                    source.rows(),
                    keys,
                    columns.output,
                    columns.image,
                    unchanged=lambda: source.version() == version,
                )
                compact(places.output, ledger, keys)
                write_keys(places.output, record.keys_name, keys)
                summary = summarise(counts, progress, places.output)
                record.complete(summary)
            present(
                places.output,
                summary,
                source=source,
                model=spec.model,
                ledger=ledger,
                reader=reader,
                images=image_settings,
            )
    except ImageQAError as error:
        # A state, not an exception: Prefect would log a traceback. The caller gets the exception.
        return cast("RunSummary", Failed(message=str(error), data=error))
    return cast("RunSummary", Completed(message=str(summary), data=summary))


def refuse_column(rows: Iterator[Row], output_key: str) -> Iterator[Row]:
    """Give rows that hold the output column already a problem: theirs would be overwritten."""
    for row in rows:
        if output_key in row.record:
            message = f"the row has a column {output_key!r} already: take another output column"
            yield replace(row, problem=Problem(Kind.BAD_ROW, message))
        else:
            yield row


def _batches_at_once(batch_size: int, max_in_flight: int) -> int:
    """Enough batches to keep all slots busy while one of them is parsed and stored."""
    return min(-(-max_in_flight // batch_size) + 1, MAX_BATCHES)


def _check_dataset(source: Dataset, output: str, output_key: str) -> None:
    if output_key in source.columns:
        raise ImageQAError(f"{source.name} has a column {output_key!r}: take another output column")
    if source.folder is None:
        return
    # An output among the data would be data to the next run.
    place = output if "://" in output else str(Path(output).expanduser().absolute())
    if f"{place.rstrip('/')}/".startswith(f"{source.folder.rstrip('/')}/"):
        raise ImageQAError(
            f"the output {output} lies in the dataset's folder {source.folder}: choose another"
        )
