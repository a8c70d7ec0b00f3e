"""Opens a style by its name, as a file, as a mix, or as a function."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ImageQAError
from ..object_store.credentials import S3Credentials
from .chat import CHAT, chat_prompt, chat_style, style_of
from .style import MessagesOf, Style

StyleLike = str | Path | Mapping[str, float] | MessagesOf


@dataclass(frozen=True)
class StyleSettings:
    """What a run says about its style.

    Attributes:
        pairs: how many QA pairs to ask for; None for the style's own number.
        language: language of the pairs; empty to say nothing about it.
        difficulty: such as "easy"; empty to say nothing about it.
        questions_only: whether to ask for questions, which another pass answers.
        json: whether replies should be JSON.
        schema: the user's JSON schema of a reply; None for the one of the style's reply form.
        guided: whether the server is made to follow the schema.
        seed: of what is drawn for each row.
    """

    pairs: int | None = None
    language: str = ""
    difficulty: str = ""
    questions_only: bool = False
    json: bool = False
    schema: Mapping[str, Any] | None = None
    guided: bool = True
    seed: int = 0


@dataclass(frozen=True)
class OpenStyle:
    """A style, ready to render rows.

    Attributes:
        name: as it is recorded: name and version, or those of a mix with their weights.
        style: renders a row.
        uses_conversation: whether it uses the row's conversation.
        answering: renders a question of the style's own for the pass that answers it; None if
            the style cannot ask for questions only.
    """

    name: str
    style: Style
    uses_conversation: bool
    answering: Style | None = None


def open_style(
    named: StyleLike, settings: StyleSettings, credentials: S3Credentials | None = None
) -> OpenStyle:
    """Open a style.

    Args:
        named: name of a built-in style, path or `s3://` URI of a style file, a mix of these with
            their weights, or a function from a row to messages.
        settings: what the run says about it.
        credentials: of S3; None for those of the environment.

    Raises:
        ImageQAError: there is no such style, its file is broken, or it cannot do what is asked.
    """
    if callable(named):
        label = f"{named.__module__}:{named.__qualname__}"
        if named is chat_prompt:
            label = CHAT
        return OpenStyle(label, style_of(named, label), uses_conversation=True)
    if named == CHAT:
        return OpenStyle(CHAT, chat_style, uses_conversation=True)
    raise ImageQAError(f"there is no style {named!r}")


def style_names() -> list[str]:
    """The names of the built-in styles, the default first."""
    return [CHAT]


def recorded_style(named: Any) -> str:
    """A style as it is recorded: its name or path, a mix as text, a function by its name."""
    if callable(named):
        return f"{named.__module__}:{named.__qualname__}"
    if isinstance(named, Mapping):
        return ", ".join(f"{name}={weight:g}" for name, weight in named.items())
    return str(named)
