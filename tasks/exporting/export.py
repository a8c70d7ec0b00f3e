"""Writes the exports: `qa.jsonl`, `pairs.parquet`, `quarantine.jsonl`, and optionally `qa.json`."""

import base64
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from prefect import task

from ..concurrency import TASK_OPTIONS
from ..errors import ObjectCorruptedError, StoreError
from ..images.preparing import sniff
from ..images.references import encode_png
from ..loading.columns import Columns
from ..object_store.store import ObjectStore
from ..records import Answered, QAPair, Quarantined, Row, RowError
from ..runs.records import RunCounts
from ..storing.ledger import Ledger

QA_JSONL = "qa.jsonl"
QA_JSON = "qa.json"
PAIRS = "pairs.parquet"
QUARANTINE_JSONL = "quarantine.jsonl"

REWRITE_REMEDY = "run the same command again to rewrite it"
"""What to do if an export is corrupted."""

ALWAYS_EXPORTED = (QA_JSONL, PAIRS, QUARANTINE_JSONL)

PAIRS_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("pair", pa.int32()),
        ("image", pa.list_(pa.string())),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)
_PAIRS_PER_GROUP = 4096


@task(name="export", task_run_name="export", **TASK_OPTIONS)
def export_rows(
    store: ObjectStore,
    ledger: Ledger,
    rows: Iterable[Row],
    keys: Sequence[str],
    columns: Columns,
    unchanged: Callable[[], bool] = lambda: True,
    json_array: bool = False,
) -> RunCounts:
    """Join the dataset with its answers, in dataset order, and replace the exports.

    Args:
        store: the output.
        ledger: has an answer or a failure for every key.
        rows: the dataset from its start, at least as many rows as keys.
        keys: the row keys, in dataset order.
        columns: names the column for the raw completion, and the image column, whose embedded
            bytes become data URIs.
        unchanged: whether the dataset is still the one the keys were made from.
        json_array: whether to write `qa.json` as well.

    Raises:
        StoreError: the dataset changed meanwhile, a row is neither answered nor quarantined, or
            the output cannot be read or written.
    """
    seen = pairs = 0
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="prefect-imageqa-") as folder, ExitStack() as stack:
        files = _Files(Path(folder), stack, json_array)
        for row, outcome in zip(rows, ledger.outcomes(keys), strict=False):
            seen += 1
            if isinstance(outcome, Answered):
                pairs += files.add_answer(row, outcome, columns)
            elif outcome is not None:
                reasons[outcome.kind] += 1
                files.add_failure(row, outcome)
            else:
                raise StoreError(f"{row.where} is neither answered nor quarantined")
        if seen != len(keys) or not unchanged():
            raise StoreError("the dataset changed during the run: run again")
        for name, path in files.close().items():
            store.put(name, path)
    quarantined = reasons.total()
    return RunCounts(
        rows=seen, ok=seen - quarantined, quarantined=quarantined, pairs=pairs, reasons=reasons
    )


class _Files:
    """The exports while they are written, on local disk."""

    def __init__(self, folder: Path, stack: ExitStack, json_array: bool) -> None:
        self._paths: dict[str, Path] = {}

        def create(name: str) -> BinaryIO:
            self._paths[name] = folder / name
            return stack.enter_context(self._paths[name].open("wb"))

        self._lines, self._failures = create(QA_JSONL), create(QUARANTINE_JSONL)
        self._array = create(QA_JSON) if json_array else None
        self._pairs = stack.enter_context(
            pq.ParquetWriter(create(PAIRS), PAIRS_SCHEMA, compression="zstd")
        )
        self._stack = stack
        self._group: list[dict[str, Any]] = []
        self._separator = b"[\n"

    def add_answer(self, row: Row, answer: Answered, columns: Columns) -> int:
        """Write an answered row; returns the number of its pairs."""
        record = dict(row.record)
        images = [] if columns.image is None else _image_names(record.get(columns.image))
        record[columns.output] = answer.text
        line = dump_record(record, columns.image)
        self._lines.write(line + b"\n")
        if self._array:
            self._array.write(self._separator + line)
        self._separator = b",\n"
        pairs = pairs_of(answer, row.where)
        for number, pair in enumerate(pairs):
            self._group.append(
                {
                    "row": row.index,
                    "key": answer.key,
                    "pair": number,
                    "image": images,
                    "question": pair.question,
                    "answer": pair.answer,
                }
            )
        if len(self._group) >= _PAIRS_PER_GROUP:
            self._write_group()
        return len(pairs)

    def add_failure(self, row: Row, failure: Quarantined) -> None:
        """Write a row that could not be answered."""
        record = {
            "row": row.index,
            "where": row.where,
            "kind": failure.kind,
            "message": failure.message,
            "status": failure.status,
            "attempts": failure.attempts,
            "text": failure.text,
            "key": failure.key,
        }
        self._failures.write(json.dumps(record).encode() + b"\n")

    def close(self) -> Mapping[str, Path]:
        """Finish the files; returns their paths by name of the export."""
        if self._array:
            self._array.write(b"[]\n" if self._separator == b"[\n" else b"\n]\n")
        self._write_group()
        self._stack.close()
        return self._paths

    def _write_group(self) -> None:
        if self._group:
            self._pairs.write_table(pa.Table.from_pylist(self._group, schema=PAIRS_SCHEMA))
            self._group.clear()


def pairs_of(answer: Answered, where: str) -> tuple[QAPair, ...]:
    """The QA pairs of an answer.

    Args:
        answer: the stored answer.
        where: names its row in the error.

    Raises:
        ObjectCorruptedError: the stored answer does not consist of QA pairs.
    """
    try:
        return answer.pairs
    except (TypeError, ValueError):
        raise ObjectCorruptedError(
            f"the stored answer to {where} is corrupted: run again with --refresh"
        ) from None


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


def _image_names(value: Any) -> list[str]:
    """Paths of a row's images as written in the dataset; embedded images have none."""
    if isinstance(value, str):
        # A file name need not be valid UTF-8, but an Arrow string must be.
        return (
            []
            if value.strip()[:5].lower() == "data:"
            else [value.encode(errors="replace").decode()]
        )
    if isinstance(value, Mapping):
        return _image_names(value.get("path"))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [name for item in value for name in _image_names(item)]
    return []
