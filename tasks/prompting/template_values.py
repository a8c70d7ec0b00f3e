"""What templates see: a row's columns as plain data of bounded size, and filters over it."""

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import filters
from jinja2.runtime import Undefined
from PIL import Image

from ...serving.printable import printable
from ..loading.cells import parse_cell
from ..records import Kind, RowError

MAX_VALUE = 100_000
"""Characters of a column, where each item of a list or an object counts as ten more."""

_ITEM = 10
_MAX_NESTING = 20
_PRINTED = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def plain_value(column: str, value: Any) -> Any:
    """The value of a column as text, number, truth value, None, or lists and dicts of these.

    An empty cell of a table is None, as NaN.

    Raises:
        RowError: it is an image, too large, or something else.
    """
    try:
        return _plain(value, [MAX_VALUE], 0)
    except ValueError as error:
        raise RowError(Kind.BAD_ROW, f"column {printable(column, 60)!r} {error}") from None


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    budget[0] -= _ITEM + (len(value) if isinstance(value, str | bytes) else 0)
    if budget[0] < 0 or depth > _MAX_NESTING:
        raise ValueError(f"is too long for a prompt (over {MAX_VALUE:,} characters)")
    match value:
        case None | bool() | int():
            return value
        case float():
            return None if math.isnan(value) else value
        case str() if value[:11].lower() == "data:image/":
            raise ValueError(_IMAGE)
        case str():
            return str(value)
        case bytes() | bytearray() | Image.Image():
            raise ValueError(_IMAGE)
        case Mapping():
            items = [(_name(name, budget), item) for name, item in value.items()]
            return {name: _plain(item, budget, depth + 1) for name, item in items}
        case Sequence():
            return [_plain(item, budget, depth + 1) for item in value]
        case _ if isinstance(value, _PRINTED):
            return str(value)
    if getattr(value, "size", MAX_VALUE) < MAX_VALUE and hasattr(value, "tolist"):  # of numpy
        return _plain(value.tolist(), budget, depth + 1)
    raise ValueError(f"holds a {type(value).__name__}, which is no text")


def _name(name: Any, budget: list[int]) -> str:
    text = str(name)
    budget[0] -= len(text)
    return text


_IMAGE = "holds an image, which goes beside the prompt and not into its text"


def shown(value: Any) -> Any:
    """A value as it is printed: an empty cell as nothing, lists and objects as JSON."""
    if isinstance(value, dict | list | tuple):
        return _joined(_JSON.iterencode(value))
    return "" if value is None else value


_JSON = json.JSONEncoder(ensure_ascii=False)


def _joined(texts: Iterable[str], between: str = "") -> str:
    """One text; an error as soon as it becomes too long, since a template can repeat columns."""
    kept, length = list[str](), 0
    for text in texts:
        kept.append(text)
        length += len(text) + len(between)
        _check_length(length)
    return between.join(kept)


def loop_items(value: Any) -> Sequence[Any]:
    """The items of a list, which a cell of a CSV file holds as text."""
    if isinstance(value, Undefined):
        return list(value)  # raises the error that names it
    value = parse_cell(_text(value)) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, but there is a {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return {"str": "text", "NoneType": "cell without a value"}.get(
        type(value).__name__, type(value).__name__
    )


def _text(value: Any) -> str:
    text = str(shown(value))
    _check_length(len(text))
    return text


def concatenated(values: Sequence[Any]) -> str:
    """The texts of some values one after the other: what the operator `~` gives."""
    return _joined(map(_text, values))


def _join(value: Any, separator: Any = "") -> str:
    return _joined(map(_text, loop_items(value)), _text(separator))


def _replace(value: Any, old: Any, new: Any) -> str:
    text, old, new = _text(value), _text(old), _text(new)
    _check_length(len(text) + (text.count(old) if old else len(text)) * len(new))
    return text.replace(old, new)


def _check_length(length: int) -> None:
    if length > MAX_VALUE:
        raise ValueError(f"a text becomes over {MAX_VALUE:,} characters long")


def _truncate(value: Any, length: int = 255) -> str:
    text = _text(value)
    return text if len(text) <= length else f"{text[: max(length - 3, 0)].rstrip()}..."


def _length(value: Any) -> int:
    return len(value)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "capitalize": lambda value: _text(value).capitalize(),
    "default": filters.do_default,
    "first": lambda value: next(iter(loop_items(value)), None),
    "join": _join,
    "last": lambda value: next(reversed(loop_items(value)), None),
    "length": _length,
    "lower": lambda value: _text(value).lower(),
    "replace": _replace,
    "title": lambda value: filters.do_title(_text(value)),
    "trim": lambda value: _text(value).strip(),
    "truncate": _truncate,
    "upper": lambda value: _text(value).upper(),
}
"""What a template may apply to a value with `|`."""
