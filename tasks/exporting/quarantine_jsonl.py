"""`quarantine.jsonl`: every row that could not be answered, with the reason."""

import json
from contextlib import ExitStack
from pathlib import Path

from ..loading.columns import Columns
from ..records import Quarantined, Row
from .embedded import image_names

QUARANTINE_JSONL = "quarantine.jsonl"


class QuarantineWriter:
    """Writes quarantined rows to `quarantine.jsonl` in a folder; `stack` closes the file."""

    def __init__(self, folder: Path, stack: ExitStack, columns: Columns) -> None:
        self._columns = columns
        self._lines = stack.enter_context((folder / QUARANTINE_JSONL).open("wb"))

    def add(self, row: Row, failure: Quarantined) -> None:
        """Write a row, or one question of an answered row, that could not be answered."""
        record = {
            "row": row.index,
            "where": failure.where if failure.question else row.where,
            "question": failure.question or None,
            "image": image_names(row, self._columns),
            "kind": failure.kind,
            "message": failure.message,
            "status": failure.status,
            "attempts": failure.attempts,
            "text": failure.text,
            "key": failure.key,
        }
        self._lines.write(json.dumps(record).encode() + b"\n")
