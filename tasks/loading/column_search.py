"""Finds the columns of images and conversations by their usual names, in the first records."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import DatasetError
from ..records import Kind, Problem, Record, RowError
from .columns import AUTO, Columns, quoted, read_value, shown_names
from .conversations import has_images, is_list_of_questions

_IMAGE_COLUMNS = (
    *("image", "images", "image_path", "image_paths", "image_file", "image_files"),
    *("image_url", "image_urls", "img", "imgs", "img_path"),
)
"""Usual names of the image column, the likeliest first; upper and lower case count as the same."""

_FILE_COLUMNS = ("file_name", "file_names", "filename", "file_path", "path", "url")
"""Names that it has in some datasets, while in others it is where a record comes from."""

_CONVERSATION_COLUMNS = (
    *("conversation", "conversations", "messages", "texts", "question", "questions"),
)
"""Usual names of the conversation column, the likeliest first."""

_IMAGE_RANK = {name: rank for rank, name in enumerate((*_IMAGE_COLUMNS, *_FILE_COLUMNS))}
_CONVERSATION_RANK = {name: rank for rank, name in enumerate(_CONVERSATION_COLUMNS)}

_PEEK_ROWS = 100
"""Number of leading rows in which columns are found by themselves."""

_SEARCHED_ROWS = 10_000
"""Number of leading rows of which one must have a column that is given by name."""


@dataclass
class ColumnFinder:
    """Finds the columns of a dataset in its first records.

    Attributes:
        columns: as given.
        free: whether later records may have other columns than the first one.
        names: all columns seen so far, in order.
        has_questions: whether a record may give several rows, one for each of its questions.
    """

    columns: Columns
    free: bool
    names: dict[str, None] = field(default_factory=dict)
    has_questions: bool = False
    _filled: set[str] = field(default_factory=set)
    _embedding: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Take the columns of one more record into account."""
        self.names.update(dict.fromkeys(record))
        images, usual = _usual_names(tuple(record))
        self._filled.update(name for name in images if not is_empty(record[name]))
        conversations = {name for name in usual if _is_conversation(record, name)}
        self._filled |= conversations
        given = self.columns.conversation
        for name in conversations | ({given} if given is not None and given in record else set()):
            value = _value(record, name)
            if has_images(value):
                self._embedding.add(name)
            if given is not None:
                self.has_questions = self.has_questions or is_list_of_questions(value)

    @property
    def missing(self) -> list[str]:
        """Columns that are given by name, and that no record has had so far."""
        given = (self.columns.image, self.columns.conversation, self.columns.answer)
        return [name for name in given if name not in (None, AUTO) and name not in self.names]

    def is_done(self, rows: int) -> bool:
        """Whether these many rows are enough, because further ones would change nothing."""
        if self.names and self.missing:
            return not self.free or rows >= _SEARCHED_ROWS
        if rows >= _PEEK_ROWS or not self.names:
            return rows >= _PEEK_ROWS
        return self._is_settled(self.columns.image, self._image, _IMAGE_RANK) and self._is_settled(
            self.columns.conversation, self._conversation, _CONVERSATION_RANK
        )

    def _is_settled(self, given: str | None, found: str | None, ranks: Mapping[str, int]) -> bool:
        """Whether no likelier column can turn out to be filled, and one is found or impossible."""
        if given != AUTO:
            return True
        rank = len(ranks) if found is None else ranks.get(found.casefold(), len(ranks))
        empty = (name.casefold() for name in self.names if name not in self._filled)
        if any(ranks.get(name, len(ranks)) < rank for name in empty):
            return False
        return found is not None or not self.free

    @property
    def _conversation(self) -> str | None:
        if self.columns.conversation != AUTO:
            return self.columns.conversation
        return next(iter(_ranked(self._filled, _CONVERSATION_RANK)), None)

    @property
    def _image(self) -> str | None:
        if self.columns.image != AUTO:
            return self.columns.image
        found = next(iter(_ranked(self._filled, _IMAGE_RANK)), None)
        is_sure = found is not None and found.casefold() in _IMAGE_COLUMNS
        return (
            self._conversation if self._conversation in self._embedding and not is_sure else found
        )

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
                f"{dataset}: no column {quoted(self.missing[0])}{where}; "
                f"its columns are: {shown_names(self.names)}"
            )
        if self._image is None and self.columns.image == AUTO and require_images:
            raise DatasetError(
                f"{dataset}: no column of images found; its columns are: "
                f"{shown_names(self.names)}; name one with columns.image (--image-key), or leave "
                "that empty for text only"
            )
        found = {"image": self._image, "conversation": self._conversation}
        return self.columns.model_copy(update=found)

    def note(self, found: Columns, used: Collection[str] | None) -> str:
        """What is read of the dataset, in one sentence.

        Args:
            found: the columns that are read.
            used: further columns that the style uses; None if it asks the rows' conversations.
        """
        names = {"images": found.image, "conversations": found.conversation}
        if found.has_embedded_images:
            names = {"images and conversations": found.conversation}
        names["answers"] = found.answer
        read = [f"{what} from column {quoted(name)}" for what, name in names.items() if name]
        sent = {*names.values(), *(used or ())}
        others = [name for name in self.names if name not in sent]
        text = f"reading {' and '.join(read)}" if read else "reading no column"
        if found.conversation is None and used is None:
            text += "; without conversations, every row is asked the user prompt"
        return f"{text}; not sent to the model: {shown_names(others)}" if others else text


def overlooked_column(record: Record, found: Columns, given: Columns) -> Problem | None:
    """The problem of a record that has another column than those that the first rows have.

    Such a row would get the user prompt instead of what it asks, or another image than its own.

    Args:
        record: of a later row.
        found: the columns of the dataset.
        given: the same as they were given: a column that is given by name is what is meant.
    """
    images, conversations = _usual_names(tuple(record))
    if given.conversation == AUTO:
        for name in conversations:
            if name == found.conversation and not is_empty(record[name]):
                break
            if _is_conversation(record, name):
                return _overlooked("conversation", name, found.conversation)
    if given.image == AUTO:
        is_sure = found.has_embedded_images or str(found.image).casefold() in _IMAGE_COLUMNS
        for name in images:
            if is_sure and name.casefold() in _FILE_COLUMNS:
                break
            if not is_empty(record[name]):
                return None if name == found.image else _overlooked("image", name, found.image)
    return None


def _overlooked(what: str, name: str, used: str | None) -> Problem:
    return Problem(
        Kind.BAD_ROW,
        f"the row's {what} is in column {quoted(name)}, but that of the first rows is "
        f"{'none' if used is None else quoted(used)}; use one name, or name the column with "
        f"columns.{what} (--{what}-key)",
    )


@lru_cache(maxsize=64)
def _usual_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The usual names of image and of conversation columns among these, the likeliest first."""
    return _ranked(names, _IMAGE_RANK), _ranked(names, _CONVERSATION_RANK)


def _ranked(names: Iterable[str], ranks: Mapping[str, int]) -> tuple[str, ...]:
    usual = (name for name in names if name.casefold() in ranks)
    return tuple(sorted(usual, key=lambda name: (ranks[name.casefold()], name)))


def _is_conversation(record: Record, name: str) -> bool:
    """Whether a column of a usual name holds a conversation or questions."""
    value = _value(record, name)
    if value is None or is_empty(value):
        return value is None and not is_empty(record[name])  # it cannot be read: its row says so
    # A list of plain texts may be captions.
    is_turns = isinstance(value, list) and isinstance(value[0], Mapping)
    return is_turns or name.casefold() != "texts"


def _value(record: Record, name: str) -> Any:
    try:
        return read_value(record, name)
    except RowError:
        return None


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, bytes | list | Mapping) and not value)
