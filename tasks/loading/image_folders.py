"""Folders of images, and tables about them, as the ImageFolder of Hugging Face has them."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from ..records import Record

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}

_FORMATS = {"csv", "jsonl", "parquet"}
_NAMES = ("file_name", "file_names")


def is_metadata(path: str, file_format: str) -> bool:
    """Whether a file is the table about the images of its folder, by its name."""
    return file_format in _FORMATS and posixpath.basename(path).lower().startswith("metadata.")


def from_dataset_folder(record: Record, folder: str) -> Record:
    """A record whose file names are relative to the dataset's folder.

    Args:
        record: with names relative to the folder of the metadata file.
        folder: of the metadata file, within the dataset's folder; may be empty.
    """
    return {name: _resolve(name, value, folder) for name, value in record.items()}


def file_names(value: Any, name: str = "") -> Iterator[str]:
    """The file names in a record, or in a value of it of that name."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from file_names(child, str(key))
    elif isinstance(value, list):
        for child in value:
            yield from file_names(child, name)
    elif isinstance(value, str) and _is_file_name(name):
        yield posixpath.normpath(value)


def _is_file_name(name: str) -> bool:
    return name in _NAMES or name.endswith(tuple(f"_{usual}" for usual in _NAMES))


def _resolve(name: str, value: Any, folder: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolve(str(key), child, folder) for key, child in value.items()}
    if isinstance(value, list):
        return [_resolve(name, child, folder) for child in value]
    if isinstance(value, str) and value and _is_file_name(name) and "://" not in value:
        return posixpath.join(folder, value)
    return value
