"""The resources that the steps of a run share: endpoint, output, ledgers, images and record."""

from contextlib import ExitStack
from uuid import uuid4

from prefect.runtime import flow_run

from ..serving.background_loop import BackgroundLoop
from ..serving.client.client import ChatClient
from ..serving.endpoint import VLLMEndpoint
from ..tasks.checking import AskedCheck
from ..tasks.checking.hashed_rows import ImageSource
from ..tasks.errors import StoreError
from ..tasks.exporting.judged import open_checks
from ..tasks.exporting.last_export import export_inputs
from ..tasks.exporting.trainers import ExportSource
from ..tasks.generating.probe import server_guides
from ..tasks.images.reader import ImageReader
from ..tasks.loading.dataset import Dataset
from ..tasks.loading.recorded_rows import RecordedRows
from ..tasks.object_store.credentials import S3Credentials
from ..tasks.object_store.patience import Patience
from ..tasks.object_store.store import ObjectStore
from ..tasks.prompting.keys import RequestSpec
from ..tasks.prompting.open_style import OpenStyle
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import (
    Pass,
    answers_pass,
    check_pass,
    main_pass,
    run_style,
    user_schema,
)
from ..tasks.runs.run_counts import RunCounts
from ..tasks.storing.compaction import compact
from ..tasks.storing.layout import EXPORTED, PassFolder
from ..tasks.storing.ledger import Ledger
from ..tasks.storing.row_keys import write_keys
from .batch_results import BatchResults
from .cached_batches import parse_cached
from .circuit_breaker import CircuitBreaker
from .dataset_notes import note_columns, note_rows
from .new_record import new_record
from .open_model import RunModel, judge_model, open_model, resolve_endpoint, resolve_judge
from .open_pass import OpenPass
from .output_lease import OutputLease
from .own_files import check_own_files
from .pass_settings import generation_settings, prompt_settings, request_spec
from .progress import RunProgress
from .publish.artifacts import show_progress
from .summary import RunSummary, total_counts
from .task_runs import StepRunner
from .termination import terminated_once
from .workers.channel import remove_messages
from .workers.crew import Crew
from .workers.open_crew import check_workers, open_crew, rows_per_batch


class Run:
    """The resources that the steps of a run share.

    Attributes:
        parameters: the parameters of `image_qa`.
        style: what is asked about each row.
        output: store of all results.
        reader: reads the images.
        progress: counts of the run.
        patience: waits for stores and hosts of images that do not answer.
        breaker: stops the run if too many rows fail.
        credentials: of S3, also for dataset and images; None for those of the environment.
        rows: the rows of the dataset, read twice; from `start` on.
        checks: what is checked about the pairs.
        passes: those opened so far.
        steps: runs the steps of the passes.
        crew: its workers; None if it answers its batches itself.
    """

    def __init__(
        self,
        parameters: RunParameters,
        style: OpenStyle,
        output: ObjectStore,
        reader: ImageReader,
        progress: RunProgress,
        patience: Patience,
        loop: BackgroundLoop,
        stack: ExitStack,
    ) -> None:
        self.parameters = parameters
        self.style = style
        self.output = output
        self.reader = reader
        self.progress = progress
        self.patience = patience
        self.breaker = CircuitBreaker(parameters.limits.max_error_rate)
        self.credentials: S3Credentials | None = output.s3_credentials
        self._id = str(flow_run.id or uuid4())
        self._loop = loop
        self._stack = stack
        self._ignore_terminations = stack.enter_context(terminated_once())
        limits = parameters.images.settings
        self.checks = open_checks(parameters.checks, output, limits, self.image_source)
        self.passes: list[OpenPass] = []
        self.steps = stack.enter_context(StepRunner())
        self.crew: Crew | None = None

    @property
    def client(self) -> ChatClient:
        """The client of the model that the current pass asks."""
        return self._asked.client

    @property
    def model(self) -> str:
        """The name the model of the run is served under."""
        return self._model.client.model

    @property
    def is_import(self) -> bool:
        """Whether it takes the replies from batch files, and asks no server."""
        return self._model.results is not None

    def stop(self) -> None:
        """Send no more requests, and wait for no store: the run is stopped from outside."""
        self._ignore_terminations()
        if self.crew is not None:
            self.crew.stop()
        self.client.stop()
        self._model.client.stop()
        self.patience.stop()

    def start(self, table: Dataset) -> OpenPass:
        """Wait for the output, find or start the model's server, and open the run's main pass.

        Raises:
            OutputBusyError: another run is writing to the output, and this one does not wait.
            EndpointError: a server is unreachable, refuses the key or does not serve the model.
            ServerError: the model's server could not be started.
            StoreError: the output cannot be read or written.
        """
        note_columns(table, self.style)
        parameters = self.parameters.model_copy(update={"columns": table.columns})
        main = main_pass(parameters, self.style, table.columns)
        endpoint = resolve_endpoint(parameters.endpoint or None, parameters.model or None)
        check_workers(parameters, endpoint)
        self._judge = resolve_judge(parameters.checks)
        check_own_files(self.output, table, parameters.exports, parameters.checks)
        if endpoint is not None:  # fail before anything is written
            self._open_model(endpoint)
        record = new_record(self._id, parameters, table.name, main)
        self._lease = OutputLease(self.output, record, self.progress, self.patience.stop)
        self._stack.enter_context(self._lease.acquire(wait=parameters.limits.queue))
        remove_messages(self.output)  # of runs that were killed
        self.rows = RecordedRows(table)
        self._base = table.base
        if endpoint is None:  # do not load a model only to wait for the output
            self._open_model(None)
        if self._is_unguided():
            self.style = run_style(parameters, self.credentials, guided=False)
            main = main_pass(parameters, self.style, table.columns)
        self.progress.begin(self.client.stats, table.count)
        spec = self._spec(main, self._model)
        self._keys_name = self._lease.record_model(parameters, main, spec, self.style)
        shown = show_progress(self.output, table, self.progress)
        self._show_complete = self._stack.enter_context(shown)
        self._main = main
        if parameters.workers.are_wanted and isinstance(endpoint, VLLMEndpoint):
            self._open_crew(endpoint)
        return self.open_pass(main)

    def _open_crew(self, endpoint: VLLMEndpoint) -> None:
        confined = self._base.folder if self._base.is_confined else None
        self.crew = open_crew(
            self.parameters, self._id, self.output, endpoint, self._model, confined
        )
        self._stack.enter_context(self.crew)
        self._stack.enter_context(self.progress.watching(self.crew))

    def _is_unguided(self) -> bool:
        """Whether replies should follow a schema, but the server does not make them do so."""
        if self.parameters.asking.format == "text":
            return False
        return not server_guides(self.client, user_schema(self.parameters, self.credentials))

    def open_answers(self, questions: OpenPass) -> OpenPass:
        """Open the pass that answers the questions of the main pass, which is complete.

        Raises:
            StoreError: rows of the main pass are missing, or the output cannot be read.
        """
        questions.counts()  # raises if one is missing
        return self.open_pass(answers_pass(self._main, self.style))

    def image_source(self) -> ImageSource:
        """The rows of the dataset, and how their images are read."""
        rows, limits = self.rows.read_again, self.parameters.images.settings
        return ImageSource(rows, self._main.columns, self._base, self.reader, limits)

    def open_check(self, check: AskedCheck, pairs: int) -> OpenPass:
        """Open the pass of a check over this many pairs.

        Raises:
            EndpointError: the judge's endpoint refuses the key, or does not serve the model.
            StoreError: the output cannot be read or written.
        """
        limits, model = self.parameters.limits, self._model
        self.breaker = CircuitBreaker(limits.max_error_rate)
        if check.name == "judge" and self._judge is not None:
            model = judge_model(
                self._judge, limits, self._loop, self.progress.watching, self._stack
            )
        opened = self.open_pass(check_pass(self._main, check), pairs * check.times, model)
        opened.model, opened.is_optional = model, model is not self._model
        return opened

    def _open_model(self, endpoint: VLLMEndpoint | BatchResults | None) -> None:
        name, limits = self.parameters.model or None, self.parameters.limits
        model = open_model(endpoint, name, limits, self._loop, self.progress.watching)
        self._model = self._asked = self._stack.enter_context(model)

    def open_pass(
        self, definition: Pass, total: int | None = None, model: RunModel | None = None
    ) -> OpenPass:
        """Read which rows of a pass are finished, and parse completions that were never parsed.

        `total` is how many rows it has at most, if known; `model` by default that of the run.

        Raises:
            StoreError: the output cannot be read or written.
        """
        self._asked = model or self._model
        if self.passes:  # requests from now on belong to this pass
            self.passes[-1].progress = self.progress.end()
            self.progress.begin(self.client.stats, total, definition.unit)
        parameters, folder = self.parameters, PassFolder(definition.name)
        caching = parameters.caching
        completions = self.output.with_uri(
            caching.cache or f"{self.output.uri}/{folder.completions}"
        )
        ledger = Ledger.read(
            self.output,
            folder.parts(definition.parsing.label),
            retry_quarantined=caching.retry_quarantined,
            refresh=caching.refresh,
            alone=True,  # by the lease
        )
        others = folder if caching.cache else None
        parse_cached(self.output, completions, ledger, definition.parsing, others)
        opened = OpenPass(
            keys_name=folder.keys_of(self._keys_name),
            completions=completions,
            prompt_settings=prompt_settings(
                parameters, definition, self._spec(definition, self._asked), self._base, self.reader
            ),
            generation_settings=generation_settings(
                parameters,
                definition,
                self.reader,
                self._model.results.get if self._model.results else None,
            ),
            parse_settings=definition.parsing,
            ledger=ledger,
            progress=self.progress,
            batch_size=rows_per_batch(parameters.limits, parameters.workers),
            cache_buster=self._id if caching.refresh else "",
        )
        self.passes.append(opened)
        return opened

    def training_source(self, table: Dataset) -> ExportSource:
        """What is exported for training: the pairs in the output, and the table's images."""
        rows, settings = self.rows.read_again, self.parameters.images.settings
        return ExportSource(self.output, rows, table.columns, table.base, self.reader, settings)

    def export_inputs(self) -> str:
        """Digest of all that the exports are made from; empty if the dataset is a DataFrame."""
        if not (rows := self.rows.digest):
            return ""
        parameters = self.parameters
        settings = {
            "configuration": self._keys_name,  # also names the dataset, as the report does
            "max_rows": parameters.max_rows,
            "columns": self._main.columns.model_dump(mode="json"),
            "exports": parameters.exports.model_dump(mode="json"),
            "pairs": [self.checks.pairs_name, *self.checks.column_names],
        }
        passes = [(each.ledger, each.row_keys) for each in self.passes]
        return export_inputs(rows, settings, passes)

    def complete(self, exported: RunCounts) -> RunSummary:
        """Compact the output, and record that the run is complete.

        Raises:
            StoreError: the output cannot be written, or a row is missing.
        """
        if self.crew is not None:
            self.crew.stop()  # no row is left: workers need not wait for what follows
        for each in self.passes:
            compact(self.output, each.ledger, each.row_keys)
            write_keys(self.output, each.keys_name, each.stored_keys)
        counts = [each.counts() for each in self.passes]
        answered, failed = exported.ok + exported.filtered, exported.quarantined
        is_joined = self.parameters.asking.answer == "separately"  # a row may lose its answers
        if not is_joined and (counts[0].ok, counts[0].quarantined) != (answered, failed):
            self.output.remove(EXPORTED)  # else the next run would believe it again
            raise StoreError(
                f"{self.output.uri}: the exports do not match the stored rows: run again"
            )
        results = total_counts(counts, exported)
        summary = RunSummary(**results, output=self.output.uri, store=self.output.credentials)
        self.progress.total = self.passes[0].progress.total  # of the rows, again
        self._lease.complete(summary)
        self._show_complete()
        note_rows(self.rows, summary.rows)
        return summary

    def _spec(self, definition: Pass, model: RunModel) -> RequestSpec:
        judges = {} if model is self._model else {"model_revision": ""}  # it is the run's
        parameters = self.parameters.model_copy(update=judges)
        return request_spec(parameters, definition, model.name, model.revision)
