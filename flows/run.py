"""What a run holds open: endpoint, output, ledger, image reader and its record.

All of it is opened and closed here, in one place.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

from prefect import get_run_logger
from prefect.runtime import flow_run

from ..serving.background import BackgroundLoop
from ..serving.client.client import ChatClient
from ..serving.endpoint import VLLMEndpoint
from ..tasks.concurrency import quote
from ..tasks.errors import ObjectCorruptedError, StoreError
from ..tasks.exporting.status import EXPORTS
from ..tasks.generating.batch_cache import batch_cache
from ..tasks.generating.generate import generate_batch
from ..tasks.generating.requests import GenerationSettings
from ..tasks.images.file_digests import FileDigests
from ..tasks.images.reader import ImageReader
from ..tasks.images.references import ImageBase
from ..tasks.loading.dataset import Dataset
from ..tasks.object_store.credentials import S3Credentials
from ..tasks.object_store.store import ObjectStore, load_store
from ..tasks.prompting.keys import RequestSpec
from ..tasks.prompting.prompts import PromptSettings
from ..tasks.reporting.dataset_card import CARD
from ..tasks.reporting.report import REPORT
from ..tasks.runs.parameters import RunParameters
from ..tasks.runs.passes import Pass
from ..tasks.runs.records import RunCounts, last_completed
from ..tasks.storing.compaction import compact
from ..tasks.storing.layout import PassFolder, parser_labels, read_manifest
from ..tasks.storing.ledger import Ledger
from ..tasks.storing.reparsing import reparse_completions
from ..tasks.storing.row_keys import write_keys
from .circuit_breaker import CircuitBreaker
from .endpoints import AskedModel, asked_model, named_endpoint
from .open_pass import OpenPass
from .prefect_server import check_server
from .progress import RunProgress, current_progress
from .publish.artifacts import progress_shown
from .run_record import LiveRecord, new_record
from .summary import RunSummary

OWN_FILES = (*EXPORTS, REPORT, CARD)
"""What a run replaces in its output."""


@contextmanager
def open_run(parameters: RunParameters) -> Iterator["Run"]:
    """Open the output and what reads images; `Run.start` opens the rest. All is closed at the end.

    Raises:
        PrefectServerError: a block is named, and no Prefect server answers.
        StoreError: a URI is of another kind, there is no such block, or the output has another
            layout or cannot be read.
    """
    with ExitStack() as stack:
        output = store_at(parameters.output, parameters.store)
        if read_manifest(output) is not None:  # another layout is told before anything is done
            last_completed(output)
        loop = BackgroundLoop()
        stack.callback(loop.close)
        reader = ImageReader(
            parameters.images.max_file_bytes,
            credentials=output.s3_credentials,
            allow_private_hosts=parameters.images.allow_private_hosts,
            digests=FileDigests(),
            root=parameters.images.root or None,
            loop=loop,
        )
        stack.enter_context(reader)
        yield Run(parameters, output, reader, loop, stack)


class Run:
    """What the steps of a run share.

    Attributes:
        told: the run's parameters.
        output: where everything is kept.
        reader: reads the images.
        progress: counts what is done.
        breaker: stops the run if too much fails.
        credentials: who to be on S3, also for dataset and images; None: the environment says.
    """

    def __init__(
        self,
        parameters: RunParameters,
        output: ObjectStore,
        reader: ImageReader,
        loop: BackgroundLoop,
        stack: ExitStack,
    ) -> None:
        self.parameters = parameters
        self.output = output
        self.reader = reader
        self.progress: RunProgress = current_progress()
        self.breaker = CircuitBreaker(parameters.limits.max_error_rate)
        self.credentials: S3Credentials | None = output.s3_credentials
        self._id = str(flow_run.id or uuid4())
        self._loop = loop
        self._stack = stack

    @property
    def client(self) -> ChatClient:
        """Asks the model."""
        return self._asked.client

    @property
    def model(self) -> str:
        """The name the model is served under."""
        return self._asked.client.model

    def start(self, table: Dataset, main: Pass) -> OpenPass:
        """Wait for the output, find or start the model's server, and open the run's main pass.

        Raises:
            OutputBusyError: another run is writing to the output, and this one does not wait.
            EndpointError: a server is unreachable, refuses the key or does not serve the model.
            ServerError: the model's server could not be started.
            StoreError: the output cannot be read or written.
        """
        told = self.parameters
        endpoint = named_endpoint(told.endpoint or None, told.model or None)
        self._check_own_files(table)
        if endpoint is not None:  # a mistake is told before anything is written
            self._find_model(endpoint)
        record = new_record(self._id, told, table.name, main)
        self._record = LiveRecord(self.output, record, self.progress)
        self._stack.enter_context(self._record.kept(wait=told.limits.wait))
        self._table, self._version = table, table.version()  # it may have changed meanwhile
        if endpoint is None:  # a server of the run's own is not started only to wait
            self._find_model(None)
        self.progress.begin(self.client.stats, table.count)
        self.keys_name = self._record.describe(told, main, self._spec(main))
        self._stack.enter_context(progress_shown(self.output, table, self.progress))
        return self.open_pass(main, table.base, self.progress)

    def _find_model(self, endpoint: VLLMEndpoint | None) -> None:
        model, at_once = self.parameters.model or None, self.parameters.limits.max_in_flight
        asked = asked_model(endpoint, model, at_once, self._loop)
        self._asked: AskedModel = self._stack.enter_context(asked)

    def is_unchanged(self) -> bool:
        """Whether the table is the one that the run has read.

        Raises:
            DatasetError: a file's store cannot be asked.
        """
        return self._table.version() == self._version

    def open_pass(
        self, asked: Pass, base: ImageBase, progress: RunProgress | None = None
    ) -> OpenPass:
        """Read which rows of a pass are finished; completions that were never parsed are parsed.

        Args:
            asked: the pass.
            base: what relative image paths of its rows are tried against.
            progress: where it counts; by default on its own.

        Raises:
            StoreError: the output cannot be read or written.
        """
        if progress is None:
            self.progress.end()  # what the client does from now on is of another pass
            progress = RunProgress()
            progress.begin(self.client.stats, None)
        told, folder = self.parameters, PassFolder(asked.name)
        images = told.images.settings
        completions = self.output.at(
            told.caching.cache or f"{self.output.uri}/{folder.completions}"
        )
        ledger = Ledger.read(
            self.output,
            folder.parts(asked.parsing.label),
            retry_quarantined=told.caching.retry_quarantined,
            refresh=told.caching.refresh,
        )
        if unparsed := sorted(self._asked_before(completions, folder, ledger) - ledger.batches):
            adopted = reparse_completions(
                completions, unparsed, quote(self.output), quote(ledger), quote(asked.parsing)
            )
            get_run_logger().info("%s batches were stored but not parsed: they are now", adopted)
        return OpenPass(
            generate=generate_batch.with_options(**batch_cache(completions)),
            prompting=PromptSettings(
                asked.image_key,
                asked.conversation_key,
                base,
                asked.style,
                asked.system_prompt,
                asked.user_prompt,
                images,
                self._spec(asked),
                self.reader,
            ),
            generation=GenerationSettings(images, asked.sampling, self.reader, self._asked.recover),
            parsing=asked.parsing,
            ledger=ledger,
            progress=progress,
            batch_size=told.limits.batch_size,
            cache_buster=self._id if told.caching.refresh else "",
        )

    def complete(self, asked: OpenPass, exported: RunCounts) -> RunSummary:
        """Tidy the output up, and record that the run is complete.

        Raises:
            StoreError: the output cannot be written.
        """
        compact(self.output, asked.ledger, asked.keys)
        write_keys(self.output, self.keys_name, asked.keys)
        counts = asked.counts()
        if (counts.ok, counts.quarantined) != (exported.ok, exported.quarantined):
            raise StoreError(f"{self.output.uri}: the exports are not what is stored: run it again")
        found = {**counts.model_dump(), "pairs": exported.pairs}
        summary = RunSummary(**found, output=self.output.uri, store=self.output.credentials)
        self._record.complete(summary)
        return summary

    def _check_own_files(self, table: Dataset) -> None:
        """Replace no file that a run has not written, least of all the dataset."""
        own = [self.output.uri_of(name) for name in OWN_FILES]
        if taken := [uri for uri in own if uri in table.sources]:
            raise StoreError(
                f"{taken[0]} is the dataset, and would be replaced: choose another output"
            )
        if read_manifest(self.output) is None:
            for name in filter(self.output.exists, OWN_FILES):
                raise StoreError(
                    f"{self.output.uri_of(name)} is there already, and no run has written it: "
                    "choose another output"
                )

    def _spec(self, asked: Pass) -> RequestSpec:
        return RequestSpec(
            model=self.model,
            model_revision=self.parameters.model_revision or self._asked.revision,
            sampling=asked.sampling,
            images=self.parameters.images.settings.model_dump(mode="json"),
            prompt=asked.style_name,
        )

    def _asked_before(
        self, completions: ObjectStore, folder: PassFolder, ledger: Ledger
    ) -> set[str]:
        """Batches of this output whose completions may be stored."""
        if not self.parameters.caching.cache:
            return set(completions.list())
        # Of a shared cache only what this output has asked for, told by what other parsers left.
        asked: set[str] = set()
        for other in {folder.parts(label) for label in parser_labels(self.output, folder)}:
            try:
                if other != ledger.folder:
                    asked |= Ledger.read(self.output, other).batches
            except ObjectCorruptedError as error:
                get_run_logger().warning("%s", error)  # nothing of it is needed
        return asked


def store_at(uri: str, access: str | ObjectStore | None) -> ObjectStore:
    """The store of a URI, with the credentials of a saved block, or its name.

    Raises:
        PrefectServerError: a block is named, and no Prefect server answers.
        StoreError: the URI is of another kind, or there is no such block.
    """
    if isinstance(access, str) and access:
        check_server()
        access = load_store(access)
    return access.at(uri) if isinstance(access, ObjectStore) else ObjectStore(uri=uri)
