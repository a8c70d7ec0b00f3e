"""CSV cells that hold a list or an object: JSON, or as Python and numpy print one."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from ...serving.printable import printable
from .json_formats import MAX_DEPTH, parse_json

_ESCAPE = r"\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3})"
_TOKEN = re.compile(
    rf"""(?P<text>b?(?:'(?:[^'\\\n]|{_ESCAPE})*+'|"(?:[^"\\\n]|{_ESCAPE})*+"))
    |(?P<number>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+(?![\w.]))
    |(?P<call>(?:np\.|numpy\.)?(?:array|str_|bytes_|int\d+|float\d+|bool_?)\()
    |(?P<keyword>,\s*dtype=[\w.<>|'"]+)
    |(?P<name>[-+]?(?:np\.)?[A-Za-z_]\w*+|<NA>)
    |(?P<mark>\.\.\.|[\[\]{{}}(),:])""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_NAMES = {
    **dict.fromkeys(("None", "null", "nan", "NaN", "np.nan", "<NA>", "NaT"), None),
    **dict.fromkeys(("inf", "-inf", "np.inf", "-np.inf"), None),
    **dict.fromkeys(("True", "true", "np.True_"), True),
    **dict.fromkeys(("False", "false", "np.False_"), False),
}

# Text such as "[Music] a cat" or "{name}, hello" is plain text; but "[{'from': 'hum" was cut off.
_OPENS = re.compile(r"""\[[\s\[(]*+(?:b?['"]|\{\s*+['"]|array\()|\{\s*+['"]|array\(""")
_NESTED = re.compile(r"""\[\s*+\{\s*+['"]|\{\s*+['"][^'"]*+['"]\s*+:""")

_MAX_INTEGER = 2**63

Token = tuple[str, str, int]
"""Kind, text and position."""


def parse_cell(text: str) -> Any:
    r"""The list or object that a cell holds, or the text itself if it looks like neither.

    Read are JSON, and what `pandas.to_csv` writes for lists, dicts, bytes and numpy arrays, such
    as `[{'from': 'human', 'value': None}]`, `['a.png' 'b.png']` and `{'bytes': b'\x89PNG'}`.

    Raises:
        ValueError: it looks like a list or an object, but cannot be read; with a short reason.
    """
    cell = text.strip()
    closed = cell[:1] + cell[-1:] in {"[]", "{}"} or (cell[:6] == "array(" and cell[-1] == ")")
    sure = bool(_OPENS.match(cell)) and (closed or "]" not in cell or bool(_NESTED.match(cell)))
    if not (sure or closed):
        return text
    try:
        return parse_json(cell.encode())
    except ValueError:  # a lone surrogate too
        pass
    try:
        return _Literal(cell).value()
    except ValueError as error:
        if not sure:
            return text
        what = "an object" if cell[0] == "{" else "a list"
        raise ValueError(f"looks like {what}, but {error}; write it as JSON") from None


class _Literal:
    """A literal of Python or numpy, read without evaluating it.

    Not `ast.literal_eval`: it joins the two strings of numpy's `['a' 'b']` into one, and takes
    gigabytes for a list of a few million items.
    """

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next: Token = next(self._tokens)

    def value(self) -> Any:
        """The value of the whole text."""
        value = self._value(0)
        if self._next[0] != "end":
            raise _unexpected(self._next)
        return value

    def _take(self) -> Token:
        token = self._next
        if token[0] == "end":
            raise ValueError("it is cut off")
        self._next = next(self._tokens)
        return token

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        token = kind, text, position = self._take()
        if kind == "text":
            try:
                return ast.literal_eval(text)
            except (SyntaxError, ValueError):  # a letter such as é in bytes, a surrogate
                message = f"the text at character {position + 1} is not valid"
                raise ValueError(message) from None
        if kind == "number":
            return _number(text)
        if kind == "name" and text in _NAMES:
            return _NAMES[text]
        if kind == "call":
            return self._argument(depth)
        if text == "[":
            return self._items("]", depth)
        if text == "(":
            return self._items(")", depth)
        if text == "{":
            return self._members(depth)
        if text == "...":
            raise ValueError("numpy has left out items (...)")
        raise _unexpected(token)

    def _argument(self, depth: int) -> Any:
        value = self._value(depth + 1)
        while self._next[0] == "keyword":
            self._take()
        self._expect(")")
        return value

    def _items(self, end: str, depth: int) -> list[Any]:
        items: list[Any] = []
        has_commas = None  # numpy writes none; Python would join strings without one
        while self._next[1] != end:
            items.append(self._value(depth + 1))
            comma = self._next[1] == ","
            if comma:
                self._take()
            elif self._next[1] == end:
                break
            if has_commas is not None and comma != has_commas:
                raise _unexpected(self._next)
            has_commas = comma
        self._expect(end)
        return items

    def _members(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self._next[1] != "}":
            name = self._value(depth + 1)
            self._expect(":")
            members[name if isinstance(name, str) else str(name)] = self._value(depth + 1)
            if self._next[1] != "}":
                self._expect(",")
        self._expect("}")
        return members

    def _expect(self, text: str) -> None:
        token = self._take()
        if token[1] != text or token[0] == "text":
            raise _unexpected(token)


def _tokens(text: str) -> Iterator[Token]:
    position = 0
    while (position := _SPACE.match(text, position).end()) < len(text):  # type: ignore[union-attr] # matches always
        match = _TOKEN.match(text, position)
        if match is None and text[position] in "'\"":
            raise ValueError(f"the text at character {position + 1} is not closed")
        if match is None:
            raise _unexpected(("", text[position : position + 20], position))
        yield str(match.lastgroup), match[0], position
        position = match.end()
    while True:
        yield "end", "", position


def _unexpected(token: Token) -> ValueError:
    _, text, position = token
    if not text:
        return ValueError("it is cut off")
    return ValueError(f"has an unexpected {printable(text, 20)!r} at character {position + 1}")


def _number(text: str) -> int | float:
    """As JSON lines are read: an integer of more than 64 bits becomes a float."""
    if not text.lstrip("+-").isdigit() or len(text) > 20:
        return float(text)
    value = int(text)
    return value if -_MAX_INTEGER <= value < _MAX_INTEGER else float(value)
