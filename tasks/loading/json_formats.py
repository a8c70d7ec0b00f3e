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
"""A place inside a file (":17", "[16]") and the record there, or why there is none."""

MAX_DEPTH = 100
"""Levels of nesting in one record; what is deeper could not be written out as JSON again."""

_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
_MAX_LINE_BYTES = 16 << 20
"""Bytes of a line looked at to tell JSON lines from one large object."""

_ERROR_COLUMN = 39
"""Where the parser's excerpt, in its error message, shows the first wrong byte."""


def parse_json(text: bytes) -> Any:
    """Parse JSON strictly, except that NaN and Infinity, as Python writes them, are None.

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
    """Levels of containers; a loop, as the value may be deeper than Python recurses."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def record_or_problem(value: Any) -> Record | Problem:
    """Take a parsed value as a record; only an object is one."""
    if isinstance(value, dict):
        return value
    return Problem(Kind.BAD_ROW, f"the record is a {type(value).__name__}, not an object")


def read_json_lines(file: io.BufferedReader) -> Iterator[LocatedRecord]:
    """Read one record a line; a broken line costs that line."""
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
        ValueError: the array is broken; nothing after that place can be read.
    """
    skip_bom(file)
    try:
        for index, value in enumerate(_array_items(file)):
            yield f"[{index}]", value if isinstance(value, Problem) else record_or_problem(value)
    except ijson.JSONError as error:
        raise ValueError(_array_reason(error.args[0])) from None


def _array_reason(reason: bytes | str) -> str:
    """The parser's message of several lines as one, with the remedy where there is one."""
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
    """The items of an array, built from events.

    `ijson.items` would build a path string as long as the nesting is deep for every event: a file
    of 100,000 brackets took all memory there is.
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
    """Tell a `.json` file that is one array from one with an object a line.

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
    if not (_is_object(line) or _are_lines(line, file)):
        raise ValueError("one JSON object, not a list of records; put the records into [ ]")
    return False


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _are_lines(first: bytes, rest: io.BufferedReader) -> bool:
    """Tell JSON lines whose first line is broken from one object spread over several lines.

    An object may hold whole objects on lines of their own, so text that parses as one is no lines.
    """
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    whole, found = True, False
    for line in chain([first], iter(partial(rest.readline, _MAX_LINE_BYTES), b"")):
        found = found or (line.startswith(b"{") and _is_object(line))
        whole = whole and _takes(parser.send, line)
        events.clear()
        if found and not whole:
            return True
    return found and not _takes(parser.close)


def _takes(parse: Callable[..., object], *text: bytes) -> bool:
    try:
        parse(*text)
    except ijson.JSONError:
        return False
    return True


def skip_bom(file: io.BufferedReader) -> None:
    """Move past the mark that Windows programs put before UTF-8 text."""
    if file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
