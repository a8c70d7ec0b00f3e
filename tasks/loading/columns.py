"""Which columns of a dataset are read and written, and their values in a record."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from ...serving.printable import printable
from ..records import Kind, Record, RowError
from .cells import parse_cell
from .conversations import read_conversation, valid_text

AUTO = "auto"
"""As the name of a column: it is found by the usual names."""

MAX_ANSWER = 100_000
"""Characters of an answer that a record has."""

_SHOWN_NAMES = 20


def _column_or_none(none: str) -> dict[str, Any]:
    # Prefect's form never submits an empty text for a field with another default: hence a choice.
    return {
        "anyOf": [
            {"type": "string", "title": "Column"},
            {"type": "null", "title": none},
        ]
    }


class Columns(BaseModel):
    """Which columns of the dataset are read, and which one is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[str | None, WithJsonSchema(_column_or_none("No images"))] = Field(
        default=AUTO,
        description="Column with the image, or a list. By default (auto) it is found by its name: "
        "image, images, image_path, file_name, ...; images inside the conversation are found too.",
    )
    conversation: Annotated[str | None, WithJsonSchema(_column_or_none("No conversations"))] = (
        Field(
            default=AUTO,
            description="Column with what each row is asked: a conversation, or one or several "
            "questions. By default (auto) it is found by its name: conversation, conversations, "
            "messages, texts, question, questions; without one, all rows get the user prompt.",
        )
    )
    answer: Annotated[str | None, WithJsonSchema(_column_or_none("No answers"))] = Field(
        default=None,
        description="Column with the answer to the row's own question, to check or export pairs "
        "that are there already: the model is only asked about rows that have none.",
    )
    output: str = Field(
        default="output", min_length=1, description="Column that gets the raw reply."
    )

    @field_validator("image", "conversation", "answer")
    @classmethod
    def _no_empty_name(cls, name: str | None) -> str | None:
        return name or None

    @property
    def has_embedded_images(self) -> bool:
        """Whether images are given in the conversation only, as in messages of the OpenAI API."""
        return self.image is not None and self.image == self.conversation


def read_value(record: Record, column: str | None) -> Any:
    """The value of a column; a text that is a list or object, as in CSV files, is read as such.

    Raises:
        RowError: the text looks like a list or an object, but cannot be read.
    """
    text = None if column is None else record.get(column)
    if not isinstance(text, str):
        return text
    try:
        value = parse_cell(text)
    except ValueError as error:
        message = f"column {quoted(column or '')} {error}"
        raise RowError(Kind.BAD_ROW, message) from None
    # "[1, 2, 3]" may be what is asked, or a strange name.
    return text if isinstance(value, list) and any(map(_is_number, value)) else value


def given_answer(record: Record, column: str | None) -> str:
    """The answer that a record has: a text as it is, or a number; empty if it has none.

    Raises:
        RowError: it is something else, or too long.
    """
    value = None if column is None else record.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value).removesuffix(".0")
    if value is None:
        return ""
    where = f"the answer in column {quoted(column or '')}"
    if not isinstance(value, str):
        raise RowError(Kind.BAD_ROW, f"{where} is a {type(value).__name__}; give one text")
    if len(value) > MAX_ANSWER:
        limit = f"{len(value):,} characters, more than {MAX_ANSWER:,}"
        raise RowError(Kind.BAD_ROW, f"{where} has {limit}")
    return valid_text(value).strip()


def image_value(record: Record, columns: Columns) -> Any:
    """The images of a record, as an image column holds them; None if it has none.

    Raises:
        RowError: the column cannot be read.
    """
    value = read_value(record, columns.image)
    if not columns.has_embedded_images:
        return value
    images = [image for turn in read_conversation(value) for image in turn.images]
    return [image for image in images if image is not None]


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    known = [printable(name, 60) for name in names]
    return ", ".join(known[:_SHOWN_NAMES]) + (", ..." if len(known) > _SHOWN_NAMES else "")


def quoted(name: str) -> str:
    """The name of a column for a message."""
    return repr(printable(name, 60))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
