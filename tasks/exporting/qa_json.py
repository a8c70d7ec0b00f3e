"""`qa.jsonl` and `qa.json`: the answered rows with their own columns and the raw completion."""

import base64
import json
import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from ..loading.columns import Columns
from ..records import Answered, Row
from .embedded import is_embedded, with_references

QA_JSONL = "qa.jsonl"
QA_JSON = "qa.json"

_MAX_UNSEARCHED = 65_536
"""Bytes: a longer line may contain an image in base64 that is not marked as such."""


class QAJsonWriter:
    """Writes the rows to `qa.jsonl` in a folder, and also as one array to `qa.json` if wanted.

    Embedded images are not copied: there are their names, digests and sizes instead.

    Args:
        folder: where the files are created.
        stack: closes them.
        columns: names the column for the raw completion, and the image column.
        json_array: whether to write `qa.json`.
    """

    def __init__(
        self, folder: Path, stack: ExitStack, columns: Columns, *, json_array: bool
    ) -> None:
        self._columns = columns
        self._lines = stack.enter_context((folder / QA_JSONL).open("wb"))
        self._array = stack.enter_context((folder / QA_JSON).open("wb")) if json_array else None
        self._separator = b"[\n"

    def add(self, row: Row, answer: Answered) -> None:
        """Write an answered row."""
        outputs = {self._columns.output: answer.text}
        if answer.reasoning:
            name = reasoning_name({*row.record, self._columns.output})
            outputs = {name: answer.reasoning, **outputs}
        line = self._line(row, outputs)
        self._lines.write(line + b"\n")
        if self._array:
            self._array.write(self._separator + line)
        self._separator = b",\n"

    def finish(self) -> None:
        """Write what ends the files; call it once, after the last row."""
        if self._array:
            self._array.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")

    def _line(self, row: Row, outputs: Mapping[str, str]) -> bytes:
        image = row.record.get(self._columns.image or "")
        if image is None or (isinstance(image, str) and not is_embedded(image)):
            # Most rows embed nothing, and need no closer look.
            try:
                line = orjson.dumps({**row.record, **outputs}, option=orjson.OPT_NON_STR_KEYS)
            except TypeError:  # there are bytes, or what only `dump_record` can write
                line = b""
            if line and len(line) < _MAX_UNSEARCHED and b"base64" not in line.lower():
                return line
        return dump_record({**with_references(row, self._columns), **outputs})


def reasoning_name(taken: Collection[str]) -> str:
    """The column for the model's reasoning, beside those whose names are taken."""
    name = "reasoning"
    while name in taken:
        name = f"model_{name}"
    return name


def dump_record(record: Mapping[str, Any]) -> bytes:
    """A record as one line of strict JSON; bytes become data URIs, which loading can read."""
    try:
        return orjson.dumps(record, default=json_default, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # orjson rejects numbers beyond 64 bits and lone surrogates; json does not
        return json.dumps(_without_nan(record), default=json_default).encode()


def json_default(value: Any) -> str:
    """Replace a value that JSON cannot represent: bytes by a data URI, others by their `str`."""
    if isinstance(value, bytes | bytearray):
        return "data:application/octet-stream;base64," + base64.b64encode(value).decode("ascii")
    return str(value)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, as orjson does."""
    if isinstance(value, Mapping):
        return {name: _without_nan(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
