"""Writes an output's conversations in one format, streamed, as a folder of its own."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prefect import task

from ....serving.printable import printable
from ...concurrency import TASK_OPTIONS, prefetch
from ...images.prepare import ImageSettings
from ...images.reader import ImageReader
from ...images.references import ImageBase
from ...loading.columns import Columns, read_value
from ...loading.conversations import read_conversation
from ...object_store.store import ObjectStore
from ...prompting.row_images import row_images
from ...records import Row, RowError
from ...runs.exports import EXPORT_IMAGES, ExportFormat, Exports
from ..row_pairs import RowPairs, join_rows, most_images, read_pairs
from .conversations import Conversation, ConversationImage, conversations_of
from .export_record import (
    ExportRecord,
    LeftOut,
    SplitCounts,
    export_folder,
    split_lines,
)
from .folder import check_folder, remove_extras, remove_others
from .formats import FORMATS
from .images import ImageExporter
from .shards import Shards
from .splits import Split, Splits

_LOGGER = logging.getLogger("prefect_imageqa.exporting")

_AHEAD = 16
"""Rows whose images are read ahead, each by a thread; their images are in memory."""

_SECONDS_PER_LINE = 60

_REASONS = {
    "control_text": "control text of trainers, such as <image> or <|im_start|>, in a question or "
    "an answer",
    "image": "an image that cannot be read",
    "both_splits": "images of both the training and the validation split",
}


@dataclass(frozen=True)
class ExportSource:
    """What is exported: the pairs of an output, and the dataset's rows, which have the images.

    Attributes:
        output: the output.
        rows: reads the dataset's rows from its start; None if they have no images.
        columns: which of their columns have images.
        base: what relative image paths are resolved against.
        reader: reads the images.
        limits: limits on what is decoded.
    """

    output: ObjectStore
    rows: Callable[[], Iterator[Row]] | None
    columns: Columns
    base: ImageBase
    reader: ImageReader
    limits: ImageSettings


def check_export_folders(output: ObjectStore, exports: Exports) -> None:
    """Refuse to export into folders with files that no export has written.

    Raises:
        StoreError: there is such a file, or the output cannot be read.
    """
    for name in exports.formats:
        check_folder(export_folder(output, name))


@task(name="export-for-training", task_run_name="export-{name}", **TASK_OPTIONS)
def export_for_training(source: ExportSource, name: ExportFormat, exports: Exports) -> ExportRecord:
    """Write an output's pairs in a format, into its folder there; see `write_export`."""
    target = export_folder(source.output, name)
    record = write_export(source, name, exports, target)
    _LOGGER.info("%s: %s", target.uri, "; ".join(split_lines(record)))
    for line in warning_lines(record):
        _LOGGER.warning("%s", line)
    return record


def write_export(
    source: ExportSource, name: ExportFormat, exports: Exports, target: ObjectStore
) -> ExportRecord:
    """Write an output's pairs in a format; an earlier export in the folder is replaced.

    Raises:
        DatasetError: the dataset is not that of the pairs, or cannot be read.
        StoreError: the folder has files of others, or something cannot be read or written.
    """
    replaces = check_folder(target)
    images = EXPORT_IMAGES[name][0] if exports.images == "auto" else exports.images
    record = ExportRecord(
        format=name,
        state="writing",
        images=images,
        validation=exports.validation,
        seed=exports.split_seed,
        has_many=most_images(source.output) > 1,
    )
    remove_extras(target)
    record.write(target)
    try:
        return _write(source, record, exports.shard_size, target, replaces=replaces)
    except _SeveralImagesError:  # in a conversation, whose images the pairs do not name
        record = record.model_copy(update={"has_many": True})
        return _write(source, record, exports.shard_size, target, replaces=True)


def _write(
    source: ExportSource,
    record: ExportRecord,
    shard_size: int | None,
    target: ObjectStore,
    *,
    replaces: bool,
) -> ExportRecord:
    """Write the files that a record announces, and complete it; maybe in place of others."""
    form = FORMATS[record.format]
    exporter = ImageExporter(
        record.images,
        source.reader,
        source.limits,
        target,
        source.base,
        identified=record.validation > 0,
    )
    with closing(_Writer(target, record, shard_size)) as writer:
        writer.write(_conversations(source, exporter, writer, record))
        record = writer.finish(exporter.copies)
    record.write(target)  # by which its extras are known
    extras = form.extras(record)
    for extra, content in extras.items():
        target.write(extra, content)
    record = record.model_copy(update={"state": "complete", "extras": tuple(extras)})
    record.write(target)
    if replaces:
        remove_others(target, record, exporter.is_copy)
    return record


def warning_lines(record: ExportRecord) -> Iterator[str]:
    """A line for each reason for which an export has less than one may expect."""
    yield from _left_out_lines(record)
    empty = [name for name, split in record.splits.items() if not split.conversations]
    if len(empty) == len(record.splits):
        yield f"export {record.format} has no conversation, and therefore no file of any"
    elif empty:
        less = "smaller" if empty == ["train"] else "larger"
        yield (
            f"export {record.format} has no {empty[0]} split: nothing has fallen to it; another "
            f"seed or a {less} share for validation may give one"
        )


def _left_out_lines(record: ExportRecord) -> Iterator[str]:
    """A line for each reason for which conversations are not in an export."""
    exported = sum(split.conversations for split in record.splits.values())
    total = exported + sum(left.conversations for left in record.left_out)
    for left in record.left_out:
        yield (
            f"export {record.format} leaves out {left.conversations:,} of {total:,} conversations: "
            f"{_REASONS[left.reason]} (the first: {left.first})"
        )


class _SeveralImagesError(Exception):
    """A row has several images, in an export that was to have one a row."""


class _Writer:
    """Writes conversations into the files of their splits, and counts what is left out."""

    def __init__(self, target: ObjectStore, record: ExportRecord, shard_size: int | None) -> None:
        self._record = record
        self._splits = Splits(record.validation, record.seed, has_many=record.has_many)
        self._local = tempfile.TemporaryDirectory(prefix="prefect-imageqa-")
        form, local = FORMATS[record.format], Path(self._local.name)
        names: list[Split] = ["train", "validation"] if record.validation else ["train"]
        self._shards = {
            split: Shards(
                target, local, form, split, shard_size=shard_size, has_many=record.has_many
            )
            for split in names
        }
        self._left_out: dict[str, LeftOut] = {}

    def write(self, conversations: Iterable[Conversation]) -> None:
        """Write them; a line a minute says how far it is."""
        said = time.monotonic()
        for number, conversation in enumerate(conversations, 1):
            split = self._splits.of(conversation)
            if split is None:
                self.leave_out("both_splits", f"row {conversation.row.row}")
            else:
                self._shards[split].add(conversation)
            if time.monotonic() - said > _SECONDS_PER_LINE:
                said = time.monotonic()
                _LOGGER.info(
                    "export %s: %s conversations so far", self._record.format, f"{number:,}"
                )

    def leave_out(self, reason: str, first: str, conversations: int = 1) -> None:
        """Count conversations that are not exported."""
        known = self._left_out.get(reason)
        first, before = (known.first, known.conversations) if known else (printable(first, 300), 0)
        self._left_out[reason] = LeftOut.model_validate(
            {"reason": reason, "conversations": before + conversations, "first": first}
        )

    def finish(self, copies: int) -> ExportRecord:
        """Complete the files."""
        counts: dict[Split, SplitCounts] = {
            split: shards.finish() for split, shards in self._shards.items()
        }
        update = {
            "splits": counts,
            "copies": copies,
            "left_out": tuple(self._left_out.values()),
        }
        return self._record.model_copy(update=update)

    def close(self) -> None:
        """Close and remove local files."""
        for shards in self._shards.values():
            shards.close()
        self._local.cleanup()


def _conversations(
    source: ExportSource, exporter: ImageExporter, writer: _Writer, record: ExportRecord
) -> Iterator[Conversation]:
    """The conversations with their images, in the order of the dataset."""
    has_tags = FORMATS[record.format].has_tags

    def images(found: tuple[Row | None, Sequence[Conversation]]) -> Sequence[ConversationImage]:
        row, _ = found
        return [] if row is None else _images(row, source, exporter)

    def kept() -> Iterator[tuple[Row | None, Sequence[Conversation]]]:
        for row, pairs in _rows(source):
            conversations = list(conversations_of(pairs))
            if has_tags and (bad := [c for c in conversations if c.has_control_text()]):
                writer.leave_out("control_text", _where(row, pairs), len(bad))
                conversations = [c for c in conversations if c not in bad]
            if conversations:
                yield row, conversations

    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="export") as pool:
        for (row, conversations), found in prefetch(pool, images, kept(), _AHEAD):
            try:
                with_images = found.result()
            except RowError as error:
                first = f"{_where(row, conversations[0].row)}: {error.problem.message}"
                writer.leave_out("image", first, len(conversations))
                continue
            if len(with_images) > 1 and not record.has_many:
                raise _SeveralImagesError
            for conversation in conversations:
                yield conversation.with_images(with_images)


def _rows(source: ExportSource) -> Iterator[tuple[Row | None, RowPairs]]:
    pairs = read_pairs(source.output)
    if source.rows is None:
        return ((None, found) for found in pairs)
    return join_rows(pairs, source.rows(), source.columns)


def _images(row: Row, source: ExportSource, exporter: ImageExporter) -> list[ConversationImage]:
    """The images of a row, as the model saw them in this order."""
    turns = read_conversation(read_value(row.record, source.columns.conversation))
    limit = source.limits.max_images
    refs = row_images(row.record, turns, source.columns, source.base, limit)
    return [exporter.export(ref, row.where) for ref in refs]


def _where(row: Row | None, pairs: RowPairs) -> str:
    return row.where if row is not None else f"row {pairs.row}"
