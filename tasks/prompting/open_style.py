"""Opens a style by its name, as a file, as a mix, or as a function."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...serving.printable import printable
from ..errors import ImageQAError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..records import ReplyForm
from .chat import CHAT, chat_prompt, chat_style, style_of
from .file_style import FileStyle
from .keys import canonical_digest
from .mixes import check_weights, mixed_style, parse_mix
from .style import MessagesOf, PromptInput, Rendered, Style
from .style_files import StyleFile, built_in_names, read_built_in, read_style
from .style_settings import StyleSettings

__all__ = [
    "OpenStyle",
    "StyleLike",
    "StyleSettings",
    "find_style_file",
    "open_style",
    "recorded_style",
    "style_names",
]

StyleLike = str | Path | Mapping[str, float] | MessagesOf

_FILE = re.compile(r"(?P<path>.+\.md)(?:/(?P<pin>[^/=,]+))?", re.DOTALL)
_MIX = re.compile(r"[^=,]+=[^=,]*+(?:,[^=,]+=[^=,]*+)*+")
"""Styles with a weight each; a path with one of these signs is taken for a mix, too."""

_BUILT_IN = re.compile(r"(?P<name>[a-z0-9-]+)(?:/(?P<pin>[^/]+))?", re.DOTALL)


@dataclass(frozen=True)
class OpenStyle:
    """A style, ready to render rows.

    Attributes:
        name: as it is recorded: name and version, or those of a mix with their weights.
        style: renders a row.
        uses_conversation: whether it uses the row's conversation.
        answering: renders a question of the style's own for the pass that answers it; None if
            the style cannot ask for questions only.
        columns: the columns that its prompts need.
        digest: identifies its prompts: another content has another digest.
        variables: what its prompts use that is given or drawn, in place of columns of that name.
    """

    name: str
    style: Style
    uses_conversation: bool
    answering: Style | None = None
    columns: frozenset[str] = frozenset()
    digest: str = ""
    variables: frozenset[str] = frozenset()

    @property
    def used_columns(self) -> frozenset[str] | None:
        """The columns that are used besides the images; None if conversations are asked."""
        return None if self.uses_conversation else self.columns


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
        return _open_function(named, settings)
    if isinstance(named, str | Path):
        text = str(named).strip()
        if not _MIX.fullmatch(text) and ("=" not in text or _FILE.fullmatch(text)):
            try:
                opened = _open_one(text, settings, credentials)
            except ObjectMissingError as error:
                hint = "; in a mix, also the last style needs a weight, as in mine.md=1"
                raise ImageQAError(f"{error}{hint if '=' in text else ''}") from None
            _check_pairs([opened], settings.pairs)
            return opened
        named = parse_mix(text)
    weights = check_weights(named)
    mixed = [_open_one(str(name).strip(), settings, credentials) for name in weights]
    _check_pairs(mixed, settings.pairs)
    return _mix(mixed, list(weights.values()), settings)


def style_names() -> list[str]:
    """The names of the built-in styles, the default first."""
    return [CHAT, *built_in_names()]


def recorded_style(named: Any) -> str:
    """A style as it is recorded: its name or path, a mix as text, a function by its name."""
    if callable(named):
        return _function_name(named)
    if isinstance(named, Mapping):
        return ", ".join(f"{name}={weight:g}" for name, weight in named.items())
    return str(named)


def find_style_file(
    named: str, credentials: S3Credentials | None = None
) -> tuple[StyleFile, dict[str, str]]:
    """The file of a style, and the variables that its name sets, as in `knowledge/chart`.

    Args:
        named: name of a built-in style, or path or `s3://` URI of a file.
        credentials: of S3; None for those of the environment.

    Raises:
        ImageQAError: there is no such style, or its file is broken.
    """
    if match := _FILE.fullmatch(named):
        file = read_style(match["path"], credentials)
        if file.head.name in style_names():
            raise ImageQAError(
                f"{file.where}: its name is that of the built-in style {file.head.name}; choose "
                "another name"
            )
    else:
        match = _BUILT_IN.fullmatch(named)
        if not match or match["name"] not in built_in_names():
            raise ImageQAError(
                f"there is no style {printable(named, 100)!r}: give one of "
                f"{', '.join(style_names())}, or the path or s3:// URI of a style file (.md)"
            )
        file = read_built_in(match["name"])
    return file, _pinned(file, match["pin"])


def _pinned(file: StyleFile, value: str | None) -> dict[str, str]:
    if value is None:
        return {}
    found = [name for name, texts in file.head.draw.items() if value in texts]
    if not found:
        values = [value for texts in file.head.draw.values() for value in texts]
        hint = f"there are {printable(', '.join(values), 300)}" if values else "it draws nothing"
        raise ImageQAError(f"style {file.head.name} has no value {printable(value, 60)!r}: {hint}")
    return {found[0]: value}


def _open_one(named: str, settings: StyleSettings, credentials: S3Credentials | None) -> OpenStyle:
    if named == CHAT:
        return _open_function(chat_prompt, settings)
    file, pinned = find_style_file(named, credentials)
    answering = None
    if settings.questions_only:
        if "questions" not in file.sections:
            raise ImageQAError(
                f"style {file.head.name} cannot ask for questions only, because it has no section "
                "`# questions`: let it answer them too, or choose another style"
            )
        # A schema of the user describes what the first pass gets: questions.
        answering = FileStyle(file, replace(settings, schema=None), "answer", pinned)
    style = FileStyle(file, settings, "questions" if settings.questions_only else "user", pinned)
    _check_used(style, "language", settings.language)
    _check_used(style, "difficulty", settings.difficulty)
    columns = style.columns | (answering.columns if answering else frozenset())
    return OpenStyle(style.label, style, False, answering, columns, file.digest, style.variables)


def _check_used(style: FileStyle, name: str, value: str) -> None:
    if value and name not in style.uses:
        raise ImageQAError(
            f"style {style.label} does not use the {name}: leave it out, or write "
            f"{{{{ {name} }}}} into the style file"
        )


def _check_pairs(opened: list[OpenStyle], pairs: int | None) -> None:
    """Check that one of the styles asks for as many pairs as the run says."""
    asked = [style.style.pairs for style in opened if isinstance(style.style, FileStyle)]
    if pairs is not None and len(asked) == len(opened) and pairs not in asked:
        raise ImageQAError(
            f"style {opened[0].name} asks for {asked[0]} QA pair{'s' * (asked[0] > 1)} per image, "
            f"whatever the run says ({pairs}): leave out pairs_per_image, or choose style several"
        )


def _open_function(function: MessagesOf, settings: StyleSettings) -> OpenStyle:
    """The style `chat`, or that of a function: their prompts are the user's own."""
    label = CHAT if function is chat_prompt else _function_name(function)
    if settings.questions_only:
        raise ImageQAError(
            f"style {label} cannot ask for questions only: choose one with a section `# questions`"
        )
    for name, value in (("language", settings.language), ("difficulty", settings.difficulty)):
        if value:
            raise ImageQAError(
                f"style {label} has the prompts that it is given: put the {name} into the prompt, "
                "or choose another style"
            )
    style = chat_style if label == CHAT else style_of(function, label)
    if settings.json:
        style = _as_json(style, settings)
    return OpenStyle(label, style, uses_conversation=True)


def _as_json(style: Style, settings: StyleSettings) -> Style:
    """The style, whose last message also says that the reply should be JSON."""
    pairs = settings.pairs or 1
    instruction = settings.instruction(ReplyForm.PAIRS, pairs)
    options = settings.options(ReplyForm.PAIRS, pairs)

    def as_json(prompt_input: PromptInput) -> Rendered:
        rendered = style(prompt_input)
        *before, last = rendered.messages
        content = _with_text(last["content"], instruction)
        return replace(rendered, messages=(*before, {**last, "content": content}), options=options)

    return as_json


def _with_text(content: str | list[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """A message with another line of text; within its last text, since templates join parts."""
    if isinstance(content, str):
        return f"{content}\n{text}"
    *before, last = content
    if last["type"] != "text":
        return [*content, {"type": "text", "text": text}]
    return [*before, {**last, "text": f"{last['text']}\n{text}"}]


def _mix(opened: list[OpenStyle], weights: list[float], settings: StyleSettings) -> OpenStyle:
    """One style that draws one of several for each row."""
    labels = [f"{style.name}={weight:g}" for style, weight in zip(opened, weights, strict=True)]
    answering = [style.answering for style in opened if style.answering is not None]
    files = [style.style.file for style in opened if isinstance(style.style, FileStyle)]
    drawn_by = frozenset[str]().union(*(file.columns for file in files))
    return OpenStyle(
        ", ".join(labels),
        mixed_style([style.style for style in opened], weights, settings.seed, drawn_by),
        any(style.uses_conversation for style in opened),
        mixed_style(answering, weights, settings.seed, drawn_by) if answering else None,
        frozenset[str]().union(*(style.columns for style in opened)),
        canonical_digest([[style.digest for style in opened], weights]).hex(),
        frozenset[str]().union(*(style.variables for style in opened)),
    )


def _function_name(function: Callable[..., Any]) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
