"""What a run holds open: endpoint, output, ledger, image reader and its record.

All of it is opened and closed here, in one place.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect import get_run_logger
from prefect.runtime import flow_run

from ..serving.background import BackgroundLoop
from ..serving.client import ChatClient
from ..tasks.adopting import adopt_completions
from ..tasks.batch_cache import batch_cache
from ..tasks.caching import RequestSpec, configuration_key
from ..tasks.compaction import compact
from ..tasks.errors import StoreError
from ..tasks.file_digests import FileDigests
from ..tasks.filesystems import S3Credentials
from ..tasks.generating import generate_batch
from ..tasks.image_reader import ImageReader
from ..tasks.image_refs import ImageBase
from ..tasks.ledger import Ledger
from ..tasks.loading import Dataset
from ..tasks.object_store import ObjectStore, load_store
from ..tasks.parameters import RunParameters
from ..tasks.passes import Pass
from ..tasks.prompting import PromptSettings
from ..tasks.row_requests import GenerationSettings
from ..tasks.run_records import RunCounts, RunRecord, this_host
from ..tasks.steps import quote
from ..tasks.storing import PassFolder, parser_labels, read_manifest, write_keys
from .breaker import Breaker
from .endpoints import AskedModel, asked_model
from .passes import OpenPass
from .prefect_server import check_server
from .progress import RunProgress, current_progress
from .run_artifacts import progress_shown
from .run_record import KeptRecord
from .summary import RunSummary

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def open_run(told: RunParameters) -> Iterator["Run"]:
    """Open the output and what reads images; `Run.begin` opens the rest. All is closed at the end.

    Raises:
        PrefectServerError: a block is named, and no Prefect server answers.
        StoreError: a URI is of another kind, there is no such block, or the output has another
            layout or cannot be read.
    """
    with ExitStack() as stack:
        output = store_at(told.output, told.store)
        read_manifest(output)  # another layout is told before anything is done
        loop = BackgroundLoop()
        stack.callback(loop.close)
        reader = ImageReader(
            told.images.max_file_bytes,
            credentials=output.s3_credentials,
            allow_private_hosts=told.images.allow_private_hosts,
            digests=FileDigests(),
            root=told.images.root or None,
            loop=loop,
        )
        stack.enter_context(reader)
        yield Run(told, output, reader, loop, stack)


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
        told: RunParameters,
        output: ObjectStore,
        reader: ImageReader,
        loop: BackgroundLoop,
        stack: ExitStack,
    ) -> None:
        self.told = told
        self.output = output
        self.reader = reader
        self.progress: RunProgress = current_progress()
        self.breaker = Breaker(told.limits.max_error_rate)
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

    def begin(self, table: Dataset, main: Pass) -> OpenPass:
        """Find or start the model's server, wait for the output, and open the run's main pass.

        Args:
            table: whose rows are asked about.
            main: what is asked.

        Raises:
            EndpointError: a server is unreachable, refuses the key or does not serve the model.
            ServerError: the model's server could not be started.
            OutputBusyError: another run is writing to the output, and this one does not wait.
            StoreError: the output cannot be read or written.
        """
        told = self.told
        self._asked: AskedModel = self._stack.enter_context(
            asked_model(
                told.endpoint or None, told.model or None, told.limits.max_in_flight, self._loop
            )
        )
        self.progress.begin(self.client.stats, table.count)
        record = self._new_record(table, main)
        self.keys_name = record.keys
        self._record = KeptRecord(self.output, record, self.progress)
        self._stack.enter_context(self._record.kept(wait=told.limits.wait))
        self._stack.enter_context(progress_shown(self.output, table, self.progress))
        return self.open_pass(main, table.base, self.progress)

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
            progress = RunProgress()
            progress.begin(self.client.stats, None)
        told, folder = self.told, PassFolder(asked.name)
        images = told.images.settings
        completions = self._at(told.caching.cache or f"{self.output.uri}/{folder.completions}")
        ledger = Ledger.read(
            self.output,
            folder.parts(asked.parsing.label),
            retry_quarantined=told.caching.retry_quarantined,
            refresh=told.caching.refresh,
        )
        if unparsed := sorted(self._asked_before(completions, folder, ledger) - ledger.batches):
            adopted = adopt_completions(
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
            generation=GenerationSettings(images, asked.sampling, self.reader, self._asked.revive),
            parsing=asked.parsing,
            ledger=ledger,
            progress=progress,
            batch_size=told.limits.batch_size,
            salt=self._id if told.caching.refresh else "",
        )

    def complete(self, asked: OpenPass, exported: RunCounts) -> RunSummary:
        """Tidy the output up, and record that the run is complete.

        Args:
            asked: the run's main pass.
            exported: what the exports hold.

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

    def _at(self, uri: str) -> ObjectStore:
        return self.output.at(uri)

    def _spec(self, asked: Pass) -> RequestSpec:
        return RequestSpec(
            model=self.model,
            model_revision=self.told.model_revision or self._asked.revision,
            sampling=asked.sampling,
            images=self.told.images.settings.model_dump(mode="json"),
            prompt=asked.style_name,
        )

    def _asked_before(
        self, completions: ObjectStore, folder: PassFolder, ledger: Ledger
    ) -> frozenset[str] | set[str]:
        """Batches of this output whose completions may be stored."""
        if not self.told.caching.cache:
            return set(completions.list())
        # Of a shared cache only what this output has asked for, told by what other parsers left.
        folders = {folder.parts(label) for label in parser_labels(self.output, folder)}
        others = [Ledger.read(self.output, other) for other in folders - {ledger.folder}]
        return frozenset().union(*(other.batches for other in others))

    def _new_record(self, table: Dataset, main: Pass) -> RunRecord:
        spec, now = self._spec(main), datetime.now(UTC)
        deciding = {
            "model": spec.model,
            "model_revision": spec.model_revision,
            "system_prompt": main.system_prompt,
            "user_prompt": main.user_prompt,
            "prompt_style": spec.prompt,
            "parser": main.parsing.label,
            "sampling": dict(spec.sampling),
            "images": dict(spec.images),
        }
        configuration = configuration_key(deciding)
        keys = PassFolder(main.name).keys
        return RunRecord(
            run=self._id,
            state="waiting",
            dataset=table.name,
            model=spec.model,
            model_revision=spec.model_revision,
            user_prompt=main.user_prompt,
            parser=main.parsing.label,
            configuration=configuration,
            keys=f"{keys}/{configuration}/{dataset_key(self.told)}",
            **this_host(),
            queued=now,
            started=now,
            updated=now,
            versions={
                name: version(name) for name in ("prefect-imageqa", "prefect", "pandas", "pillow")
            },
            told=self.told,
        )


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


def dataset_key(told: RunParameters) -> str:
    """Name a dataset, for what is kept per configuration and dataset."""
    given: Any = told.dataset
    named = str(given) if isinstance(given, str | Path) else _frame_name(given)
    return configuration_key({"dataset": named, "limited": told.max_rows is not None})


def _frame_name(frame: "pd.DataFrame") -> str:
    """What tells a DataFrame from others, and stays as it grows: its columns and first row."""
    first = frame.iloc[0].tolist() if len(frame) else []
    cells = [
        repr(cell) if isinstance(cell, str | int | float) else type(cell).__name__ for cell in first
    ]
    return json.dumps([[str(column) for column in frame.columns], cells])
