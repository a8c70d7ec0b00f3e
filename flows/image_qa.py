"""The flow: load -> prompt -> generate -> parse -> store -> export. Read it from top to bottom.

What a run holds open is in `run`, the loop that keeps the servers busy in `batches`. `quote` and
`opaque` hand a task its input as it is, unsearched for futures.
"""

from collections.abc import Iterator
from typing import Any

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from ..tasks.concurrency import chunks, opaque, prefetch_results, quote
from ..tasks.exporting.export import export_rows
from ..tasks.loading.columns import Columns
from ..tasks.loading.dataset import load_dataset
from ..tasks.parsing.parse import parse_batch
from ..tasks.prompting.prompts import DEFAULT_SYSTEM_PROMPT, prompt_rows
from ..tasks.records import Batch, Row
from ..tasks.runs.parameters import (
    Caching,
    DatasetLike,
    EndpointLike,
    Exports,
    Images,
    Limits,
    MaxRows,
    OptionalText,
    PairsPerImage,
    Parsing,
    PromptStyleLike,
    RunParameters,
    Sampling,
    StoreLike,
)
from ..tasks.runs.passes import pairs_pass
from ..tasks.storing.store import StoredBatch, store_batch
from .batches import MAX_BATCHES, PREFETCHED_PROMPTS, run_batches
from .open_pass import OpenPass
from .prefect_flow import deployable_flow, run_name
from .publish.publish import as_asset, publish
from .run import Run, open_run
from .summary import RunSummary


@deployable_flow(
    name="image-qa",
    flow_run_name=run_name,
    description="Question-answer pairs about the images of a table, from a running vLLM server.",
    # Generating, parsing and storing a batch may hold a thread each.
    task_runner=ThreadPoolTaskRunner(max_workers=3 * MAX_BATCHES + PREFETCHED_PROMPTS + 1),
    persist_result=False,  # it would be pickled
)
def image_qa(
    dataset: DatasetLike,
    output: str,
    endpoint: EndpointLike = None,
    prompt_style: PromptStyleLike = "chat",
    pairs_per_image: PairsPerImage = 1,
    max_rows: MaxRows | None = None,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    user_prompt: str = "",
    model: OptionalText = None,
    model_revision: str = "",
    store: StoreLike = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen, and shown as the form's default
    limits: Limits = Limits(),  # noqa: B008
    columns: Columns = Columns(),  # noqa: B008
    parsing: Parsing = Parsing(),  # noqa: B008
    caching: Caching = Caching(),  # noqa: B008
    images: Images = Images(),  # noqa: B008
    exports: Exports = Exports(),  # noqa: B008
) -> RunSummary:
    """Ask a vLLM server for question-answer pairs about every row's images.

    The same call can be repeated at any time, and means "finish what is missing": rows that are
    answered under `output` are not asked again. A row that cannot be answered is quarantined with
    the reason.

    Args:
        dataset: Table with images (JSON, JSON lines or CSV, also compressed; Parquet), or a folder
            or glob of images: a local path or s3://bucket/qas.json; from Python also a pandas
            DataFrame.
        output: Local path or s3://bucket/prefix under which the run keeps everything.
        endpoint: URL of a running vLLM server, or several with spaces between, or the name of a
            saved vLLM Endpoint block. Without it a server is started for the model named below.
        prompt_style: How a row becomes messages.
        pairs_per_image: QA pairs to ask for where neither the row nor the user prompt says what.
        max_rows: Only so many of the first rows, for a first look.
        system_prompt: Said before every conversation.
        user_prompt: Asked where a row has no conversation; by default, for the number of pairs.
        model: Name the server serves the model under, where it serves several; without an
            endpoint, the path or hub name of the model to serve.
        model_revision: Tells versions of a model apart that are served under one name.
        store: Name of a saved Image QA Store block whose credentials, and nothing else of it, are
            used for every s3:// URI; by default the AWS environment, profile or role.
        sampling: How the model samples.
        limits: How much is done at once, and when to stop.
        columns: Which columns of the dataset are read and written.
        parsing: How the model's replies are parsed.
        caching: What is taken from earlier runs.
        images: Where images may come from, and how large they are sent.
        exports: Which files are written besides.

    Raises:
        DatasetError: the dataset cannot be used.
        EndpointError: a server is unreachable, refuses the key or does not serve the model.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    parameters = RunParameters(**locals())
    pairs = pairs_pass(parameters)
    with open_run(parameters) as run:
        table = load_dataset(
            quote(dataset), columns, output, images.root, max_rows, run.credentials
        )
        main = run.start(table, pairs)  # its server is there, and what is stored is known
        answer_rows(run, main, table.rows())
        export = as_asset(export_rows, run.output, table)
        counts = export(
            run.output,
            quote(main.ledger),
            quote(table.rows()),  # once more, to be joined with the answers
            quote(main.keys),
            columns,
            unchanged=run.is_unchanged,
            json_array=exports.json_array,
        )
        summary = run.complete(main, counts)
        publish(summary, run.output, table, main, model=run.model)
    return summary


def answer_rows(run: Run, current: OpenPass, rows: Iterator[Row]) -> None:
    """One pass: rows -> prompts -> batches of the pending ones -> replies -> parsed -> stored."""

    def generate(batch: Batch) -> PrefectFuture[Any]:
        return current.generate.submit(quote(batch), quote(run.client), quote(current.generation))

    def store(batch: Batch, replies: PrefectFuture[Any]) -> PrefectFuture[StoredBatch]:
        parsed = parse_batch.submit(quote(batch), opaque(replies), quote(current.parsing))
        return store_batch.submit(quote(batch), opaque(parsed), quote(run.output), current.parts)

    pieces = chunks(rows, current.batch_size)
    prompting = (prompt_rows.submit(quote(piece), quote(current.prompting)) for piece in pieces)
    batches = current.batches(prefetch_results(prompting, PREFETCHED_PROMPTS))
    run_batches(batches, generate, store, current, run)
    # Rows that may kill the server come last, while nothing else is asked.
    run_batches(current.suspect_batches(), generate, store, current, run, at_once=1)
