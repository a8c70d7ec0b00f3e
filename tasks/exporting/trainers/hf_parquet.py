"""Parquet files that `datasets` loads with pictures, and the Hub's viewer shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .conversations import Conversation, ConversationImage
from .json_records import messages_of

_GROUP_BYTES = 32 << 20
"""Of images and texts in a row group, which is in memory as a whole; the viewer wants < 100 MB."""

_GROUP_ROWS = 10_000

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Exactly this type, or `datasets` ignores that the column holds images."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

_FIELDS = [
    ("id", pa.string()),
    ("messages", _MESSAGES),
    ("question", pa.string()),
    ("answer", pa.string()),
    ("type", pa.string()),
    ("options", pa.list_(pa.string())),
    ("correct", pa.string()),
    ("language", pa.string()),
    ("reasoning", pa.string()),
    ("style", pa.string()),
    ("row", pa.int64()),
    ("key", pa.string()),
]


def hf_schema(*, has_many: bool) -> pa.Schema:
    """The schema of all files: `image`, or a list `images` where any conversation has several."""
    if has_many:
        # Not "List", which earlier versions do not know.
        feature = {"feature": {"_type": "Image"}, "_type": "Sequence"}
        name, image_type = "images", pa.list_(_IMAGE)
    else:
        feature, name, image_type = {"_type": "Image"}, "image", _IMAGE
    schema = pa.schema([(name, image_type), *_FIELDS])
    features = json.dumps({"info": {"features": {name: feature}}})
    return schema.with_metadata({"huggingface": features})


class ParquetFile:
    """A Parquet file of conversations; an image that several of them share is stored once a group.

    Attributes:
        bytes: of images and texts written so far.
    """

    def __init__(self, path: Path, *, has_many: bool) -> None:
        self.bytes = 0
        self._has_many = has_many
        self._schema = hf_schema(has_many=has_many)
        self._rows: list[Mapping[str, Any]] = []
        self._group_bytes = 0
        # An image that several conversations share is in a row group once, in its dictionary.
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            dictionary_pagesize_limit=2 * _GROUP_BYTES,
            write_page_index=True,
        )

    def add(self, conversation: Conversation) -> None:
        """Write a conversation."""
        images = [_cell(image) for image in conversation.images]
        image = images if self._has_many else (images[0] if images else None)
        messages = messages_of(conversation.turns())
        self._rows.append(
            {
                "images" if self._has_many else "image": image,
                "id": conversation.id,
                "messages": messages,
                **conversation.columns(),
            }
        )
        size = sum(len(image.data) for image in conversation.images)
        size += sum(len(message["content"]) for message in messages)
        self.bytes += size
        self._group_bytes += size
        if self._group_bytes >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._write_group(self._rows)

    def close(self) -> None:
        """Complete the file."""
        self._write_group(self._rows)
        self._writer.close()

    def _write_group(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            table = pa.Table.from_pylist(list(rows), schema=self._schema)
            self._writer.write_table(table, row_group_size=len(rows))
        self._rows, self._group_bytes = [], 0


def _cell(image: ConversationImage) -> Mapping[str, Any]:
    return {"bytes": image.data or None, "path": image.path}
