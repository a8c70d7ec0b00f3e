"""The flow `image_qa`: takes each row from the dataset to the exports.

1. `load_dataset` opens the table; `prompt_rows` renders each row as a prompt, with a row key.
2. `OpenPass.batches` skips rows that are finished according to the ledger, and batches the others.
3. `run_batches` keeps the servers busy: generate_batch -> parse_batch -> store_batch -> ledger.
4. `export_rows` reads the table again and joins it with the stored rows.

A row that fails at any step is quarantined: stored and exported with the reason. Retries are up to
- the client (`should_retry`), for a single request whose failure may be transient;
- `generate_batch`, a Prefect task with retries, for a batch whose server is lost: it sends only the
  rows without a reply, and isolates rows that crash the server;
- the next run, for a quarantined row: `Ledger.status` makes transient failures pending again.
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
from .batches import MAX_BATCHES, PREFETCHED_CHUNKS, run_batches
from .open_pass import OpenPass
from .prefect_flow import deployable_flow, run_name
from .publish.publish import as_asset, publish
from .run import Run, open_run
from .summary import RunSummary


@deployable_flow(
    name="image-qa",
    flow_run_name=run_name,
    description="Question-answer pairs about the images of a table, from a running vLLM server.",
    # Each batch in flight may hold three threads: it is generated, parsed and stored.
    task_runner=ThreadPoolTaskRunner(max_workers=3 * MAX_BATCHES + PREFETCHED_CHUNKS + 1),
    persist_result=False,  # the summary would be pickled
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
    """Ask a vLLM server for question-answer pairs about the images of every row.

    Call it again with the same arguments at any time to finish what is missing: rows that already
    have an answer under `output` are not sent again. A row that cannot be answered is quarantined
    with the reason.

    Args:
        dataset: Table with images (JSON, JSON Lines or CSV, optionally compressed; Parquet), or a
            folder or glob of images: a local path or s3://bucket/qas.json; in Python also a pandas
            DataFrame.
        output: Local path or s3://bucket/prefix where the run stores everything.
        endpoint: URL of a running vLLM server, several URLs separated by spaces, or the name of a
            saved vLLM Endpoint block. Without it, a server is started for the model given below.
        prompt_style: How a row is turned into messages.
        pairs_per_image: QA pairs to ask for if neither the row nor the user prompt says how many.
        max_rows: Process only the first rows, for a quick preview.
        system_prompt: System message of every conversation.
        user_prompt: User message of rows without a conversation; asks for the pairs by default.
        model: Name the model is served under, if the server has several; without an endpoint, the
            path or Hub name of the model to serve.
        model_revision: Distinguishes versions of a model that are served under the same name.
        store: Name of a saved Image QA Store block whose credentials (nothing else of it) are used
            for every s3:// URI; by default the AWS environment, profile or role.
        sampling: How the model samples.
        limits: How much runs concurrently, and when to stop.
        columns: Which columns of the dataset are read and written.
        parsing: How the model's replies are parsed.
        caching: What is reused from earlier runs.
        images: Where images may come from, and the size they are sent at.
        exports: Which additional files are written.

    Raises:
        DatasetError: the dataset cannot be used.
        EndpointError: a server is unreachable, rejects the key or does not serve the model.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    parameters = RunParameters(**locals())
    definition = pairs_pass(parameters)
    with open_run(parameters) as run:
        table = load_dataset(
            quote(dataset), columns, output, images.root, max_rows, run.credentials
        )
        # Wait for the output, check or start the server, and read which rows are finished.
        pairs = run.start(table, definition)
        answer_rows(run, pairs, table.rows())
        export = as_asset(export_rows, run.output, table)
        counts = export(
            run.output,
            quote(pairs.ledger),
            quote(table.rows()),  # read again: rows are never all in memory
            quote(pairs.keys),
            columns,
            unchanged=run.dataset_unchanged,
            json_array=exports.json_array,
        )
        summary = run.complete(pairs, counts)
        publish(summary, run.output, table, pairs, model=run.model)
    return summary


def answer_rows(run: Run, current: OpenPass, rows: Iterator[Row]) -> None:
    """One pass over rows: prompt them, batch the pending ones, generate, parse and store."""
    # `quote` and `opaque` keep Prefect from searching a task's rows and images for futures.

    def generate(batch: Batch) -> PrefectFuture[Any]:
        return current.generate.submit(quote(batch), quote(run.client), quote(current.generation))

    def store(batch: Batch, replies: PrefectFuture[Any]) -> PrefectFuture[StoredBatch]:
        parsed = parse_batch.submit(quote(batch), opaque(replies), quote(current.parsing))
        return store_batch.submit(quote(batch), opaque(parsed), quote(run.output), current.parts)

    row_chunks = chunks(rows, current.batch_size)
    prompting = (prompt_rows.submit(quote(some), quote(current.prompting)) for some in row_chunks)
    batches = current.batches(prefetch_results(prompting, PREFETCHED_CHUNKS))
    run_batches(batches, generate, store, current, run)
    # Rows that may crash the server come last, so that a crash disturbs no other requests.
    run_batches(current.suspect_batches(), generate, store, current, run, max_batches=1)
