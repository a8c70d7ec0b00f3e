"""Finds prompt styles and parsers by name: built-in ones and custom functions."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import ImageQAError
from ..parsing.labelled_text import parse_qa_pairs
from ..parsing.parse import PairParser
from ..prompting.prompts import PromptStyle, chat_prompt

F = TypeVar("F", bound=Callable[..., Any])

PROMPT_STYLES: Mapping[str, PromptStyle] = {"chat": chat_prompt}
PARSERS: Mapping[str, PairParser] = {"qa_pairs": parse_qa_pairs}


def find_prompt_style(named: str | PromptStyle) -> tuple[str, PromptStyle]:
    """Name and callable of a prompt style: built-in, `package.module:function`, or a callable."""
    return _find("prompt style", named, PROMPT_STYLES)


def find_parser(named: str | PairParser) -> tuple[str, PairParser]:
    """Name and callable of a parser: built-in, `package.module:function`, or a callable."""
    return _find("parser", named, PARSERS)


def plugin_name(what: str, named: str | F, known: Mapping[str, F]) -> str:
    """The name of a plug-in.

    Args:
        what: what it is, for the error message.
        named: its name, or the callable.
        known: the built-in ones.

    Raises:
        ImageQAError: the callable cannot be found again by a name.
    """
    if isinstance(named, str):
        return named
    built_in = (name for name, function in known.items() if named is function)
    return next(built_in, "") or _import_name(what, named)


def _find(what: str, named: str | F, known: Mapping[str, F]) -> tuple[str, F]:
    if not isinstance(named, str):
        return plugin_name(what, named, known), named
    if named in known:
        return named, known[named]
    module, _, attribute = named.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise TypeError("not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ImageQAError(
            f"there is no {what} {named!r} ({error}): use a built-in one ({', '.join(known)}) or "
            "package.module:function"
        ) from None
    return named, function


def _import_name(what: str, function: Callable[..., Any]) -> str:
    """The name of a callable in row keys; it must mean the same function in later runs."""
    name = getattr(function, "__qualname__", "")
    # Every script is called __main__: a function of another script would have the same name.
    if not name or "<" in name or function.__module__ == "__main__":
        raise ImageQAError(
            f"the {what} must be a function of an importable module, because stored rows refer to "
            f"it by name; {name or type(function).__name__} is not"
        )
    return f"{function.__module__}:{name}"
