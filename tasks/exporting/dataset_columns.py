"""The dataset's own small columns, as typed columns of the Parquet exports.

Records of JSON files may have any value anywhere. A column of the exports has one type that fits
all its values: texts if they are mixed. Lists and objects become JSON. Images, conversations and
columns with a long text are left out: they are in `qa.jsonl`.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Any

import pyarrow as pa

from ..records import Record

MAX_TEXT = 1000
"""A column with a longer text, in characters, is left out: pairs would repeat it."""

MAX_COLUMNS = 100
"""Columns after these are left out."""

_MAX_NAME = 255
_EXACT = 2**53
"""Larger integers have no exact floating-point number."""

_PREFIX = "dataset_"


class _Kind(Enum):
    """The values of a column so far."""

    EMPTY = auto()
    BOOL = auto()
    INTEGER = auto()
    LARGE_INTEGER = auto()
    NUMBER = auto()
    TEXT = auto()
    LEFT_OUT = auto()


_TYPES = {
    _Kind.EMPTY: pa.string(),
    _Kind.BOOL: pa.bool_(),
    _Kind.INTEGER: pa.int64(),
    _Kind.LARGE_INTEGER: pa.int64(),
    _Kind.NUMBER: pa.float64(),
    _Kind.TEXT: pa.string(),
}

COLUMN_TYPES = frozenset(_TYPES.values())
"""The types that the columns may have."""

_KIND_OF_TYPE: Mapping[type, _Kind] = {
    type(None): _Kind.EMPTY,
    bool: _Kind.BOOL,
    int: _Kind.INTEGER,
    float: _Kind.NUMBER,
    str: _Kind.TEXT,
}


class DatasetColumns:
    """The dataset's own small columns; their number and their types may change with every row.

    Args:
        left_out: columns that are not wanted.
        reserved: names that an export uses itself: a column with one of them is renamed.
    """

    def __init__(self, left_out: Collection[str], reserved: Collection[str]) -> None:
        self._kinds: dict[str, _Kind] = dict.fromkeys(left_out, _Kind.LEFT_OUT)
        self._reserved = reserved
        self._count = 0
        self._rows: list[dict[str, Any]] = []

    def add(self, record: Record) -> int:
        """Add the columns of a row; returns how many characters they take in memory."""
        cells: dict[str, Any] = {}
        size = 0
        kinds = self._kinds
        for name, value in record.items():
            known = kinds.get(name)
            if known is _Kind.LEFT_OUT or (known is None and self._count == MAX_COLUMNS):
                continue
            # Short cuts for the most frequent values.
            if known is _Kind.TEXT and type(value) is str and len(value) <= MAX_TEXT:
                size += len(value)
            elif known is not _Kind.NUMBER or type(value) is not float or value != value:
                kind, value = _cell(value)
                if kind is not known:
                    self._widen(name, known, kind)
                if kind is _Kind.TEXT:
                    size += len(value)
            cells[name] = value
        self._rows.append(cells)
        return size

    def take(self) -> tuple[list[pa.Field], list[pa.Array]]:
        """Take the rows that have been added: their columns and values; types may widen later."""
        kinds = {name: kind for name, kind in self._kinds.items() if kind is not _Kind.LEFT_OUT}
        fields = [pa.field(self._exported(name), _TYPES[kind]) for name, kind in kinds.items()]
        arrays = [
            column_array([cells.get(name) for cells in self._rows], field.type)
            for name, field in zip(kinds, fields, strict=True)
        ]
        self._rows.clear()
        return fields, arrays

    def _widen(self, name: str, known: _Kind | None, kind: _Kind) -> None:
        """Take a value of another kind into account."""
        if known is None:
            self._count += 1
            if len(name) > _MAX_NAME or not _is_encodable(name):
                kind = _Kind.LEFT_OUT
        else:
            kind = _joined(known, kind)
        self._kinds[name] = kind

    def _exported(self, name: str) -> str:
        # Names that are prefixed already get one prefix more: no two columns get the same name.
        taken = name
        while taken.startswith(_PREFIX):
            taken = taken.removeprefix(_PREFIX)
        return f"{_PREFIX}{name}" if taken in self._reserved else name


def column_array(cells: Sequence[Any], of_type: pa.DataType) -> pa.Array:
    """The cells of a column as an array of a type that fits them all."""
    try:
        return pa.array(cells, of_type)
    except (pa.ArrowException, UnicodeEncodeError):  # not all are texts, or valid ones
        return pa.array([None if cell is None else _text(cell) for cell in cells], of_type)


def _cell(value: Any) -> tuple[_Kind, Any]:
    """A value with its kind; None if it is missing or must be left out."""
    kind = _KIND_OF_TYPE.get(type(value))
    if kind is _Kind.TEXT:
        return (kind, value) if len(value) <= MAX_TEXT else (_Kind.LEFT_OUT, None)
    if kind is _Kind.INTEGER:
        if -_EXACT <= value <= _EXACT:
            return kind, value
        return (_Kind.LARGE_INTEGER, value) if -(2**63) <= value < 2**63 else _other_cell(value)
    if kind is _Kind.NUMBER and math.isnan(value):
        return _Kind.EMPTY, None
    return _other_cell(value) if kind is None else (kind, value)


def _other_cell(value: Any) -> tuple[_Kind, Any]:
    """A list or an object as JSON, anything else as text; embedded data is left out."""
    try:
        if isinstance(value, Mapping | list | tuple):
            text = json.dumps(value, ensure_ascii=False)
        else:
            text = "" if isinstance(value, bytes | bytearray) else str(value)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text or len(text) > MAX_TEXT:
        return _Kind.LEFT_OUT, None
    return _Kind.TEXT, text


def _joined(known: _Kind, kind: _Kind) -> _Kind:
    """A kind that fits the values of both."""
    kinds = {known, kind} - {_Kind.EMPTY}
    if _Kind.LEFT_OUT in kinds:
        return _Kind.LEFT_OUT
    if len(kinds) == 1:
        return kinds.pop()
    if kinds == {_Kind.INTEGER, _Kind.LARGE_INTEGER}:
        return _Kind.LARGE_INTEGER
    return _Kind.NUMBER if kinds == {_Kind.INTEGER, _Kind.NUMBER} else _Kind.TEXT


def _text(cell: Any) -> str:
    text = cell if isinstance(cell, str) else json.dumps(cell)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _is_encodable(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
