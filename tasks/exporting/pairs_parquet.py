"""`pairs.parquet`: one row per question-answer pair."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ObjectCorruptedError
from ..records import Answered, QAPair, Row

PAIRS = "pairs.parquet"

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


class PairsWriter:
    """Writes the pairs of answered rows to `pairs.parquet` in a folder.

    Args:
        folder: where the file is created.
        stack: closes it.
        image_key: the image column, or None; its paths are written as they are in the dataset.
    """

    def __init__(self, folder: Path, stack: ExitStack, image_key: str | None) -> None:
        self.count = 0
        self._image_key = image_key
        self._group: list[dict[str, Any]] = []
        self._file = stack.enter_context(
            pq.ParquetWriter(folder / PAIRS, PAIRS_SCHEMA, compression="zstd")
        )

    def add(self, row: Row, answer: Answered) -> None:
        """Write the pairs of an answered row.

        Raises:
            ObjectCorruptedError: the stored answer does not consist of QA pairs.
        """
        images = [] if self._image_key is None else _image_names(row.record.get(self._image_key))
        for number, pair in enumerate(pairs_of(answer, row.where)):
            self.count += 1
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
            self.finish()

    def finish(self) -> None:
        """Write the pairs that are still in memory."""
        if self._group:
            self._file.write_table(pa.Table.from_pylist(self._group, schema=PAIRS_SCHEMA))
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
