"""Whether a `.json` file is an array or JSON lines; if it is neither, what it is."""

import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import chain, islice
from typing import Any

from ...serving.printable import printable
from ..records import Problem
from .json_formats import parse_json, skip_bom
from .long_records import read_lines

OpenFile = Callable[[], AbstractContextManager[io.BufferedReader]]

_FIRST_LINES = 100
_HEAD_BYTES = 64 << 10

_LISTS = ("data", "rows", "records", "items", "examples", "samples", "instances", "annotations")
"""Names under which other tools write the list of their records."""

_NOT_RECORDS = "one JSON object, not a list of records"


def is_json_array(open_file: OpenFile) -> bool:
    """Whether a `.json` file is one array; otherwise it has one object per line.

    Args:
        open_file: opens it at its start, more than once.

    Raises:
        ValueError: it is neither, with what it is and how to turn it into rows.
    """
    with open_file() as file:
        skip_bom(file)
        while (start := file.peek(1)[:1]) and start.isspace():
            file.read(1)
        if start in {b"[", b""}:
            return bool(start)
        if start != b"{":
            raise ValueError("neither a JSON array nor JSON lines")
        is_lines = _is_json_lines(file)
    if is_lines:
        return False
    with open_file() as file:
        skip_bom(file)
        what = _table_kind(_first_members(file.read(_HEAD_BYTES).decode("utf-8", "replace")))
    if is_lines is None and not what:
        return False
    raise ValueError(what or f"{_NOT_RECORDS}; put the records in [ ]")


def _is_json_lines(file: io.BufferedReader) -> bool | None:
    """Whether there is one object per line; None if there is just one, maybe of a whole table.

    If the first line is broken, others decide. An object on several lines has few lines that are
    an object by themselves, if any: others end in a comma.
    """
    lines = (line for _, line in read_lines(file) if isinstance(line, Problem) or line.strip())
    is_first_object = _is_object(next(lines))
    second = next(lines, None)
    if second is None:
        return None if is_first_object else False
    if is_first_object:
        return True
    are_objects = [_is_object(line) for line in chain([second], islice(lines, _FIRST_LINES - 2))]
    return 2 * sum(are_objects) > len(are_objects)


def _is_object(line: bytes | Problem) -> bool:
    try:
        return not isinstance(line, Problem) and isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _first_members(text: str) -> dict[str, Any]:
    """The members at the start of an object; of a long list, only the first item."""
    decoder = json.JSONDecoder(strict=False)
    members: dict[str, Any] = {}
    name, position = "", text.find("{") + 1
    try:
        while match := re.compile(r'\s*+,?\s*+(?=")').match(text, position):
            name, position = decoder.raw_decode(text, match.end())
            position = re.compile(r"\s*+:?\s*+").match(text, position).end()  # type: ignore[union-attr] # matches always
            members[name], position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError):
        try:
            item = re.compile(r"\[\s*+").match(text, position)
            members[name] = [decoder.raw_decode(text, item.end())[0]] if item else None
        except (ValueError, RecursionError):
            members[name] = None
    return members


def _table_kind(members: Mapping[str, Any]) -> str:
    """What an object is that holds a whole table, and what to do; empty if it is none."""
    lists = {name: _keys_of_first(value) for name, value in members.items()}
    if "file_name" in lists.get("images", ()):
        return f"COCO annotations: {_NOT_RECORDS}; {_to_lines('images')}"
    if "image_id" in lists.get("questions", ()):
        what = f"VQA questions: {_NOT_RECORDS}; {_to_lines('questions')}"
        return f"{what}, and add the path of each image"
    if members.keys() >= {"columns", "data"} and isinstance(members["columns"], list):
        return _from_pandas(", orient='split'")
    columns = [value for value in members.values() if isinstance(value, dict)]
    if columns and len(columns) == len(members) and len({tuple(c) for c in columns}) == 1:
        if all(name.isdigit() for name in columns[0]):
            return _from_pandas("")
        if len(members) > 1:
            return _from_pandas(", orient='index'")
    name = next((name for name in _LISTS if lists.get(name)), None)
    if name is None or not {"image", "images", "messages", "conversations"}.isdisjoint(members):
        return ""
    return f"{_NOT_RECORDS}, which are in its {printable(name)!r}; {_to_lines(name)}"


def _keys_of_first(value: Any) -> tuple[str, ...]:
    """The keys of the first item of a list of objects."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return tuple(value[0])
    return ()


def _to_lines(name: str) -> str:
    code = f"import json; [print(json.dumps(r)) for r in json.load(open('FILE'))['{name}']]"
    return f'write them as JSON lines: python -c "{code}" > rows.jsonl'


def _from_pandas(orient: str) -> str:
    return (
        f"a table as pandas' to_json() writes it: {_NOT_RECORDS}; in pandas: "
        f"pd.read_json('FILE'{orient}).to_json('rows.jsonl', orient='records', lines=True)"
    )
