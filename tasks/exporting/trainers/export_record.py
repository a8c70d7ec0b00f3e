"""The record of an export, `export.json` in its folder, by which the folder is known as ours."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import ObjectCorruptedError, ObjectMissingError, StoreError
from ...object_store.store import ObjectStore
from ...runs.exports import ExportFormat, ExportImages
from .images import IMAGES

EXPORT = "export"
"""Folder of the exports for training in an output."""

RECORD = "export.json"

_MAX_RECORD_BYTES = 64 << 20

_OWN_NAME = re.compile(
    r"^(?:(?:data/)?(?:train|validation)(?:-\d+)?\.(?:json|jsonl|parquet|tar)"
    r"|dataset_info\.json|README\.md|images/[0-9a-f]{64}\.(?:jpg|png))$"
)
"""Names of files that an export writes."""

_Name = Annotated[str, Field(pattern=_OWN_NAME.pattern)]
_Count = Annotated[int, Field(ge=0)]


class SplitCounts(BaseModel):
    """What a split has."""

    model_config = ConfigDict(frozen=True)

    conversations: _Count = 0
    pairs: _Count = 0
    files: tuple[_Name, ...] = ()


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
        content = store.read(RECORD, _MAX_RECORD_BYTES)
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


def check_folder(store: ObjectStore, extras: Callable[[ExportRecord], Mapping[str, bytes]]) -> None:
    """Refuse a folder with files that no export has written, or that somebody has changed since.

    Args:
        store: the folder.
        extras: the files beside the records, such as a README.md, for the record of an export.

    Raises:
        StoreError: there is one; or the folder cannot be read.
    """
    record, names = read_record(store), store.list()
    foreign: list[str] = []
    if record is None:
        foreign = names
    elif record.state == "complete":
        known = {RECORD, *record.files}
        foreign = [name for name in names if name not in known and _is_replaced(name)]
        foreign += [
            name
            for name, content in extras(record).items()
            if name in names and store.read(name, _MAX_RECORD_BYTES) != content
        ]
    if foreign:
        raise StoreError(
            f"{store.uri_of(foreign[0])} is not as an export has written it, and would be "
            "replaced: move it away, or choose another folder"
        )


def remove_others(store: ObjectStore, record: ExportRecord, is_copy: Callable[[str], bool]) -> None:
    """Remove files of earlier exports in the folder that the last one does not have."""
    known = {RECORD, *record.files}
    for name in store.list():
        if name.startswith(f"{IMAGES}/"):
            if _OWN_NAME.fullmatch(name) and not is_copy(name):
                store.remove(name)
        elif name not in known and _is_replaced(name):
            store.remove(name)


def _is_replaced(name: str) -> bool:
    return bool(_OWN_NAME.fullmatch(name)) and not name.startswith(f"{IMAGES}/")
