"""`qa.jsonl` and `qa.json`: the answered rows with their own columns and the raw completion."""

import base64
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from ..images.formats import sniff
from ..images.references import encode_png
from ..loading.columns import Columns
from ..records import Answered, Row, RowError

QA_JSONL = "qa.jsonl"
QA_JSON = "qa.json"


class QAJsonWriter:
    """Writes the rows to `qa.jsonl` in a folder, and also as one array to `qa.json` if wanted.

    Args:
        folder: where the files are created.
        stack: closes them.
        columns: names the column for the raw completion, and the image column, whose embedded
            bytes become data URIs.
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
        record = {**row.record, self._columns.output: answer.text}
        line = dump_record(record, self._columns.image)
        self._lines.write(line + b"\n")
        if self._array:
            self._array.write(self._separator + line)
        self._separator = b",\n"

    def finish(self) -> None:
        """Write what ends the files; call it once, after the last row."""
        if self._array:
            self._array.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")


def dump_record(record: Mapping[str, Any], image_key: str | None) -> bytes:
    """A record as one line of strict JSON; bytes become data URIs, which loading can read."""
    plain = {
        name: _image_value(value) if name == image_key else value for name, value in record.items()
    }
    try:
        return orjson.dumps(plain, default=json_default, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # orjson rejects numbers beyond 64 bits and lone surrogates; json does not
        return json.dumps(_without_nan(plain), default=json_default).encode()


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


def _image_value(value: Any) -> Any:
    if isinstance(value, Image.Image):
        value = encode_png(value)
    if isinstance(value, bytes):
        encoded = base64.b64encode(value).decode("ascii")
        return f"data:{_mime(value)};base64,{encoded}"
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return _image_value(value["bytes"])
    if isinstance(value, list):
        return [_image_value(item) for item in value]
    return value


def _mime(data: bytes) -> str:
    try:
        return f"image/{sniff(data)[0].lower()}"
    except RowError:
        return "application/octet-stream"
