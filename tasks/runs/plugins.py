"""Finds prompt styles and parsers: built-in, registered by a package, or allowed by an operator.

A parameter only ever names one of these, and never code: whoever may start a run must not be able
to have a worker import and call what he likes.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from ...serving.printable import printable
from ..errors import ImageQAError
from ..parsing.parse import PairParser
from ..parsing.qa_pairs import parse_answer, parse_qa_pairs
from ..prompting.prompts import PromptStyle, chat_prompt

F = TypeVar("F", bound=Callable[..., Any])
What = Literal["parser", "prompt style"]

PROMPT_STYLES: Mapping[str, PromptStyle] = {"chat": chat_prompt}
PARSERS: Mapping[str, PairParser] = {"qa_pairs": parse_qa_pairs, "answer": parse_answer}

ENTRY_POINT_GROUP = "prefect_imageqa.plugins"
"""Packages register plug-ins in this group, as `parser.NAME` or `prompt_style.NAME`."""

ALLOWED_VARIABLE = "PREFECT_IMAGEQA_ALLOWED_PLUGINS"
"""Environment variable in which an operator allows `package.module:function`, several separated by
spaces."""

_MAX_NAME = 100


def find_prompt_style(named: str | PromptStyle) -> tuple[str, PromptStyle]:
    """Name and callable of a prompt style, given by the name of a known one or as a callable."""
    return _find("prompt style", named, PROMPT_STYLES)


def find_parser(named: str | PairParser) -> tuple[str, PairParser]:
    """Name and callable of a parser, given by the name of a known one or as a callable."""
    return _find("parser", named, PARSERS)


def import_plugin(what: What, named: str) -> str | Callable[..., Any]:
    """What a person names who may run any code here anyway, as on the command line.

    Args:
        what: what it is.
        named: `package.module:function`, which is imported; any other name is returned.

    Raises:
        ImageQAError: there is no such function.
    """
    return _load(what, named) if ":" in named else named


def plugin_name(what: What, named: str | F, known: Mapping[str, F]) -> str:
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


def _find(what: What, named: str | F, known: Mapping[str, F]) -> tuple[str, F]:
    if not isinstance(named, str):
        return plugin_name(what, named, known), named
    if named in known:
        return named, known[named]
    # Results are stored under the name of the function, however it is called here.
    registered = _registered(what)
    allowed = os.environ.get(ALLOWED_VARIABLE, "").split()
    target = registered.get(named) or (named if named in allowed else "")
    if not target:
        names = ", ".join(sorted({*known, *registered}))
        raise ImageQAError(
            f"there is no {what} {printable(named, _MAX_NAME)!r}: give one of {names}, or in "
            f"Python the function itself; {ALLOWED_VARIABLE} allows functions by name"
        )
    return target, _load(what, target)


def _registered(what: What) -> dict[str, str]:
    """The plug-ins of installed packages: name -> `package.module:function`."""
    prefix = f"{what.replace(' ', '_')}."
    return {
        entry.name.removeprefix(prefix): f"{entry.module}:{entry.attr}"
        for entry in entry_points(group=ENTRY_POINT_GROUP)
        if entry.name.startswith(prefix)
    }


def _load(what: What, target: str) -> Any:
    """The function `package.module:function`."""
    module, _, path = target.partition(":")
    try:
        function: Any = importlib.import_module(module)
        for attribute in path.split("."):
            function = getattr(function, attribute)
        if not callable(function):
            raise TypeError("not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ImageQAError(
            f"cannot load the {what} {printable(target, _MAX_NAME)!r} ({error}): give "
            "package.module:function, which can be imported"
        ) from None
    return function


def _import_name(what: What, function: Callable[..., Any]) -> str:
    """The name of a callable in row keys; it must mean the same function in later runs."""
    name = getattr(function, "__qualname__", "")
    # Every script is called __main__: a function of another script would have the same name.
    if not name or "<" in name or function.__module__ == "__main__":
        raise ImageQAError(
            f"the {what} must be a function of an importable module, because stored rows refer to "
            f"it by name; {name or type(function).__name__} is not"
        )
    return f"{function.__module__}:{name}"
