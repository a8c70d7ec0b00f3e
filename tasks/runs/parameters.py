"""What a run is told. The form, the command line and the record of a run are made from these.

Deployments store these names.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    WithJsonSchema,
    field_serializer,
    field_validator,
)

from ..errors import StoreError
from ..images.preparing import ImageSettings
from ..loading.columns import Columns
from ..object_store.filesystems import split_uri
from .plugins import PARSERS, PROMPT_STYLES, plugin_name


def _built_in_or_own(built_in: Iterable[str]) -> Any:
    """What a form shows for a plug-in: a choice of names, or a name of the user's own."""
    choices = [
        {"type": "string", "enum": [*built_in], "title": "Built-in"},
        {"type": "string", "title": "Your own (package.module:function)"},
    ]
    return Annotated[Any, WithJsonSchema({"anyOf": choices})]


if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from ...serving.endpoint import VLLMEndpoint
    from ..object_store.store import ObjectStore

    DatasetLike = str | Path | pd.DataFrame
    EndpointLike = str | list[str] | VLLMEndpoint | None
    StoreLike = str | ObjectStore | None
    PromptStyleLike = str | Callable[..., Any]
    ParserLike = str | Callable[..., Any]
    OptionalText = str | None
    JsonObject = dict[str, Any]
else:
    # What Prefect's form shows. Pydantic must not look into a DataFrame, nor import pandas for it.
    DatasetLike = Annotated[Any, WithJsonSchema({"type": "string"})]
    # A text field of a form is sent as null where null is its default, and then refused.
    OptionalText = Annotated[
        str | None,
        Field(json_schema_extra={"default": ""}),
        WithJsonSchema({"type": "string"}),
    ]
    EndpointLike = StoreLike = Annotated[
        Any, Field(json_schema_extra={"default": ""}), WithJsonSchema({"type": "string"})
    ]
    # On the command line a text, see `_check_extra_body`.
    JsonObject = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": True})]
    PromptStyleLike = _built_in_or_own(PROMPT_STYLES)
    ParserLike = _built_in_or_own(PARSERS)

MAX_BATCH_SIZE = 512

PairsPerImage = Annotated[int, Field(ge=1, le=20)]
MaxRows = Annotated[int, Field(ge=1, title="First rows")]

RESERVED_OPTIONS = frozenset({"model", "messages", "stream", "n"})
"""Request fields that a run sets itself, or that would change the shape of a reply.

Nor may `extra_body` set what has a field of its own here.
"""


class _Group(BaseModel):
    """Parameters that belong together: a box of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _plain_uri(uri: str | None) -> str | None:
    """The URI, if it is a local path or `s3://`: another may hold a password, and would be kept."""
    try:
        if uri:
            split_uri(uri)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return uri


class Sampling(_Group):
    """How the model samples its replies."""

    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Sampling temperature; 0 always takes the best token."
    )
    top_p: float = Field(
        default=0.9, gt=0, le=1, title="Top-p", description="Probability mass sampled from."
    )
    top_k: int = Field(
        default=40, ge=-1, title="Top-k", description="Tokens sampled from; 0 or -1 is all."
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="Over 1 discourages repeated tokens."
    )
    seed: Annotated[int, Field(title="Seed")] | None = Field(
        default=42,
        description="Each row's own seed derives from it and the row key; none is random.",
    )
    max_tokens: int = Field(
        default=512, ge=1, description="Tokens of a reply; a longer one is quarantined."
    )
    extra_body: JsonObject = Field(
        default_factory=dict,
        description='Further vLLM request options, a JSON object such as {"min_p": 0.1}.',
    )

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, options: Any) -> Any:
        try:
            options = json.loads(options) if isinstance(options, str) else options
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ValueError('extra_body is no JSON object, such as {"min_p": 0.1}')
        if clash := sorted((RESERVED_OPTIONS | cls.model_fields.keys()) & options.keys()):
            raise ValueError(f"extra_body may not set {', '.join(clash)}")
        try:
            json.dumps(options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        return options

    def options(self) -> dict[str, Any]:
        """The options as they stand in a request's body."""
        named = self.model_dump(exclude={"extra_body"}, exclude_none=True)
        return named | self.extra_body


class Images(ImageSettings):
    """Where images may come from, what is refused, and how large they are sent."""

    root: OptionalText = Field(
        default="",
        description="Folder that relative image paths start from, and that none may leave; by "
        "default the dataset's, which absolute paths may leave.",
    )
    allow_private_hosts: bool = Field(
        default=False, description="Fetch web images also from private and loopback addresses."
    )

    @field_validator("root")
    @classmethod
    def _check_root(cls, root: str | None) -> str | None:
        return _plain_uri(root)

    @property
    def settings(self) -> ImageSettings:
        """What decides an answer: not where an image lies."""
        return ImageSettings(**self.model_dump(include=set(ImageSettings.model_fields)))


class Parsing(_Group):
    """How the model's replies are parsed. A change costs no request."""

    parser: ParserLike = Field(
        default="qa_pairs",
        description="Turns a reply into QA pairs: a built-in name, or package.module:function.",
    )
    require_pairs: bool = Field(
        default=True,
        description="Quarantine replies without a QA pair; else the raw text is the answer.",
    )

    @field_serializer("parser")
    def _named(self, parser: Any) -> str:
        return plugin_name("parser", parser, PARSERS)


class Limits(_Group):
    """How much is done at once, and when to stop."""

    batch_size: int = Field(
        default=256,
        ge=1,
        le=MAX_BATCH_SIZE,
        description="Rows that are generated, stored and retried together.",
    )
    max_in_flight: int = Field(
        default=128,
        ge=1,
        description="Requests sent and not yet answered, over all servers of the endpoint.",
    )
    max_error_rate: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Stop when more than this share of the last 256 rows asked has failed.",
    )
    wait: bool = Field(
        default=True,
        description="Wait while another run is writing to the same output; else refuse to start.",
    )


class Caching(_Group):
    """What is taken from earlier runs."""

    cache: OptionalText = Field(
        default="",
        description="Local path or s3:// URI where raw replies are shared with other outputs; "
        "by default they lie in the output.",
    )
    refresh: bool = Field(default=False, description="Ask every row again, whatever is stored.")
    retry_quarantined: bool = Field(
        default=False,
        description="Ask also those quarantined rows again whose failure will not pass by itself; "
        "each time with another seed.",
    )

    @field_validator("cache")
    @classmethod
    def _check_cache(cls, cache: str | None) -> str | None:
        return _plain_uri(cache)


class Exports(_Group):
    """Which files a run writes besides qa.jsonl, pairs.parquet and quarantine.jsonl."""

    json_array: bool = Field(
        default=False, description="Write qa.json too: the rows of qa.jsonl as one JSON array."
    )


class RunParameters(BaseModel):
    """All that `image_qa` was told, and what its record keeps of it; see there for each.

    The record names a callable, and has no endpoint and no credentials. A DataFrame has no place
    to be found at again: its `dataset` is empty.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    dataset: SkipValidation[DatasetLike]
    output: str = Field(exclude=True, default="")
    endpoint: SkipValidation[EndpointLike] = Field(exclude=True, default=None)
    prompt_style: SkipValidation[PromptStyleLike]
    pairs_per_image: PairsPerImage
    max_rows: MaxRows | None
    system_prompt: str
    user_prompt: str
    model: str | None
    model_revision: str
    store: SkipValidation[StoreLike] = Field(exclude=True, default=None)
    sampling: Sampling
    limits: Limits
    columns: Columns
    parsing: Parsing
    caching: Caching
    images: Images
    exports: Exports

    @field_serializer("dataset")
    def _place(self, dataset: Any) -> str:
        place = str(dataset) if isinstance(dataset, str | Path) else ""
        if place and "://" not in place:
            place = os.path.abspath(Path(place).expanduser())  # noqa: PTH100 (keeps links)
        return place

    @field_serializer("prompt_style")
    def _named(self, style: Any) -> str:
        return plugin_name("prompt style", style, PROMPT_STYLES)
