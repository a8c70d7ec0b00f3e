"""Finds parsers: built-in, registered by a package, or allowed by an operator.

A parameter only ever names one of these, and never code: whoever may start a run must not be able
to have a worker import and call what he likes.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from ...serving.printable import printable
from ..errors import ImageQAError
from ..parsing.parse import PairParser
from ..parsing.qa_pairs import parse_answer, parse_qa_pairs

PARSERS: Mapping[str, PairParser] = {"qa_pairs": parse_qa_pairs, "answer": parse_answer}

ENTRY_POINT_GROUP = "prefect_imageqa.plugins"
"""Packages register parsers in this group, as `parser.NAME`."""

ALLOWED_VARIABLE = "PREFECT_IMAGEQA_ALLOWED_PLUGINS"
"""Environment variable in which an operator allows `package.module:function`, several separated by
spaces."""

_PREFIX = "parser."
_MAX_NAME = 100


def find_parser(named: str | PairParser) -> tuple[str, PairParser]:
    """Name and function of a parser, given by the name of a known one or as a function.

    Raises:
        ImageQAError: there is no such parser, or it cannot be found again by a name.
    """
    if not isinstance(named, str):
        return parser_name(named), named
    if named in PARSERS:
        return named, PARSERS[named]
    # Results are stored under the name of the function, however it is called here.
    registered = _registered()
    allowed = os.environ.get(ALLOWED_VARIABLE, "").split()
    target = registered.get(named) or (named if named in allowed else "")
    if not target:
        names = ", ".join(sorted({*PARSERS, *registered}))
        raise ImageQAError(
            f"there is no parser {printable(named, _MAX_NAME)!r}: give one of {names}, or in "
            f"Python the function itself; {ALLOWED_VARIABLE} allows functions by name"
        )
    return target, _load(target)


def import_parser(named: str) -> str | Callable[..., Any]:
    """The parser that a person names who may run any code here anyway, as on the command line.

    Args:
        named: `package.module:function`, which is imported; any other name is returned.

    Raises:
        ImageQAError: there is no such function.
    """
    return _load(named) if ":" in named else named


def parser_name(named: str | PairParser) -> str:
    """The name of a parser, given by that or as a function.

    Raises:
        ImageQAError: the function cannot be found again by a name.
    """
    if isinstance(named, str):
        return named
    built_in = (name for name, function in PARSERS.items() if named is function)
    return next(built_in, "") or _import_name(named)


def _registered() -> dict[str, str]:
    """The parsers of installed packages: name -> `package.module:function`."""
    return {
        entry.name.removeprefix(_PREFIX): f"{entry.module}:{entry.attr}"
        for entry in entry_points(group=ENTRY_POINT_GROUP)
        if entry.name.startswith(_PREFIX)
    }


def _load(target: str) -> Any:
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
            f"cannot load the parser {printable(target, _MAX_NAME)!r} ({error}): give "
            "package.module:function, which can be imported"
        ) from None
    return function


def _import_name(function: Callable[..., Any]) -> str:
    """The name of a parser of one's own; it must mean the same function in later runs."""
    name = getattr(function, "__qualname__", "")
    # Every script is called __main__: a function of another script would have the same name.
    if not name or "<" in name or function.__module__ == "__main__":
        raise ImageQAError(
            "the parser must be a function of an importable module, because stored rows refer to "
            f"it by name; {name or type(function).__name__} is not"
        )
    return f"{function.__module__}:{name}"
