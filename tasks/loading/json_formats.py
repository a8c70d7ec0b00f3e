"""JSON arrays and JSON lines -> records, streamed."""

import io
import json
from collections.abc import Iterator
from typing import Any

import orjson

from ..records import Kind, Problem, Record
from .json_arrays import array_items
from .long_records import read_lines

LocatedRecord = tuple[str, Record | Problem]
"""A location within a file (":17", "[16]") and the record there, or why it cannot be read."""

MAX_DEPTH = 100
"""Maximum nesting of a record: deeper ones could not be written as JSON again."""

_BATCH_REQUEST = {"custom_id", "method", "url", "body"}
"""Fields of a line of an OpenAI batch."""

_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_MAX_VALUES = 4_000_000
"""Maximum number of values of a record: each takes up to 100 bytes of memory."""


def parse_json(text: bytes) -> Any:
    """Parse JSON strictly, except that NaN and Infinity, which Python writes, become None.

    Raises:
        ValueError: with a short reason.
    """
    if len(text) > _MAX_VALUES and text.count(b",") + text.count(b"[") > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES:,} values")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise ValueError(error.msg) from None
        try:
            value = json.loads(text, parse_constant=lambda _: None)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    return value


def _depth(value: Any) -> int:
    """Levels of containers; iterative, because the value may exceed Python's recursion limit."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def read_json_lines(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read one record per line; an invalid line affects only that line.

    Raises:
        ValueError: it is not UTF-8 text.
    """
    skip_bom(file)
    for number, line in read_lines(file):
        if isinstance(line, Problem):
            yield f":{number}", line
        elif line.strip():
            yield f":{number}", _parse_record(line, f"line {number}")


def read_json_array(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read the records of one array; an invalid one affects only that one.

    Raises:
        ValueError: it is not UTF-8 text, or the array is not closed.
    """
    skip_bom(file)
    for index, (item, nesting) in enumerate(array_items(file)):
        if isinstance(item, Problem):
            yield f"[{index}]", item
        elif nesting > MAX_DEPTH:
            yield f"[{index}]", Problem(Kind.BAD_ROW, f"the record is {_TOO_DEEP}")
        else:
            yield f"[{index}]", _parse_record(item, f"record {index} (from 0)")


def _parse_record(text: bytes, what: str) -> Record | Problem:
    try:
        value = parse_json(text)
    except ValueError as error:
        return Problem(Kind.BAD_ROW, f"{what} is not JSON: {error}")
    return record_or_problem(value)


def record_or_problem(value: Any) -> Record | Problem:
    """Use a parsed value as a record, which must be an object."""
    if not isinstance(value, dict):
        return Problem(Kind.BAD_ROW, f"the record is a {type(value).__name__}, not an object")
    if value.keys() == _BATCH_REQUEST and isinstance(value["body"], dict):
        messages = value["body"].get("messages")
        if isinstance(messages, list):  # the other settings are those of the run
            return {"custom_id": value["custom_id"], "messages": messages}
    return value


def batch_note(file: io.BufferedReader) -> str:
    """What is left out of an OpenAI batch, if the first line is one of its requests."""
    for _, record in read_json_lines(file):
        if not isinstance(record, Problem) and record.keys() == {"custom_id", "messages"}:
            return (
                "of an OpenAI batch, custom_id and messages are read; the model and the settings "
                "are those of the run"
            )
        break
    return ""


def skip_bom(file: io.BufferedReader) -> None:
    """Skip the byte order mark that Windows programs write before UTF-8 text.

    Raises:
        ValueError: it is UTF-16 text.
    """
    start = file.peek(3)[:3]
    if start == b"\xef\xbb\xbf":
        file.read(3)
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ValueError("it is UTF-16 text; save it as UTF-8")
