"""Which columns of a dataset are read and written, and how they are found."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from ...serving.printable import printable
from ..errors import DatasetError
from ..records import Kind, Problem, Record, RowError
from .cells import parse_cell
from .conversations import has_images, questions, read_conversation

AUTO = "auto"
"""As the name of a column: it is found by the usual names."""

IMAGE_COLUMNS = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_files"),
    *("file_name", "file_names", "image_url", "image_urls", "img", "imgs", "img_path"),
    *("filename", "file_path", "path", "url"),
)
"""Usual names of the image column, the likeliest first; upper and lower case count as the same."""

CONVERSATION_COLUMNS = (
    "conversation",
    "conversations",
    "messages",
    "texts",
    "question",
    "questions",
)
"""Usual names of the conversation column, the likeliest first."""

_PEEK_ROWS = 100
"""Number of leading rows in which columns are found by themselves."""

_SEARCHED_ROWS = 10_000
"""Number of leading rows of which one must have a column that is given by name."""

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
    output: str = Field(
        default="output", min_length=1, description="Column that gets the raw reply."
    )

    @field_validator("image", "conversation")
    @classmethod
    def _no_empty_name(cls, name: str | None) -> str | None:
        return name or None

    @property
    def has_embedded_images(self) -> bool:
        """Whether images are given in the conversation only, as in messages of the OpenAI API."""
        return self.image is not None and self.image == self.conversation


@dataclass
class ColumnFinder:
    """Finds the columns of a dataset in its first records.

    Attributes:
        columns: as given.
        free: whether later records may have other columns than the first one.
        names: all columns seen so far, in order.
        has_questions: whether a record gives several rows, one for each of its questions.
    """

    columns: Columns
    free: bool
    names: dict[str, None] = field(default_factory=dict)
    has_questions: bool = False
    _images: set[str] = field(default_factory=set)
    _conversations: set[str] = field(default_factory=set)
    _embedded: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Take the columns of one more record into account."""
        self.names.update(dict.fromkeys(record))
        for name in record:
            if name.casefold() in IMAGE_COLUMNS and not _is_empty(record[name]):
                self._images.add(name)
        for name, value in find_conversations(record):
            self._conversations.add(name)
            if has_images(value):
                self._embedded.add(name)
            self.has_questions = self.has_questions or bool(questions(value))

    @property
    def missing(self) -> list[str]:
        """Columns that are given by name, and that no record has had so far."""
        given = (self.columns.image, self.columns.conversation)
        return [name for name in given if name not in (None, AUTO) and name not in self.names]

    def is_done(self, rows: int) -> bool:
        """Whether these many rows are enough, because further ones would change nothing."""
        if self.names and self.missing:
            return not self.free or rows >= _SEARCHED_ROWS
        return rows >= _PEEK_ROWS or (bool(self.names) and self._has_images and self._has_turns)

    @property
    def _has_images(self) -> bool:
        return self.columns.image != AUTO or bool(self._images or self._embedded)

    @property
    def _has_turns(self) -> bool:
        if self.columns.conversation != AUTO or self._conversations:
            return True
        return not self.free and not any(map(_is_usual_conversation, self.names))

    def found(self, dataset: str, rows: int, *, require_images: bool = True) -> Columns:
        """The columns with their names.

        Args:
            dataset: the dataset's name, for the error message.
            rows: how many rows were searched.
            require_images: whether there must be images, unless they are not wanted.

        Raises:
            DatasetError: a column that was given by name is in none of the rows; or there is no
                column of images.
        """
        if self.missing and (require_images or self.missing != [self.columns.image]):
            where = f" in the first {rows:,} rows" if rows > 1 else ""
            raise DatasetError(
                f"{dataset}: no column {printable(self.missing[0], 60)!r}{where}; "
                f"its columns are: {shown_names(self.names)}"
            )
        conversation = self.columns.conversation
        if conversation == AUTO:
            conversation = _likeliest(self._conversations, CONVERSATION_COLUMNS)
        image = self.columns.image
        if image == AUTO:
            image = _likeliest(self._images, IMAGE_COLUMNS)
            if image is None and conversation in self._embedded:
                image = conversation
        if image is None and self.columns.image == AUTO and require_images:
            raise DatasetError(
                f"{dataset}: no column of images found; its columns are: "
                f"{shown_names(self.names)}; name one with columns.image (--image-key), or set it "
                "to none for text only"
            )
        return self.columns.model_copy(update={"image": image, "conversation": conversation})

    def note(self, found: Columns) -> str:
        """What is read of the dataset, in one sentence."""
        names = {"images": found.image, "conversations": found.conversation}
        if found.has_embedded_images:
            names = {"images and conversations": found.conversation}
        read = [f"{what} from column {_quoted(name)}" for what, name in names.items() if name]
        others = [name for name in self.names if name not in names.values()]
        text = f"reading {' and '.join(read)}" if read else "reading no column"
        if found.conversation is None:
            text += "; without conversations, every row is asked the user prompt"
        return f"{text}; not read: {shown_names(others)}" if others else text


def read_value(record: Record, column: str | None) -> Any:
    """The value of a column; a text that is a list or object, as in CSV files, is read as such.

    Raises:
        RowError: the text looks like a list or an object, but cannot be read.
    """
    value = None if column is None else record.get(column)
    if not isinstance(value, str):
        return value
    try:
        return parse_cell(value)
    except ValueError as error:
        message = f"column {_quoted(column or '')} {error}"
        raise RowError(Kind.BAD_ROW, message) from None


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


def find_conversations(record: Record) -> Iterator[tuple[str, Any]]:
    """The columns of a record that hold a conversation or questions, with their values."""
    for name in record:
        if not _is_usual_conversation(name) or _is_empty(record[name]):
            continue
        try:
            value = read_value(record, name)
        except RowError:  # for its row to say
            value = None
        # A list of plain texts may be captions.
        is_turns = isinstance(value, list) and isinstance(value[0], Mapping)
        if is_turns or name.casefold() != "texts":
            yield name, value


def overlooked_conversation(record: Record, columns: Columns) -> Problem | None:
    """The problem of a record whose conversation is in another column than that of the dataset.

    Such a row would get the user prompt instead of what it asks.
    """
    if columns.conversation is not None and not _is_empty(record.get(columns.conversation)):
        return None
    for name, _ in find_conversations(record):
        used = "none" if columns.conversation is None else _quoted(columns.conversation)
        return Problem(
            Kind.BAD_ROW,
            f"the row's conversation is in column {_quoted(name)}, but that of the first rows is "
            f"{used}; use one name, or name the column with columns.conversation",
        )
    return None


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    known = [printable(name, 60) for name in names]
    return ", ".join(known[:_SHOWN_NAMES]) + (", ..." if len(known) > _SHOWN_NAMES else "")


def _is_usual_conversation(name: str) -> bool:
    return name.casefold() in CONVERSATION_COLUMNS


def _quoted(name: str) -> str:
    return repr(printable(name, 60))


def _likeliest(names: set[str], usual: Sequence[str]) -> str | None:
    rank: Callable[[str], tuple[int, str]] = lambda name: (usual.index(name.casefold()), name)  # noqa: E731
    return min(names, key=rank, default=None)


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, bytes | list | Mapping) and not value)
