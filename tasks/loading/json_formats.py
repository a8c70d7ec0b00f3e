"""JSON arrays and JSON lines -> records, streamed."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import ijson
import orjson
from ijson.common import ObjectBuilder

from ..records import Kind, Problem, Record

LocatedRecord = tuple[str, Record | Problem]
"""A location within a file (":17", "[16]") and the record there, or why it cannot be read."""

MAX_DEPTH = 100
"""Maximum nesting of a record: deeper ones could not be written as JSON again."""

_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_MAX_LINE_BYTES = 16 << 20
"""Bytes of a line that are read to distinguish JSON lines from one large object."""

_ERROR_COLUMN = 39
"""Column of the first invalid byte in the excerpt of the parser's error message."""


def parse_json(text: bytes) -> Any:
    """Parse JSON strictly, except that NaN and Infinity, which Python writes, become None.

    Raises:
        ValueError: with a short reason.
    """
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


def record_or_problem(value: Any) -> Record | Problem:
    """Use a parsed value as a record, which must be an object."""
    if isinstance(value, dict):
        return value
    return Problem(Kind.BAD_ROW, f"the record is a {type(value).__name__}, not an object")


def read_json_lines(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read one record per line; an invalid line affects only that line."""
    skip_bom(file)
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield f":{number}", record_or_problem(parse_json(line))
        except ValueError as error:
            yield f":{number}", Problem(Kind.BAD_ROW, f"line {number} is not JSON: {error}")


def read_json_array(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read the records of one array.

    Raises:
        ValueError: the array is invalid; nothing after that position can be read.
    """
    skip_bom(file)
    try:
        for index, value in enumerate(_array_items(file)):
            yield f"[{index}]", value if isinstance(value, Problem) else record_or_problem(value)
    except ijson.JSONError as error:
        raise ValueError(_array_reason(error.args[0])) from None


def _array_reason(reason: bytes | str) -> str:
    """The parser's multi-line message as one line, with a remedy if there is one."""
    text = reason if isinstance(reason, bytes) else reason.encode()
    what, _, near = text.partition(b"\n")
    excerpt = " ".join(near.split(b"(right here)")[0].decode("utf-8", "replace").split())
    message = what.decode("utf-8", "replace") + (f" near {excerpt!r}" if excerpt else "")
    for constant in ("NaN", "Infinity", "-Infinity"):
        if near[_ERROR_COLUMN:].startswith(constant.encode()):
            remedy = f"write null, or use JSON lines, where {constant} is read as missing"
            return f"{constant} is not JSON: {remedy} ({message})"
    if b"integer overflow" in what:
        remedy = "write it as text, or use JSON lines, where it is read as a float"
        return f"an integer of more than 64 bits: {remedy} ({message})"
    return message


def _array_items(file: io.BufferedReader) -> Iterator[Any]:
    """The items of an array, built from parser events.

    Not `ijson.items`: for every event, it builds a path string proportional to the nesting, so a
    file of 100,000 brackets used up all memory.
    """
    builder, depth, too_deep = ObjectBuilder(), 0, False
    for event, value in ijson.basic_parse(file, use_float=True):
        starts = event in {"start_map", "start_array"}
        if event in {"end_map", "end_array"}:
            depth -= 1
        too_deep = too_deep or (starts and depth > MAX_DEPTH)
        if depth and not too_deep:
            builder.event(event, value)
        if starts:
            depth += 1
        elif depth == 1:
            yield Problem(Kind.BAD_ROW, f"the record is {_TOO_DEEP}") if too_deep else builder.value
            builder, too_deep = ObjectBuilder(), False


def is_json_array(file: io.BufferedReader) -> bool:
    """Whether a `.json` file is one array; otherwise it has one object per line.

    Raises:
        ValueError: it is neither.
    """
    skip_bom(file)
    while (start := file.read(1)) and start.isspace():
        pass
    if start in {b"[", b""}:
        return bool(start)
    if start != b"{":
        raise ValueError("neither a JSON array nor JSON lines")
    line = start + file.readline(_MAX_LINE_BYTES)
    if not (_is_object(line) or _is_json_lines(line, file)):
        raise ValueError("one JSON object, not a list of records; put the records in [ ]")
    return False


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _is_json_lines(first: bytes, rest: io.BufferedReader) -> bool:
    """Distinguish JSON lines whose first line is invalid from one object on several lines.

    An object may itself contain lines that are complete objects, so these only count if the text as
    a whole is not one object.
    """
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    valid, has_object_line = True, False
    for line in chain([first], iter(partial(rest.readline, _MAX_LINE_BYTES), b"")):
        has_object_line = has_object_line or (line.startswith(b"{") and _is_object(line))
        valid = valid and _accepts(parser.send, line)
        events.clear()
        if has_object_line and not valid:
            return True
    return has_object_line and not _accepts(parser.close)


def _accepts(parse: Callable[..., object], *text: bytes) -> bool:
    try:
        parse(*text)
    except ijson.JSONError:
        return False
    return True


def skip_bom(file: io.BufferedReader) -> None:
    """Skip the byte order mark that Windows programs write before UTF-8 text."""
    if file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
