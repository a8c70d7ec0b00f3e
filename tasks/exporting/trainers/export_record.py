"""The record of an export, `export.json` in its folder, by which the folder is known as ours."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ObjectCorruptedError, ObjectMissingError
from ...object_store.store import ObjectStore
from ...runs.exports import ExportFormat, ExportImages

EXPORT = "export"
"""Folder of the exports for training in an output."""

RECORD = "export.json"

RECORDS = tuple(f"{EXPORT}/{name}/{RECORD}" for name in get_args(ExportFormat))
"""Names of the records of all formats in an output."""

MAX_RECORD_BYTES = 64 << 20

OWN_NAME = re.compile(
    r"^(?:(?:data/)?(?:train|validation)(?:-\d+)?\.(?:json|jsonl|parquet|tar)"
    r"|dataset_info\.json|README\.md|images/[0-9a-f]{64}\.(?:jpg|png))$"
)
"""Names of files that an export writes."""

_Name = Annotated[str, Field(pattern=OWN_NAME.pattern)]
_Count = Annotated[int, Field(ge=0)]


class SplitCounts(BaseModel):
    """What a split has; of its files, the size of each in bytes, and a digest of them all."""

    model_config = ConfigDict(frozen=True)

    conversations: _Count = 0
    pairs: _Count = 0
    files: tuple[_Name, ...] = ()
    sizes: tuple[_Count, ...] = ()
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""


class LeftOut(BaseModel):
    """Why conversations are not in an export: the first of them names the reason in full."""

    model_config = ConfigDict(frozen=True)

    reason: Literal["control_text", "image", "both_splits"]
    conversations: _Count
    first: str


class ExportRecord(BaseModel):
    """What an export has.

    Attributes:
        format: the format.
        state: whether it is complete; one that was killed stays "writing".
        images: how it has images.
        validation: share of the images that are for validation.
        seed: of the split.
        has_many: whether any row has several images.
        copies: number of image files beside the records.
        splits: what each split has.
        extras: names of further files.
        left_out: conversations that it does not have.
    """

    model_config = ConfigDict(frozen=True)

    format: ExportFormat
    state: Literal["writing", "complete"]
    images: ExportImages
    validation: float = 0.0
    seed: int = 0
    has_many: bool = False
    copies: _Count = 0
    splits: Mapping[Literal["train", "validation"], SplitCounts] = Field(default_factory=dict)
    extras: tuple[_Name, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def files(self) -> Sequence[str]:
        """Names of all its files but copies of images."""
        return [*(name for split in self.splits.values() for name in split.files), *self.extras]

    @property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of each file with conversations."""
        pairs = (zip(s.files, s.sizes, strict=False) for s in self.splits.values())
        return dict(chain.from_iterable(pairs))

    def write(self, store: ObjectStore) -> None:
        """Store it in the folder of the export."""
        store.write(RECORD, json.dumps(self.model_dump(mode="json"), indent=2).encode())


def split_lines(record: ExportRecord) -> Iterator[str]:
    """A line for each split: what it has."""
    for name, split in record.splits.items():
        what = _counted(split.conversations, "conversation"), _counted(split.pairs, "pair")
        yield f"{name}: {', '.join(what)}, in {_counted(len(split.files), 'file')}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def read_record(store: ObjectStore) -> ExportRecord | None:
    """The record in the folder of an export; None if there is none.

    Raises:
        StoreError: the folder cannot be read, or its record is not one.
    """
    try:
        content = store.read(RECORD, MAX_RECORD_BYTES)
    except ObjectMissingError:
        return None
    try:
        return ExportRecord.model_validate_json(content)
    except (ValidationError, ValueError):
        raise ObjectCorruptedError(
            f"{store.uri_of(RECORD)} is not the record of an export: delete the folder, or choose "
            "another one"
        ) from None


def read_exports(output: ObjectStore) -> list[ExportRecord]:
    """The records of the complete exports of an output; those that are corrupted are skipped.

    Raises:
        StoreError: the output cannot be read.
    """
    found = []
    for name in get_args(ExportFormat):
        with suppress(ObjectCorruptedError):
            record = read_record(export_folder(output, name))
            if record is not None and record.state == "complete":
                found.append(record)
    return found


def export_folder(output: ObjectStore, name: ExportFormat) -> ObjectStore:
    """The folder of a format in an output."""
    return output.with_uri(output.uri_of(f"{EXPORT}/{name}"))
