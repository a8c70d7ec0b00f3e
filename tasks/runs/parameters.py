"""The parameters of a run: Prefect's form, the command line and the run record are made from them.

Renaming a parameter breaks existing deployments, which store the names.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, field_serializer, field_validator

from ..images.prepare import ImageSettings
from ..loading.columns import Columns
from ..prompting.open_style import recorded_style
from .checks import Checks
from .exports import Exports
from .form_types import (
    DatasetLike,
    EndpointLike,
    Group,
    JsonObject,
    MaxRows,
    OptionalText,
    PairsPerImage,
    ParserLike,
    RequestsInFlight,
    StoreLike,
    StyleLike,
    plain_uri,
)
from .pilot import Pilot
from .plugins import parser_name
from .workers import Workers

MAX_BATCH_SIZE = 4096

RESERVED_OPTIONS = frozenset({"model", "messages", "stream", "n"})
"""Request fields that `extra_body` may not set, nor any that is a field of `Sampling`.

A run sets them itself, or they would change the structure of a reply.
"""


class Sampling(Group):
    """How the model samples."""

    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Sampling temperature; 0 is greedy decoding."
    )
    top_p: float = Field(
        default=0.9,
        gt=0,
        le=1,
        title="Top-p",
        description="Sample from the most likely tokens, up to this total probability.",
    )
    top_k: int = Field(
        default=40,
        ge=-1,
        title="Top-k",
        description="Sample from this many of the most likely tokens; 0 or -1 means all.",
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="Above 1, repeated tokens become less likely."
    )
    seed: Annotated[int, Field(title="Seed")] | None = Field(
        default=42,
        description="Each row's seed is derived from this and the row key; none means random.",
    )
    max_tokens: int = Field(
        default=512,
        ge=1,
        description="Maximum length of a reply in tokens; longer ones are quarantined.",
    )
    extra_body: JsonObject = Field(
        default_factory=dict,
        description='Additional vLLM request options, as a JSON object such as {"min_p": 0.1}.',
    )

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, options: Any) -> Any:
        try:
            options = json.loads(options) if isinstance(options, str) else options
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ValueError('extra_body must be a JSON object, such as {"min_p": 0.1}')
        if clash := sorted((RESERVED_OPTIONS | cls.model_fields.keys()) & options.keys()):
            raise ValueError(f"extra_body may not set {', '.join(clash)}")
        try:
            json.dumps(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        return options

    def options(self) -> dict[str, Any]:
        """The options as fields of the request body."""
        named = self.model_dump(exclude={"extra_body"}, exclude_none=True)
        return named | self.extra_body


class Asking(Group):
    """What is asked for, within a style."""

    language: OptionalText = Field(
        default="",
        description="Language of the pairs, such as English or Chinese; by default the prompt says "
        "nothing about it.",
    )
    difficulty: OptionalText = Field(
        default="", description="How hard the questions should be, such as easy or hard."
    )
    samples: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many times every row is asked, each time with a seed of its own. "
        "Pairs that repeat are dropped.",
    )
    answer: Literal["together", "separately"] = Field(
        default="together",
        description="separately: first ask for questions only, then each question on its own.",
    )
    format: str = Field(
        default="text",
        min_length=1,
        description="Form of the replies: text; json, which the server is made to follow; or path "
        "or s3:// URI of a JSON Schema of your own.",
    )
    corrective_retry: bool = Field(
        default=True,
        description="Show the model a reply that cannot be used, and ask it once more.",
    )


class Images(ImageSettings):
    """Where images may come from, which are refused, and the size they are sent at."""

    root: OptionalText = Field(
        default="",
        description="Folder that image paths are relative to and may not leave. By default the "
        "dataset's folder, which absolute paths may leave, but not in a deployment.",
    )
    allow_private_hosts: bool = Field(
        default=False, description="Also fetch web images from private and loopback addresses."
    )

    @field_validator("root")
    @classmethod
    def _check_root(cls, root: str | None) -> str | None:
        return plain_uri(root)

    @property
    def settings(self) -> ImageSettings:
        """The settings that can change an answer, unlike the location of an image."""
        return ImageSettings(**self.model_dump(include=set(ImageSettings.model_fields)))


class Parsing(Group):
    """How replies are parsed. Changing it needs no new requests."""

    parser: ParserLike = Field(
        default="qa_pairs",
        description="Turns a reply into QA pairs: qa_pairs finds the pairs that the model wrote; "
        "answer takes the whole reply as the answer to the row's own question.",
    )
    require_pairs: bool = Field(
        default=True,
        description="Quarantine replies without a QA pair; otherwise their text is the answer.",
    )

    @field_serializer("parser")
    def _name(self, parser: Any) -> str:
        return parser_name(parser)


class Limits(Group):
    """How much runs concurrently, and when to stop."""

    batch_size: int = Field(
        default=1024,
        ge=1,
        le=MAX_BATCH_SIZE,
        description="Rows that are generated, stored and retried together; the first batches are "
        "smaller.",
    )
    max_in_flight: RequestsInFlight = Field(
        default="auto",
        description="Maximum number of concurrent requests, over all servers of the endpoint; auto "
        "keeps each server busy, but its queue short.",
    )
    max_error_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop when more than this fraction of the last 256 rows has failed; "
        "missing and broken images do not count.",
    )
    request_timeout: float = Field(
        default=300,
        gt=0,
        description="Seconds after which a request is cancelled, if its server answers others "
        "meanwhile; it is sent once more, then its row is quarantined. Never less than ten times "
        "what requests usually take.",
    )
    server_wait: float = Field(
        default=900,
        ge=0,
        description="Seconds to wait for a model server that no longer answers, before the run "
        "stops.",
    )
    store_wait: float = Field(
        default=300,
        ge=0,
        description="Seconds to wait for an S3 server, or for a host of images, that no longer "
        "answers, before the run stops.",
    )
    wait: bool = Field(
        default=False,
        description="Also wait for a model server that is not up yet; otherwise refuse to start.",
    )
    queue: bool = Field(
        default=True,
        description="Wait if another run is writing to the same output; otherwise refuse to start.",
    )


class Caching(Group):
    """What is reused from earlier runs."""

    cache: OptionalText = Field(
        default="",
        description="Local path or s3:// URI of raw replies shared by several outputs; by default "
        "they are stored in the output.",
    )
    refresh: bool = Field(
        default=False, description="Send every row to the model again, even if it has an answer."
    )
    retry_quarantined: bool = Field(
        default=False,
        description="Also retry rows quarantined for a permanent reason, each time with another "
        "seed. Rows with a transient failure are always retried.",
    )

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, cache: str | None) -> str | None:
        return plain_uri(cache)


class RunParameters(BaseModel):
    """The parameters of `image_qa`, which describes each of them, and how they are recorded.

    The record has the names of callables, and neither the endpoint nor credentials. `dataset` is
    empty for a DataFrame, which cannot be found again.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    dataset: SkipValidation[DatasetLike]
    output: str = Field(exclude=True, default="")
    endpoint: SkipValidation[EndpointLike] = Field(exclude=True, default=None)
    style: SkipValidation[StyleLike]
    pairs_per_image: PairsPerImage | None
    max_rows: MaxRows | None
    system_prompt: str
    user_prompt: str
    model: str | None
    model_revision: str
    store: SkipValidation[StoreLike] = Field(exclude=True, default=None)
    asking: Asking
    sampling: Sampling
    limits: Limits
    columns: Columns
    parsing: Parsing
    caching: Caching
    images: Images
    exports: Exports
    pilot: Pilot = Pilot()
    checks: Checks = Checks()
    workers: Workers = Workers()

    @field_serializer("dataset")
    def _dataset_path(self, dataset: Any) -> str:
        path = str(dataset) if isinstance(dataset, str | Path) else ""
        if path and "://" not in path:
            path = os.path.abspath(Path(path).expanduser())  # noqa: PTH100 (keeps links)
        return path

    @field_serializer("checks")
    def _recorded_checks(self, checks: Checks) -> dict[str, Any]:
        return checks.model_dump(mode="json", exclude={"judge_endpoint"})

    @field_serializer("style")
    def _style_name(self, style: Any) -> str:
        return recorded_style(style)
