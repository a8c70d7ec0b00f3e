"""`rows.parquet` and `pairs.parquet`: the answered rows, and their question-answer pairs.

Both carry the dataset's own small columns, so that they can be joined with it. `rows.parquet` has
the same rows as `qa.jsonl`, but one schema.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ..errors import ObjectCorruptedError
from ..records import Answered, QAPair, Row
from .dataset_columns import COLUMN_TYPES, DatasetColumns
from .growing_parquet import GrowingFile

PAIRS = "pairs.parquet"
ROWS = "rows.parquet"

_ROW_FIELDS = [("row", pa.int64()), ("key", pa.string()), ("image", pa.list_(pa.string()))]

ROWS_SCHEMA = pa.schema([*_ROW_FIELDS, ("reply", pa.string()), ("reasoning", pa.string())])
"""The columns of `rows.parquet`, before those of the dataset."""

PAIRS_SCHEMA = pa.schema(
    [
        *_ROW_FIELDS[:2],
        ("pair", pa.int32()),
        _ROW_FIELDS[2],
        ("question", pa.string()),
        ("answer", pa.string()),
        ("type", pa.string()),
        ("options", pa.list_(pa.string())),
        ("correct", pa.string()),
        ("turn", pa.int32()),
        ("language", pa.string()),
        ("reasoning", pa.string()),
        ("style", pa.string()),
        ("image_digest", pa.string()),
    ]
)
"""The columns of `pairs.parquet`, before those of the dataset; null where a pair has nothing."""

LATER_CHECKS = b"later_checks"
"""Metadata of the judged pairs: `COLUMN=COUNT` of each column of a check, of how many pairs it was
not made, since the condition dropped them before."""

FILTERED_BY = "filtered_by"
"""The last column of the filtered pairs: the part of the condition that a pair does not meet, the
column without a result, or the limit."""

OWN_NAMES = frozenset((*ROWS_SCHEMA.names, *PAIRS_SCHEMA.names, FILTERED_BY))

_PER_GROUP = 4096
_CHARACTERS_PER_GROUP = 8_000_000
"""Row groups are written when there are more rows, pairs or characters."""


@dataclass
class _Group:
    """Rows and pairs in memory, by column."""

    rows: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image_ends: list[int] = field(default_factory=lambda: [0])
    replies: list[str] = field(default_factory=list)
    reasonings: list[str | None] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    pairs: list[QAPair] = field(default_factory=list)
    styles: list[str | None] = field(default_factory=list)
    digests: list[str | None] = field(default_factory=list)


class ParquetWriter:
    """Writes `rows.parquet` and `pairs.parquet` in a folder.

    Args:
        folder: where the files are created.
        stack: closes them.
        columns: the dataset's own columns.
    """

    def __init__(self, folder: Path, stack: ExitStack, columns: DatasetColumns) -> None:
        self.pairs = 0
        self._columns = columns
        self._rows_file = GrowingFile(folder / ROWS, stack)
        self._pairs_file = GrowingFile(folder / PAIRS, stack)
        self._group = _Group()
        self._size = 0

    def add(
        self,
        row: Row,
        answer: Answered,
        pairs: Sequence[QAPair],
        images: Sequence[str],
        digest: str = "",
    ) -> None:
        """Write an answered row, and those of its pairs that are exported.

        Args:
            row: the row.
            answer: its answer.
            pairs: those of its pairs that are exported.
            images: names of its images.
            digest: of its images; empty if it has none.
        """
        group, position = self._group, len(self._group.rows)
        reply = encodable(answer.text)
        group.rows.append(row.index)
        group.keys.append(answer.key)
        group.images += images
        group.image_ends.append(len(group.images))
        group.replies.append(reply)
        group.reasonings.append(encodable(answer.reasoning) or None)
        size = len(reply) + len(answer.reasoning) + self._columns.add(row.record)
        for pair in pairs:
            size += len(pair.question) + len(pair.answer) + len(pair.reasoning)
            size += sum(map(len, pair.options))
        count = len(pairs)
        group.positions += [position] * count
        group.numbers += range(count)
        group.pairs += pairs
        group.styles += [encodable(answer.style) or None] * count
        group.digests += [digest or None] * count
        self._size += size
        if (
            position + 1 >= _PER_GROUP
            or len(group.numbers) >= _PER_GROUP
            or self._size >= _CHARACTERS_PER_GROUP
        ):
            self._write_group()

    def finish(self) -> None:
        """Write the rows that are still in memory, and complete the files."""
        self._write_group()
        self._rows_file.finish()
        self._pairs_file.finish()

    def _write_group(self) -> None:
        group = self._group
        fields, own = self._columns.take()
        of_row = [pa.array(group.rows, pa.int64()), pa.array(group.keys, pa.string())]
        of_row.append(
            pa.ListArray.from_arrays(group.image_ends, pa.array(group.images, pa.string()))
        )
        texts = [pa.array(group.replies, pa.string()), pa.array(group.reasonings, pa.string())]
        arrays = [*of_row, *texts, *own]
        schema = pa.schema([*ROWS_SCHEMA, *fields])
        self._rows_file.write(pa.Table.from_arrays(arrays, schema=schema))
        row_of_pair = pa.array(group.positions, pa.int64())
        row, key, image, *own = (array.take(row_of_pair) for array in (*of_row, *own))
        number = pa.array(group.numbers, pa.int32())
        last = [pa.array(values, pa.string()) for values in (group.styles, group.digests)]
        arrays = [row, key, number, image, *pair_columns(group.pairs).values(), *last, *own]
        schema = pa.schema([*PAIRS_SCHEMA, *fields])
        self._pairs_file.write(pa.Table.from_arrays(arrays, schema=schema))
        self.pairs += len(group.numbers)
        self._group, self._size = _Group(), 0


def later_checks(schema: pa.Schema) -> Mapping[str, int]:
    """The columns and counts in LATER_CHECKS. What is dropped adds up: a later check has more."""
    text = (schema.metadata or {}).get(LATER_CHECKS, b"").decode(errors="replace")
    return {column: int(count) for column, count in re.findall(r"([^\s=]+)=([0-9]{1,15})\b", text)}


def pair_columns(pairs: Sequence[QAPair]) -> dict[str, pa.Array]:
    """The columns of `PAIRS_SCHEMA` from the question to the reasoning, by name."""

    def column(name: str) -> pa.Array:
        values = [getattr(pair, name) or None for pair in pairs]
        return pa.array(values, PAIRS_SCHEMA.field(name).type)

    first, last = (PAIRS_SCHEMA.get_field_index(name) for name in ("question", "style"))
    return {name: column(name) for name in PAIRS_SCHEMA.names[first:last]}


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


_TYPES = COLUMN_TYPES | {pa.int8(), pa.int32(), pa.float32(), pa.list_(pa.string())}
"""The types that the columns of the dataset and of checks may have."""


def dataset_fields(schema: pa.Schema, own: pa.Schema) -> list[pa.Field]:
    """The columns in a Parquet export that follow the export's `own`: of checks, of the dataset.

    Raises:
        ValueError: there are other columns, or of other types, than an export has.
    """
    fields = list(schema)
    if not pa.schema(fields[: len(own)]).equals(own):
        raise ValueError("unexpected columns")
    if not _TYPES.issuperset(field.type for field in fields[len(own) :]):
        raise ValueError("unexpected types of columns")
    return fields[len(own) :]


def encodable(text: str) -> str:
    """A text without halves of surrogate pairs."""
    # JSON allows half a surrogate pair in a reply, but an Arrow string does not.
    return text if text.isascii() else text.encode(errors="replace").decode()
