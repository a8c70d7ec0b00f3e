"""The value of a conversation column, in any of the usual forms -> turns and their images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from ...serving.printable import printable
from ..records import Kind, RowError

IMAGE_PLACEHOLDER = "<image>"
"""Position of an image in a turn's text, as in LLaVA's data."""

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
}
"""Names of speakers, in lower case."""

_FORMS = (("from", "value"), ("role", "content"))
"""Names of a turn's speaker and text: ShareGPT's and OpenAI's."""

_EXCHANGES = (("user", "assistant"), ("question", "answer"))
"""Names of both texts in a list of exchanges: the Cauldron's (also FineVision's) and VQA's."""

_SPEAKERS = (*(speaker for speaker, _ in _FORMS), "user")

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})


_MAX_QUESTIONS = 1000
"""Questions of a record: each is a row that refers to the whole record."""


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """An image of the image column, by its position there."""

    index: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a row's conversation.

    Attributes:
        role: who speaks.
        text: may contain `<image>` placeholders.
        images: the image of each placeholder, if the turn is given as parts: a reference as in an
            image column, an `ImageIndex`, or None for the next image of that column. Empty for a
            plain text.
    """

    role: Role
    text: str
    images: tuple[Any, ...] = ()


def read_conversation(value: Any) -> tuple[Turn, ...]:
    """Read the value of a conversation column: one text, a turn, or a list of turns or exchanges.

    Raises:
        RowError: it is nothing of this.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (Turn("user", valid_text(value)),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RowError(Kind.BAD_ROW, f"the conversation is a {type(value).__name__}, not a list")
    if len(value) == 1 and isinstance(value[0], str):
        return (Turn("user", valid_text(value[0])),)
    return tuple(turn for number, item in enumerate(value, 1) for turn in _turns(number, item))


def questions(value: Any) -> list[str]:
    """The questions of a row that has a list of them, each of which is asked on its own; else [].

    Raises:
        RowError: there are too many.
    """
    if not is_list_of_questions(value):
        return []
    texts = [item["question"] if isinstance(item, Mapping) else item for item in value]
    asked = [text for text in texts if text and text.strip()]
    if len(asked) > _MAX_QUESTIONS:
        raise RowError(
            Kind.BAD_ROW,
            f"the row has {len(asked):,} questions, more than {_MAX_QUESTIONS:,}; split it",
        )
    return asked


def is_list_of_questions(value: Any) -> bool:
    """Whether a value is a list of texts, or of objects with a question each, and no dialogue."""
    if not isinstance(value, list) or not any(value):
        return False
    return all(item is None or isinstance(item, str) for item in value) or all(
        isinstance(item, Mapping)
        and isinstance(item.get("question"), str)
        and all(item.get(name) is None for name in _SPEAKERS)
        for item in value
    )


def has_images(value: Any) -> bool:
    """Whether a conversation has images of its own, among its turns' parts."""
    try:
        images = [image for turn in read_conversation(value) for image in turn.images]
        return any(not isinstance(image, ImageIndex | None) for image in images)
    except RowError:
        return False


def _turns(number: int, item: Any) -> Iterator[Turn]:
    """A turn; or two of them, if the item is a question with its answer."""
    if not isinstance(item, Mapping):
        raise RowError(Kind.BAD_ROW, f"turn {number} of the conversation is not an object")
    # In a Parquet file with several forms, every turn has the names of all of them.
    for speaker_name, text_name in _FORMS:
        if (speaker := item.get(speaker_name)) is not None:
            role = ROLES.get(str(speaker).strip().casefold())
            if role is None:
                raise RowError(
                    Kind.BAD_ROW,
                    f"turn {number} of the conversation is from {printable(str(speaker), 40)!r}; "
                    f"known speakers: {', '.join(ROLES)}",
                )
            content = item.get(text_name)
            if content is None:  # as in a Parquet file that mixes both forms
                content = item.get("content", item.get("value"))
            if content is not None or role != "assistant":  # whose answer is still missing
                yield _turn(number, role, content)
            return
    for user_name, assistant_name in _EXCHANGES:
        if item.get(user_name) is not None:
            yield _turn(number, "user", item[user_name])
            if item.get(assistant_name) is not None:
                yield _turn(number, "assistant", item[assistant_name])
            return
    names = printable(", ".join(map(str, islice(item, 10))), 200)
    raise RowError(
        Kind.BAD_ROW,
        f"turn {number} of the conversation has no speaker: it has {names or 'nothing'}, not from "
        "and value, role and content, or user and assistant",
    )


def _turn(number: int, role: Role, content: Any) -> Turn:
    """A turn of a text, or of a list of OpenAI content parts, where images become placeholders."""
    if isinstance(content, str):
        return Turn(role, valid_text(content))
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RowError(Kind.BAD_ROW, f"turn {number} of the conversation has no text")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        for text, is_image, image in _part(number, part):
            if is_image:
                images.append(image)
            elif IMAGE_PLACEHOLDER in text:
                images += [None] * text.count(IMAGE_PLACEHOLDER)
            texts.append(text)
    return Turn(role, "\n".join(texts), tuple(images))


def _part(number: int, part: Any) -> Iterator[tuple[str, bool, Any]]:
    """Text of a content part, whether it is an image, and the image's reference, if it has one.

    Qwen's parts need no type, and may have both.
    """
    if isinstance(part, str):
        yield valid_text(part), False, None
        return
    if not isinstance(part, Mapping):
        raise RowError(Kind.BAD_ROW, f"turn {number} of the conversation has no text")
    # A Parquet file gives every part the names of all kinds.
    kinds = [part["type"]] if part.get("type") else [name for name in part if part[name]]
    if not kinds:
        kinds = [name for name in part if part[name] is not None]
    for kind in kinds:
        if kind in _TEXT_PARTS:
            yield valid_text(str(part.get("text") or "")), False, None
        elif kind in _IMAGE_PARTS:
            yield IMAGE_PLACEHOLDER, True, _reference(part)
        elif len(kinds) == 1:
            raise RowError(
                Kind.BAD_ROW,
                f"turn {number} of the conversation has a part of type "
                f"{printable(str(kind), 40)!r}; only text and images can be asked",
            )


def _reference(part: Mapping[str, Any]) -> Any:
    """What an image column would hold; None if the part only marks where an image goes."""
    value = next((part[name] for name in ("image_url", "image") if part.get(name)), None)
    if value is None and isinstance(index := part.get("index"), int):
        return ImageIndex(index)  # as in TRL's data
    if isinstance(value, Mapping) and "url" in value:
        return value["url"]
    if value is None and (part.get("bytes") or part.get("path") or part.get("url")):
        return part.get("url") or {"bytes": part.get("bytes"), "path": part.get("path")}
    return value


def valid_text(text: str) -> str:
    """JSON can contain a lone surrogate, which no server accepts."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
