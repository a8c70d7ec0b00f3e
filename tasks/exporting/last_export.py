"""Knows whether the exports in an output are already those that a run would write.

`pairs/exported.json` has a digest of what they were made from, and a stamp of each file. A file
that is missing, or that somebody has changed, has another stamp, and is written again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ObjectCorruptedError, ObjectMissingError
from ..object_store.store import ObjectStore
from ..prompting.keys import canonical_digest
from ..runs.run_counts import RunCounts
from ..storing.key_index import packed_pieces
from ..storing.layout import EXPORTED, MAX_METADATA_BYTES
from ..storing.ledger import Ledger


class LastExport(BaseModel):
    """What a run has exported.

    Attributes:
        inputs: digest of what the exports were made from, see `export_inputs`.
        counts: of the exported rows and pairs.
        stamps: by the names of the files, see `ObjectStore.stamp`.
    """

    model_config = ConfigDict(frozen=True)

    inputs: str
    counts: RunCounts
    stamps: Mapping[str, str] = Field(default_factory=dict)

    def has(self, store: ObjectStore, names: Iterable[str]) -> bool:
        """Whether these files are in the output, and as they were written."""
        try:
            return all(self.stamps.get(name) == store.stamp(name) for name in names)
        except ObjectMissingError:
            return False

    def add(self, store: ObjectStore, names: Iterable[str]) -> None:
        """Record that these files, which are in the output, belong to the export."""
        stamps = {**self.stamps, **{name: store.stamp(name) for name in names}}
        content = self.model_copy(update={"stamps": stamps}).model_dump(mode="json")
        store.write(EXPORTED, json.dumps(content, indent=2).encode())


def last_export(store: ObjectStore) -> LastExport | None:
    """What a run has exported last; None if that is not known."""
    try:
        return LastExport.model_validate_json(store.read(EXPORTED, MAX_METADATA_BYTES))
    except (ObjectMissingError, ObjectCorruptedError, ValidationError):
        return None


def export_inputs(
    rows: bytes, settings: Mapping[str, Any], passes: Sequence[tuple[Ledger, Sequence[str]]]
) -> str:
    """Digest of everything that decides the content of the exports.

    Args:
        rows: digest of the dataset's rows, in order.
        settings: what is exported, and how.
        passes: the ledger of each pass, and the keys of its rows in order.
    """
    digest = hashlib.sha256(version("prefect-imageqa").encode())
    digest.update(rows)
    digest.update(canonical_digest(settings))
    for ledger, keys in passes:
        digest.update(ledger.folder.encode())  # another parser has read the replies otherwise
        for packed in packed_pieces(keys):
            found = ledger.rows.index.find(packed)
            # Of all copies of a row with this key, rank and kind tell which one counts.
            for array in (packed, found.known, found.locations["rank"], found.locations["kind"]):
                digest.update(array.tobytes())
    return digest.hexdigest()
