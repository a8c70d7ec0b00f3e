"""Types of parameters as Prefect's form shows them: a form can send less than Python."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from ..errors import StoreError
from ..object_store.filesystems import split_uri
from ..prompting.catalogue import built_in_styles
from .plugins import PARSERS


def _built_in_or_custom(built_in: Iterable[str], custom: str) -> Any:
    """In the form, a choice between the names of what is built in and another text."""
    choices = [
        {"type": "string", "enum": [*built_in], "title": "Built-in"},
        {"type": "string", "title": custom},
    ]
    return Annotated[Any, WithJsonSchema({"anyOf": choices})]


def _described_styles() -> str:
    """What the form says about the styles; it joins lines without an empty one between them."""
    items = [f"- `{style.name}`: {style.description}" for style in built_in_styles()]
    return "\n\n".join([_STYLE, *items])


# As `image_qa` describes it, whose description this one takes the place of.
_STYLE = (
    "What is asked about each row: the name of a style, the path or s3:// URI of a style file, or "
    'a mix of several with weights, such as "single=2, yes-no=1".'
)

if TYPE_CHECKING:
    import pandas as pd

    from ...serving.endpoint import VLLMEndpoint
    from ..object_store.store import ObjectStore

    DatasetLike = str | Path | pd.DataFrame
    EndpointLike = str | list[str] | VLLMEndpoint | None
    StoreLike = str | ObjectStore | None
    StyleLike = str | Path | Mapping[str, float] | Callable[..., Any]
    ParserLike = str | Callable[..., Any]
    OptionalText = str | None
    JsonObject = dict[str, Any]
else:
    # What Prefect's form shows. Pydantic must not validate a DataFrame, nor import pandas for it.
    DatasetLike = Annotated[Any, WithJsonSchema({"type": "string"})]
    # The form sends null for an empty text field whose default is null, and then rejects it.
    OptionalText = Annotated[
        str | None,
        Field(json_schema_extra={"default": ""}),
        WithJsonSchema({"type": "string"}),
    ]
    EndpointLike = StoreLike = Annotated[
        Any, Field(json_schema_extra={"default": ""}), WithJsonSchema({"type": "string"})
    ]
    # On the command line this is a string, see `_check_extra_body`.
    JsonObject = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": True})]
    StyleLike = Annotated[
        _built_in_or_custom(
            [style.name for style in built_in_styles()], "A style file, or a mix with weights"
        ),
        Field(json_schema_extra={"description": _described_styles()}),
    ]
    ParserLike = _built_in_or_custom(PARSERS, "Custom (registered or allowed on the worker)")


def _check_requests_in_flight(value: object, check: Callable[[object], Any]) -> Any:
    try:
        number = check(value)
    except ValidationError:
        raise PydanticCustomError(
            "requests_in_flight", "Input should be auto or an integer"
        ) from None
    if isinstance(number, int) and number < 1:
        raise PydanticKnownError("greater_than_equal", {"ge": 1})
    return number


RequestsInFlight = Annotated[
    Literal["auto"] | int,
    WrapValidator(_check_requests_in_flight),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["auto"], "title": "Automatic"},
                {"type": "integer", "minimum": 1, "title": "Number"},
            ]
        }
    ),
]
PairsPerImage = Annotated[int, Field(ge=1, le=20, title="Pairs")]
MaxRows = Annotated[int, Field(ge=1, title="First rows")]


class Group(BaseModel):
    """A group of parameters, shown as a box in the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def plain_uri(uri: str | None) -> str | None:
    """Accept only local paths and `s3://`: other URIs may contain a password, and are recorded."""
    try:
        if uri:
            split_uri(uri)
    except StoreError as error:
        raise ValueError(str(error)) from None
    return uri
