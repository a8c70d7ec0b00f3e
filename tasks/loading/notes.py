"""What the user should know about the files of a dataset before its rows are asked about."""

import re
from collections.abc import Iterator, Sequence

from ...serving.printable import printable
from ..object_store.credentials import S3Credentials
from ..records import Problem
from .image_folders import file_names
from .tables import read_table, start_note

_SPLITS = {
    **{name: name for name in ("train", "test", "validation")},
    **dict.fromkeys(("val", "valid", "dev"), "validation"),
    "eval": "test",
}

_SHOWN = 3
"""Number of names in a message."""


def find_notes(
    file_format: str,
    files: Sequence[str],
    labels: Sequence[str],
    images: Sequence[str],
    tables: Sequence[str],
    credentials: S3Credentials | None,
) -> Iterator[str]:
    """Find what is unusual about the files of a dataset, or not read.

    Args:
        file_format: of the files that are read.
        files: their full paths or URIs.
        labels: their paths within the dataset's folder.
        images: paths of the images in the folder.
        tables: paths of the tables in the folder.
        credentials: S3 credentials.

    Raises:
        DatasetError: a file cannot be read.
    """
    if file_format != "images" and (note := start_note(files[0], file_format, credentials)):
        yield f"{printable(labels[0])}: {note}"
    splits = {split for label in labels if (split := _split(label))}
    if len(splits) > 1:
        yield (
            f"files of {' and '.join(sorted(splits))} are read as one dataset; for one of them "
            "give a glob, such as 'data/train-*.parquet'"
        )
    if others := sorted(set(tables) - set(labels)):
        verb = "is" if len(others) == 1 else "are"
        read = "the images" if file_format == "images" else _list(labels)
        yield (
            f"{_list(others)} {verb} not read, only {read}; to ask about the rows of a table, give "
            "it as the dataset, or name it metadata.csv or metadata.jsonl, with a column file_name"
        )
    if file_format != "images" and images:
        rest = set(images)
        for file, label in zip(files, labels, strict=True):
            for _, record in read_table(file, label, file_format, credentials):
                if not isinstance(record, Problem):
                    rest.difference_update(file_names(record))
        if rest:
            count = f"{len(rest)} of {len(images)} images"
            yield f"{count} are not in {_list(labels)}, and are not asked about"


def _split(label: str) -> str | None:
    """The split that a file belongs to, by its name or that of its folder."""
    words = (re.split(r"[^a-z]", part.lower())[0] for part in label.split("/"))
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 80) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
