"""A preview's work: the first rows in several styles, exactly as a run would ask them."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

from ...tasks.errors import EndpointError
from ...tasks.exporting.embedded import image_names
from ...tasks.generating.batching import make_batch
from ...tasks.generating.chat_requests import GenerationSettings
from ...tasks.generating.completions import StoredReply
from ...tasks.generating.generate import complete_batch
from ...tasks.generating.probe import server_guides
from ...tasks.images.reader import ImageReader
from ...tasks.loading.columns import image_value
from ...tasks.loading.dataset import Dataset
from ...tasks.object_store.credentials import S3Credentials
from ...tasks.object_store.patience import Patience
from ...tasks.parsing.parse import parse_reply
from ...tasks.prompting.open_style import OpenStyle
from ...tasks.prompting.prompts import prompt_rows
from ...tasks.records import FinishedRow, Prompt, Reply, Row, RowError, is_transient
from ...tasks.reporting.row_images import SampledImage, sampled_images
from ...tasks.runs.parameters import RunParameters
from ...tasks.runs.passes import Pass, answers_pass, main_pass, run_style, user_schema
from ...tasks.storing.questions import question_rows, with_answers
from ..open_store import open_store
from ..pass_settings import (
    generation_settings,
    image_reader,
    open_table,
    prompt_settings,
    request_spec,
)
from .cells import Preview, PreviewReply, PreviewRow, preview_reply
from .model import NO_ENDPOINT, PreviewModel, open_preview_model


@dataclass(frozen=True)
class _Records:
    """The first records of a dataset, each as its rows: one for each question and sample."""

    table: Dataset
    records: Sequence[Sequence[Row]]


@dataclass(frozen=True)
class AskedStyle:
    """A style with the prompts of the rows.

    Attributes:
        prompts: of all rows, in order; empty before there is a model.
    """

    name: str
    style: OpenStyle
    records: _Records
    main: Pass
    prompts: Sequence[Prompt] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of all records, in order."""
        return [row for rows in self.records.records for row in rows]


@dataclass
class Session:
    """What stays open from one preview to the next: rows, images, model, and its replies.

    Attributes:
        requested: the parameters of a run, once for each style; nothing else differs.
        count: records of the dataset that are shown.
        credentials: of S3; None for those of the environment.
        model: the model; for rendering prompts only its name counts.
        guided: whether its server makes replies follow a JSON schema.
    """

    requested: Sequence[RunParameters]
    count: int
    reader: ImageReader
    credentials: S3Credentials | None
    model: PreviewModel = PreviewModel()  # noqa: RUF009 - frozen
    guided: bool = True
    _records: dict[tuple[bool, frozenset[str]], _Records] = field(default_factory=dict)
    _images: Sequence[Sequence[SampledImage]] | None = None
    _replies: dict[str, Reply] = field(default_factory=dict)
    _corrected: dict[str, str] = field(default_factory=dict)

    def styles(self) -> list[AskedStyle]:
        """Open the styles and the dataset, without prompts.

        Raises:
            ImageQAError: there is no such style, file or column, or parameters contradict.
        """
        return [self._opened(parameters) for parameters in self.requested]

    def rendered(self) -> list[AskedStyle]:
        """Open the styles as they are now, and render the prompts of all rows."""
        styles = zip(self.requested, self.styles(), strict=True)
        return [
            replace(each, prompts=self._prompts(parameters, each.main, each.rows, each.records))
            for parameters, each in styles
        ]

    def preview(self, styles: Sequence[AskedStyle]) -> Preview:
        """Ask the model what it has not been asked yet.

        Raises:
            EndpointError: no server answers, or it refuses to.
        """
        with ThreadPoolExecutor(len(styles)) as executor:
            columns = list(executor.map(self._replies_of, self.requested, styles))
        records = styles[0].records
        images = self._images = self._images or self._read_images(records)
        rows = [
            PreviewRow(_location(rows[0]), tuple(images[number]), cells)
            for number, (rows, cells) in enumerate(
                zip(records.records, zip(*columns, strict=True), strict=True)
            )
        ]
        names = tuple(style.name for style in styles)
        return Preview(records.table.name, self.model.name, names, tuple(rows))

    def count_unasked(self, styles: Sequence[AskedStyle]) -> int:
        """How many rows the model is asked about in the next preview."""
        prompts = (each for style in styles for each in style.prompts)
        keys = {each.key for each in prompts if not (each.problem or each.given_answer)}
        return len(keys - self._replies.keys())

    def generation_settings(self, style: AskedStyle) -> GenerationSettings:
        """How the prompts of a style are sent."""
        return generation_settings(self.requested[0], style.main, self.reader)

    def _opened(self, parameters: RunParameters) -> AskedStyle:
        style = run_style(parameters, self.credentials, guided=self.guided)
        records = self._first_records(parameters, style)
        columns = records.table.columns
        main = main_pass(parameters.model_copy(update={"columns": columns}), style, columns)
        if parameters.asking.answer == "separately":
            answers_pass(main, style)  # raises if the style has no questions
        return AskedStyle(str(parameters.style), style, records, main)

    def _first_records(self, parameters: RunParameters, style: OpenStyle) -> _Records:
        read = style.uses_conversation, style.columns
        if read not in self._records:
            table = open_table(parameters, style, self.credentials)
            with closing(table.rows()) as rows:
                records = islice(groupby(rows, _location), self.count)
                first = _Records(table, [list(of_record) for _, of_record in records])
            self._records[read] = first
        return self._records[read]

    def _prompts(
        self, parameters: RunParameters, asking: Pass, rows: Sequence[Row], records: _Records
    ) -> list[Prompt]:
        spec = request_spec(parameters, asking, self.model.name, self.model.revision)
        base = records.table.base
        settings = prompt_settings(parameters, asking, spec, base, self.reader)
        return list(prompt_rows.fn(rows, settings))

    def _replies_of(
        self, parameters: RunParameters, style: AskedStyle
    ) -> list[tuple[PreviewReply, ...]]:
        """The replies of a style to each record."""
        outcomes = self._outcomes(parameters, style.main, style.prompts)
        if parameters.asking.answer == "separately":
            answering = answers_pass(style.main, style.style)
            questions = list(question_rows(style.rows, outcomes))
            prompts = self._prompts(parameters, answering, questions, style.records)
            answers = self._outcomes(parameters, answering, prompts)
            outcomes = [row for row in with_answers(outcomes, answers) if row is not None]
        corrected = [self._corrected.get(prompt.key, "") for prompt in style.prompts]
        upcoming = iter(map(preview_reply, style.prompts, outcomes, corrected))
        return [tuple(islice(upcoming, len(rows))) for rows in style.records.records]

    def _outcomes(
        self, parameters: RunParameters, asking: Pass, prompts: Sequence[Prompt]
    ) -> list[FinishedRow]:
        new = {prompt.key: prompt for prompt in prompts if not prompt.problem}
        batch = make_batch(1, [new[key] for key in new if key not in self._replies])
        if batch.prompts:
            if self.model.client is None:
                raise EndpointError(NO_ENDPOINT)
            settings = generation_settings(parameters, asking, self.reader)
            complete_batch(batch, self.model.client, settings)
        lasting = {key: reply for key, reply in batch.replies.items() if not is_transient(reply)}
        self._replies |= lasting
        self._corrected |= batch.corrected
        replies = self._replies | batch.replies
        return [
            parse_reply(
                StoredReply(
                    key=prompt.key,
                    attempt=0,
                    row=prompt.row,
                    where=prompt.where,
                    reply=prompt.problem or replies[prompt.key],
                    asked=prompt.asked,
                ),
                asking.parsing,
            )
            for prompt in prompts
        ]

    def _read_images(self, records: _Records) -> list[Sequence[SampledImage]]:
        table, settings = records.table, self.requested[0].images.settings

        def read(rows: Sequence[Row]) -> Sequence[SampledImage]:
            with suppress(RowError):
                value = image_value(rows[0].record, table.columns)
                names = image_names(rows[0], table.columns)
                return sampled_images(value, names, self.reader, settings, table.base)
            return ()

        return list(self.reader.executor.map(read, records.records))


@contextmanager
def open_session(
    requested: Sequence[RunParameters], count: int, *, dry_run: bool
) -> Iterator[Session]:
    """Check styles and dataset, then connect to the model.

    `requested` has the parameters of a run for each style; of the dataset, `count` records are
    shown.

    Raises:
        ImageQAError: styles, dataset or endpoint cannot be used.
    """
    first, patience = requested[0], Patience(requested[0].limits.store_wait)
    credentials = open_store(".", first.store).with_patience(patience).s3_credentials
    with ExitStack() as stack:
        stack.callback(patience.stop)
        reader = stack.enter_context(image_reader(first.images, credentials))
        session = Session(requested, count, reader, credentials)
        session.styles()  # before any server is asked
        session.model = stack.enter_context(open_preview_model(first, dry_run=dry_run))
        client = session.model.client
        if client is not None and first.asking.format != "text" and not dry_run:
            session.guided = server_guides(client, user_schema(first, credentials))
        yield session


_QUESTION = re.compile(r", question \d+$")


def _location(row: Row) -> str:
    """Where the row's record is; its questions are rows of their own."""
    return _QUESTION.sub("", row.where)
