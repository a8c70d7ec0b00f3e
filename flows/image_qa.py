"""The flow `image_qa`: takes each row from the dataset to the exports.

1. `load_dataset` opens the table. `prompt_rows` renders a row's prompt and gives it a row key: a
   digest of its images and everything else that decides its answer.
2. `OpenPass.batches` skips rows that the ledger lists as finished, and batches the pending ones.
   `run_pilot` first checks that the servers see the images, and how a pilot of some rows goes.
3. `run_batches` keeps the servers busy: each batch is generated, parsed and stored as one part, and
   `OpenPass.record` enters its rows in the ledger. If there are workers, each batch is given to one
   of them (`workers/crew.py`), which does the same (`workers/worker.py`).
4. Rows that were in flight at two crashes of the server come last (in a pilot: last of its rows),
   by bisection: the row that crashes it on its own is quarantined.
5. If questions are answered separately, a second pass does so, in which each question is a row.
6. `export_rows` reads the table again and joins it with the stored rows.
7. If there are checks, `add_negatives` adds the unanswerable pairs that are wanted, `check_pairs`
   makes the checks, and `keep_pairs` splits the pairs into those that are kept and the others. A
   check that asks the model is a further pass, in which each pair is a row.

A row that fails is quarantined: stored and exported with the reason. `prompt_rows` finds missing
images, `generate_batch` broken ones and rejected requests, `parse_and_store` truncated replies.

Who waits and who retries (`docs/waiting.md` has the limits):

- a request: the client, up to 4 times, if its server answers others (`client/retry_policy.py`);
- a server that is lost, stalled or overloaded: the client, with all requests in line; one that the
  run has started is restarted (`serving/server/recovery.py`);
- a store or a host of images that does not answer: `object_store/patience.py`;
- a batch that fails unexpectedly: Prefect, twice (`generate_batch`), or `flows/task_runs.py` in its
  place once there are many task runs;
- a worker that is lost: the run starts another one, and gives its batches to others, 3 times;
- a quarantined row: the next run, if the failure was transient (`Ledger.status`), or, with
  `caching.retry_quarantined`, whatever it was;
- the flow: Prefect, as configured (`image_qa.with_options(retries=...)`); each retry resumes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from ..tasks.concurrency import Pending, prefetch_results, quote
from ..tasks.exporting import export_rows
from ..tasks.exporting.trainers import export_for_training
from ..tasks.generating import CompletionsCache, generate_batch
from ..tasks.loading import Columns, load_dataset
from ..tasks.prompting import DEFAULT_SYSTEM_PROMPT, prompt_rows
from ..tasks.records import Batch, Row
from ..tasks.runs.checks import Checks
from ..tasks.runs.exports import Exports
from ..tasks.runs.form_types import (
    DatasetLike,
    EndpointLike,
    MaxRows,
    OptionalText,
    PairsPerImage,
    StoreLike,
    StyleLike,
)
from ..tasks.runs.parameters import (
    Asking,
    Caching,
    Images,
    Limits,
    Parsing,
    RunParameters,
    Sampling,
)
from ..tasks.runs.pilot import Pilot
from ..tasks.runs.workers import Workers
from ..tasks.storing import StoredBatch, parse_and_store
from ..tasks.storing.questions import question_rows, with_answers
from .batches import row_chunks, run_batches
from .checks import check_pairs, keep_pairs
from .circuit_breaker import check_answered
from .image_roots import confine_images
from .negatives import add_negatives
from .open_pass import OpenPass
from .open_run import open_run
from .pilot import run_pilot
from .prefect_flow import deployable_flow, run_name
from .publish.publish import as_asset, expected_sample, final_sample, publish, report_images
from .run import Run
from .summary import RunSummary
from .task_runs import PREFETCHED_CHUNKS, THREADS
from .workers.answer import HandedPass, answer_batch, as_stored, handed_pass


@deployable_flow(
    name="image-qa",
    flow_run_name=run_name,
    description="Question-answer pairs about the images in a table, from a running vLLM server.",
    task_runner=ThreadPoolTaskRunner(max_workers=THREADS),
    persist_result=False,  # Prefect would pickle it, and reading a pickle runs code
)
def image_qa(
    dataset: DatasetLike,
    output: str,
    endpoint: EndpointLike = None,
    style: StyleLike = "chat",
    pairs_per_image: PairsPerImage | None = None,
    max_rows: MaxRows | None = None,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    user_prompt: str = "",
    model: OptionalText = None,
    model_revision: str = "",
    store: StoreLike = None,
    asking: Asking = Asking(),  # noqa: B008 - frozen, and shown as the form's default
    sampling: Sampling = Sampling(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    columns: Columns = Columns(),  # noqa: B008
    parsing: Parsing = Parsing(),  # noqa: B008
    caching: Caching = Caching(),  # noqa: B008
    images: Images = Images(),  # noqa: B008
    exports: Exports = Exports(),  # noqa: B008
    pilot: Pilot = Pilot(),  # noqa: B008
    checks: Checks = Checks(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
) -> RunSummary:
    """Ask a vLLM server for question-answer pairs about the images in every row.

    Call it again with the same arguments at any time to finish what is missing: rows that are
    answered or permanently failed under `output` are not sent again. A row that cannot be answered
    is quarantined with the reason.

    Args:
        dataset: Table with images (JSON, JSON Lines, CSV, Parquet, Arrow, WebDataset), or a folder
            or glob of images or tables: a local path or s3://bucket/qas.json; in Python also a
            pandas DataFrame.
        output: Local path or s3://bucket/prefix where the run stores everything.
        endpoint: URL of a running vLLM server, several URLs separated by spaces, or the name of a
            saved vLLM Endpoint block. Without it, a run starts a server for `model`.
        style: What is asked about each row: the name of a style, the path or s3:// URI of a style
            file, or a mix of several with weights, such as "single=2, yes-no=1".
        pairs_per_image: QA pairs to ask for, if the style asks for a number of them; by default its
            own number.
        max_rows: Process at most this many records from the top, for a quick preview.
        system_prompt: System message of every conversation, in style chat.
        user_prompt: User message of rows without a conversation, in style chat; asks for the pairs
            by default.
        model: Name the model is served under, if the server serves several; without an endpoint,
            the path or Hub name of the model to serve.
        model_revision: Distinguishes versions of a model that are served under the same name.
        store: Name of a saved Image QA Store block; only its credentials are used, for every
            s3:// URI. By default the AWS environment, profile or role.
        asking: What is asked for within the style: language, samples, form of the reply, ...
        sampling: Sampling settings of the model.
        limits: Concurrency limits, and when to stop.
        columns: Which columns of the dataset are read and written.
        parsing: How the model's replies are parsed.
        caching: What is reused from earlier runs.
        images: Where images may come from, and the size they are sent at.
        exports: Which additional files are written, above all for training: formats such as llava.
        pilot: What is checked before all rows are asked.
        checks: What every pair is checked for, and which pairs are kept.
        workers: How many workers answer the rows, and what starts them.

    Raises:
        DatasetError: the dataset is missing, unreadable or malformed.
        EndpointError: a server is unreachable, rejects the key or does not serve the model.
        ErrorRateError: too many rows failed; or the run is complete, but no row is answered.
        PilotError: too few rows of the pilot are usable, or nobody approved it.
        ServerError: the model's server could not be started.
        StoreError: the output cannot be read or written.
    """
    parameters = RunParameters(**locals())  # the first statement: locals are the arguments only
    with open_run(parameters) as run:
        # `quote` keeps Prefect from searching values for futures.
        table = load_dataset(
            quote(dataset),
            columns,
            output,
            images.root,
            max_rows,
            run.credentials,
            samples=asking.samples,
            used=run.style.used_columns,
        )
        table = confine_images(table, run.reader, images.root)
        # Waits until no other run writes to the output, checks or starts the server, and reads the
        # ledger.
        main_pass = run.start(table)
        thumbnails = report_images(run.rows.read_again, table, main_pass)
        rows = thumbnails.watch(run.rows.read(), expected_sample(table, main_pass))
        answer_rows(run, main_pass, rows, with_pilot=True)
        outcomes = main_pass.outcomes()
        if asking.answer == "separately":
            answers = run.open_answers(main_pass)
            answer_rows(run, answers, question_rows(run.rows.read_again(), outcomes))
            outcomes = with_answers(main_pass.outcomes(), answers.outcomes())
        rows = thumbnails.watch(run.rows.read_again(), final_sample(main_pass))
        # The task that writes `pairs.parquet` materializes the asset.
        last_step = as_asset(keep_pairs if checks.are_wanted else export_rows, run.output, table)
        export = export_rows if checks.are_wanted else last_step
        counts = export(
            run.output,
            quote(outcomes),
            quote(rows),  # they are never all in memory
            len(main_pass.row_keys),
            table.columns,
            json_array=exports.json_array,
            inputs=run.export_inputs(),
            pairs_name=run.checks.pairs_name,
            reserved=run.checks.column_names,
        )
        if checks.are_wanted:
            counts = add_negatives(run, table, counts, answer_rows)
            judged = check_pairs(run, table, counts.pairs, answer_rows)
            counts = last_step(run.output, checks, counts, judged)
        for name in exports.formats:
            export_for_training(quote(run.training_source(table)), name, exports)
        summary = run.complete(counts)
        publish(summary, run.output, table, thumbnails, main_pass, model=run.model)
    if not run.is_import:  # of which questions may wait for the next one
        check_answered(summary, run.passes)
    return summary


def answer_rows(
    run: Run, open_pass: OpenPass, rows: Iterator[Row], *, with_pilot: bool = False
) -> None:
    """Make one pass over the rows: render prompts, batch the pending rows, generate, parse, store.

    Nothing is returned: the results are in the output, and listed in the ledger of the pass.

    Args:
        run: the run.
        open_pass: the pass.
        rows: its rows.
        with_pilot: whether to check the model on the first rows before the others are asked.
    """

    def generate(batch: Batch) -> Pending[Any]:
        settings, cache = open_pass.generation_settings, CompletionsCache(open_pass.completions)
        return run.steps.submit(generate_batch, batch, run.client, settings, cache)

    def store(batch: Batch, completions: Pending[Any]) -> Pending[StoredBatch]:
        settings, folder = open_pass.parse_settings, open_pass.parts_folder
        return run.steps.submit(parse_and_store, batch, completions, run.output, settings, folder)

    def hand_over(handed: HandedPass, batch: Batch) -> Pending[Any]:
        return run.steps.submit(answer_batch, batch, handed, run.output)

    def answer(batches: Iterator[Batch]) -> None:
        if (handed := handed_pass(run.crew, open_pass)) is None:
            run_batches(batches, generate, store, open_pass, run)
        else:
            to_worker = partial(hand_over, handed)
            run_batches(batches, to_worker, as_stored, open_pass, run, asked=handed.crew)
        # Rows that may crash the server come last, so that a crash takes no other requests with it.
        run_batches(open_pass.suspect_batches(), generate, store, open_pass, run, max_batches=1)

    prompted = (
        run.steps.submit(prompt_rows, chunk, open_pass.prompt_settings)
        for chunk in row_chunks(rows, open_pass.batch_size)
    )
    pilot = run.parameters.pilot.rows if with_pilot else 0
    prompts = prefetch_results(prompted, PREFETCHED_CHUNKS)
    batches = open_pass.batches(prompts, pilot)
    if with_pilot:
        batches = run_pilot(run, open_pass, batches, answer)
    answer(batches)
