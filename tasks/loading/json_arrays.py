"""The text of one JSON array -> the texts of its items, streamed.

An event parser such as ijson stops at the first mistake, holds a string of any length in memory,
and knows neither NaN nor integers of more than 64 bits.
"""

import io
import re
from collections.abc import Iterator

from ..records import Problem
from .long_records import MAX_RECORD_BYTES, too_long

_CHUNK_BYTES = 1 << 16

_IN_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
# Up to the next bracket, or in the array itself also comma, outside of complete strings.
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"' + _IN_STRING + rb'")*+', re.DOTALL)
_TO_COMMA = re.compile(rb'(?:[^"\[\]{},]++|"' + _IN_STRING + rb'")*+', re.DOTALL)
_TO_QUOTE = re.compile(_IN_STRING, re.DOTALL)
_QUOTE, _COMMA = b'",'
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


def array_items(file: io.BufferedReader) -> Iterator[tuple[bytes | Problem, int]]:
    """Split an array into the texts of its items, valid or not, each with its nesting.

    Of an item that is too long, only the problem is returned.

    Args:
        file: at the start of the array; only white space may come before it.

    Raises:
        ValueError: the array is not closed, or is not the only value.
    """
    array = _Array()
    while not array.closed:
        if not (chunk := file.read(_CHUNK_BYTES)):
            raise ValueError(
                f"the text ends within record {array.count} (from 0): a quote or bracket in it is "
                "not closed, or the file is cut off"
            )
        yield from array.feed(chunk)
    if array.rest.strip() or any(chunk.strip() for chunk in iter(lambda: file.read(1 << 16), b"")):
        raise ValueError("there is text after the end of the array")


class _Array:
    """An array of which a part has been read.

    Attributes:
        count: number of items so far.
        closed: whether its end was found.
        rest: text after the end.
    """

    def __init__(self) -> None:
        self.count = 0
        self.closed = False
        self.rest = b""
        self._depth = 0
        self._nesting = 0  # of the current item
        self._in_string = False
        self._after_backslash = False
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes | Problem, int]]:
        """Read the next part of the text; returns the items that end in it."""
        start, position = 0, int(self._after_backslash)
        self._after_backslash = False
        while (position := self._skip(chunk, position)) < len(chunk):
            mark = chunk[position]
            position += 1
            if self._in_string:  # at its end, or at a backslash before the next chunk
                self._in_string = self._after_backslash = mark != _QUOTE
            elif mark == _QUOTE:
                self._in_string = True
            elif mark in _OPENING:
                self._depth += 1
                self._nesting = max(self._nesting, self._depth - 1)
                start = position if self._depth == 1 else start
            elif mark in _CLOSING:
                self._depth -= 1
            if self._depth == 0 or (mark == _COMMA and self._depth == 1 and not self._in_string):
                self.closed = self._depth == 0
                yield from self._item(chunk[start : position - 1])
                start = position
            if self.closed:
                self.rest = chunk[position:]
                return
        self._keep(chunk[start:])

    def _skip(self, chunk: bytes, position: int) -> int:
        """The position of the next character that may matter."""
        if self._in_string:
            end = chunk.find(b'"', position)
            end = len(chunk) if end < 0 else end
            if chunk.find(b"\\", position, end) < 0:  # faster than the pattern
                return end
        outside = _TO_COMMA if self._depth == 1 else _TO_BRACKET
        pattern = _TO_QUOTE if self._in_string else outside
        match = pattern.match(chunk, position)
        return match.end() if match else position

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_RECORD_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _item(self, part: bytes) -> Iterator[tuple[bytes | Problem, int]]:
        self._keep(part)
        text = b"".join(self._parts)
        if self._size > MAX_RECORD_BYTES:
            yield too_long(f"record {self.count} (from 0)", self._size), self._nesting
        elif text.strip() or not self.closed:  # nothing may come after the last comma
            yield text, self._nesting
        self.count += 1
        self._parts, self._size, self._nesting = [], 0, 0
