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

_USUAL = {
    *("image", "images", "image_path", "image_url"),
    *("conversation", "conversations", "messages", "question"),
}
"""Names that a single record may have."""

_MANY = 3
"""So many objects in one object are records, also if their names differ."""

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


def _first_members(text: str, *, nested: bool = False) -> dict[str, Any]:
    """The members at the start of an object; the last of them may be cut off."""
    decoder = json.JSONDecoder(strict=False)
    members: dict[str, Any] = {}
    position = text.find("{") + 1
    while match := re.compile(r'\s*+,?\s*+(?=")').match(text, position):
        try:
            name, position = decoder.raw_decode(text, match.end())
        except ValueError:
            break
        position = re.compile(r"\s*+:?\s*+").match(text, position).end()  # type: ignore[union-attr] # matches always
        try:
            members[name], position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            if start := _start_of_value(text, position, nested=nested):
                members[name] = start[0]
            break
    return members


def _start_of_value(text: str, position: int, *, nested: bool) -> list[Any]:
    """The first item of a list that is cut off, or the first members of an object.

    None stands for any other value; there is nothing if too little can be seen.
    """
    if text[position : position + 1] == "{" and not nested:
        members = _first_members(text[position:], nested=True)
        return [members] if members else []
    item = re.compile(r"\[\s*+").match(text, position)
    try:
        first = [json.JSONDecoder(strict=False).raw_decode(text, item.end())[0]] if item else None
    except (ValueError, RecursionError):
        first = None
    return [first] if position < len(text) else []


def _table_kind(members: Mapping[str, Any]) -> str:
    """What an object is that holds a whole table, and what to do; empty if it is none."""
    lists = {name: _keys_of_first(value) for name, value in members.items()}
    if "file_name" in lists.get("images", ()):
        return f"COCO annotations: {_NOT_RECORDS}; {_to_lines('images')}"
    if "image_id" in lists.get("questions", ()):
        what = f"VQA questions: {_NOT_RECORDS}; {_to_lines('questions')}"
        return f"{what}, and add the path of each image"
    if isinstance(members.get("columns"), list) and (
        "data" in members or isinstance(members.get("index"), list)
    ):
        return _from_pandas(", orient='split'")
    if members and all(value and isinstance(value, dict) for value in members.values()):
        return _object_kind(members)
    name = next((name for name in _LISTS if lists.get(name)), None)
    if name is None or not _USUAL.isdisjoint(members):
        return ""
    return f"{_NOT_RECORDS}, which are in its {printable(name)!r}; {_to_lines(name)}"


def _object_kind(members: Mapping[str, Mapping[str, Any]]) -> str:
    """What an object of objects is; empty if it may be one record."""
    if all(name.isdigit() for value in members.values() for name in value):
        return _from_pandas("")
    values = list(members.values())
    are_alike = len(values) > 1 and all(value.keys() == values[0].keys() for value in values[:-1])
    are_alike = are_alike and values[-1].keys() <= values[0].keys()  # the last may be cut off
    if are_alike and list(members)[:2] == ["0", "1"]:
        return _from_pandas(", orient='index'")
    if _USUAL.isdisjoint(members) and (are_alike or len(values) >= _MANY):
        return f"records by their ids: {_NOT_RECORDS}; {_to_lines('', ids=True)}"
    return ""


def _keys_of_first(value: Any) -> tuple[str, ...]:
    """The keys of the first item of a list of objects."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return tuple(value[0])
    return ()


def _to_lines(name: str, *, ids: bool = False) -> str:
    rows = f"json.dumps(r)) for r in json.load(open('FILE'))['{name}']"
    if ids:
        rows = "json.dumps({'id': i, **r})) for i, r in json.load(open('FILE')).items()"
    code = f"import json; [print({rows}]"
    return f'write them as JSON lines: python -c "{code}" > rows.jsonl'


def _from_pandas(orient: str) -> str:
    return (
        f"a table as pandas' to_json() writes it: {_NOT_RECORDS}; in pandas: "
        f"pd.read_json('FILE'{orient}).to_json('rows.jsonl', orient='records', lines=True)"
    )
