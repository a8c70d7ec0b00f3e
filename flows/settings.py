"""What a run is told. Deployments store these names."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ..tasks.images import ImageSettings
from .plugins import PARSERS, PROMPT_STYLES


def _built_in_or_own(built_in: Iterable[str]) -> Any:
    """What a form shows for a plug-in: a choice of names, or a name of the user's own."""
    choices = [
        {"type": "string", "enum": [*built_in], "title": "Built-in"},
        {"type": "string", "title": "Your own (package.module:function)"},
    ]
    return Annotated[Any, WithJsonSchema({"anyOf": choices})]


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

    from ..serving.endpoint import VLLMEndpoint
    from ..tasks.object_store import ObjectStore

    DatasetLike = str | Path | pd.DataFrame
    EndpointLike = str | list[str] | VLLMEndpoint | None
    StoreLike = str | ObjectStore | None
    PromptStyleLike = str | Callable[..., Any]
    ParserLike = str | Callable[..., Any]
    OptionalText = str | None
    OptionalColumn = str | None
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
    # A form never sends an empty text for a field that has another default: hence a choice.
    OptionalColumn = Annotated[
        str | None,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "title": "Column"},
                    {"type": "null", "title": "No images"},
                ]
            }
        ),
    ]
    PromptStyleLike = _built_in_or_own(PROMPT_STYLES)
    ParserLike = _built_in_or_own(PARSERS)

MAX_BATCH_SIZE = 512

PairsPerImage = Annotated[int, Field(ge=1, le=20)]
RowLimit = Annotated[int, Field(ge=1, title="First rows")]

RESERVED_OPTIONS = frozenset({"model", "messages", "stream", "n"})
"""Request fields that a run sets itself, or that would change the shape of a reply.

Nor may `extra_body` set what has a field of its own here.
"""


class Sampling(BaseModel):
    """How the model samples its replies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.7, ge=0, le=2, description="0 always takes the best.")
    top_p: float = Field(
        default=0.9, gt=0, le=1, title="Top-p", description="Probability mass sampled from."
    )
    top_k: int = Field(
        default=40, ge=-1, title="Top-k", description="Tokens sampled from; 0 or -1 is all."
    )
    repetition_penalty: float = Field(default=1.0, gt=0, description="1 is no penalty.")
    seed: Annotated[int, Field(title="Seed")] | None = Field(
        default=42,
        description="Each row's own seed derives from it and the row key; none is random.",
    )
    max_tokens: int = Field(
        default=512, ge=1, description="Tokens of a reply; a longer one is quarantined."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further vLLM request options, such as response_format or min_p.",
    )

    @model_validator(mode="after")
    def _check_extra_body(self) -> Self:
        fields = type(self).model_fields.keys()
        if clash := sorted((RESERVED_OPTIONS | fields) & self.extra_body.keys()):
            raise ValueError(f"extra_body may not set {', '.join(clash)}")
        try:
            json.dumps(self.extra_body)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra_body is not JSON: {error}") from None
        return self

    def options(self) -> dict[str, Any]:
        """The options as they stand in a request's body."""
        named = self.model_dump(exclude={"extra_body"}, exclude_none=True)
        return named | self.extra_body


class Columns(BaseModel):
    """Which columns of the dataset are read, and which one is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: OptionalColumn = Field(default="image", description="Column with the image, or a list.")
    conversation: str = Field(
        default="conversation",
        description="Column with the conversation, where a row has one.",
    )
    output: str = Field(
        default="output", min_length=1, description="Column that gets the raw reply."
    )

    @field_validator("image")
    @classmethod
    def _no_empty_name(cls, name: str | None) -> str | None:
        return name or None


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

    @property
    def settings(self) -> ImageSettings:
        """What decides an answer: not where an image lies."""
        return ImageSettings(**self.model_dump(include=set(ImageSettings.model_fields)))


class Replies(BaseModel):
    """What is made of the model's replies. A change costs no request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parser: ParserLike = Field(
        default="qa_pairs",
        description="Turns a reply into QA pairs: a built-in name, or package.module:function.",
    )
    require_pairs: bool = Field(
        default=True,
        description="Quarantine replies without a QA pair; else the raw text is the answer.",
    )


class Limits(BaseModel):
    """How much is done at once, and when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Reuse(BaseModel):
    """What is taken from earlier runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
