"""Finds the files of a dataset: one table, several of the same format, or images."""

import glob
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ...serving.printable import printable
from ..errors import DatasetError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import call_store, split_uri
from .image_folders import IMAGE_SUFFIXES, is_metadata
from .notes import find_notes

TABLE_FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".tgz": "webdataset",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_SHARDS = ("arrow", "images", "parquet", "webdataset")
"""Formats that make a folder a dataset, whatever other tables are in it."""

_TABLES = ("csv", "json", "jsonl", "tsv")
"""Formats that make a folder a dataset if it has nothing else."""

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_RANGE = 100_000

_NOT_COMPRESSED = {"arrow", "parquet"}
_DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
"""Files in which Hugging Face's `datasets` describes its tables."""

_SUPPORTED = (
    f"{', '.join(TABLE_FORMATS)} (except .parquet and .arrow also with {', '.join(COMPRESSIONS)})"
)


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of one dataset.

    Attributes:
        name: short human-readable name.
        folder: base of relative image paths, a local folder or `s3://` URI.
        format: one of the values of `TABLE_FORMATS`, or "images".
        files: full local paths or `s3://` URIs, sorted.
        labels: the same paths relative to the folder, for messages.
        searched: whether the folder was searched for them (the source is a folder or a glob).
        notes: what the user should know: files that are not read, an unusual delimiter.
    """

    name: str
    folder: str
    format: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    searched: bool
    notes: tuple[str, ...] = ()


def find_files(uri: str, credentials: S3Credentials | None = None) -> DatasetFiles:
    """Find the files that a path, folder or glob refers to.

    Of a table, only the start is read, but all of the metadata of a folder of images.

    Raises:
        DatasetError: there are none, they are of several or unknown formats, or one cannot be read.
        StoreError: the folder or bucket cannot be listed.
    """
    protocol, path = split_uri(uri)
    scheme = "s3://" if protocol == "s3" else ""
    kind = _kind_of(uri, credentials) or ("range" if _RANGE.search(path) else None)
    root, matches = _search(uri, path, kind, credentials)
    by_format: dict[str, list[str]] = {}
    for name in sorted(matches):
        by_format.setdefault(_format_of(name), []).append(name)
    # A folder may contain other files too (a README, labels); a glob must match data files only.
    choose = _choose_in_folder if kind == "directory" else _choose
    file_format, chosen = choose(uri, by_format)

    def labels(names: Sequence[str]) -> list[str]:
        return [name[len(root) :].lstrip("/") for name in names]

    found = DatasetFiles(
        name=PurePosixPath(path if kind else root).name or uri,
        folder=f"{scheme}{root}",
        format=file_format,
        files=tuple(f"{scheme}{name}" for name in chosen),
        labels=tuple(labels(chosen)),
        searched=kind not in {"file", "range"},
    )
    images = labels(by_format.pop("images", []))
    tables = labels([name for names in by_format.values() for name in names])
    notes = find_notes(file_format, found.files, found.labels, images, tables, credentials)
    return replace(found, notes=tuple(notes))


def _search(
    uri: str, path: str, kind: str | None, credentials: S3Credentials | None
) -> tuple[str, list[str]]:
    """The folder that is searched, and the files in it that are meant."""
    if kind == "file":
        return os.path.dirname(path), [path]  # noqa: PTH120 (the path may be on S3)
    if kind == "directory":
        names = call_store(uri, credentials, lambda files, path: files.find(path, detail=True))
        return path, [name for name in _files(names) if not _is_hidden(name, path)]
    if kind == "range":
        return _search_range(uri, path, credentials)
    if kind is None and any(mark in path for mark in "*?["):
        found = call_store(uri, credentials, lambda files, path: files.glob(path, detail=True))
        return _before_wildcard(path) or ("" if uri[:5].lower() == "s3://" else "/"), _files(found)
    if kind is None:
        raise DatasetError(f"{uri}: no such file or folder{_looked_for(uri, path)}")
    raise DatasetError(f"{uri}: neither a file nor a folder")


def _looked_for(uri: str, path: str) -> str:
    """Where a local path was looked for: a worker is often another machine, in another folder."""
    if "://" in uri:
        return ""
    host = socket.gethostname()
    return f" (on {host})" if path == uri else f" (looked for {path} on {host})"


def _search_range(uri: str, path: str, credentials: S3Credentials | None) -> tuple[str, list[str]]:
    """The files that a range such as `train-{000..123}.tar` names, as WebDataset writes it."""
    start, first, last, end = _RANGE.split(path, maxsplit=1)
    numbers = range(int(first), int(last) + 1)[:_MAX_RANGE]
    names = [f"{start}{number:0{len(first)}d}{end}" for number in numbers]
    pattern = f"{glob.escape(start)}*{glob.escape(end)}"
    found = call_store(uri, credentials, lambda files, _: files.glob(pattern, detail=True))
    known = set(_files(found))
    for name in names:
        if name not in known:
            raise DatasetError(f"{uri}: no such file: {PurePosixPath(name).name}")
    return os.path.dirname(start), names  # noqa: PTH120 (the path may be on S3)


def _kind_of(uri: str, credentials: S3Credentials | None) -> str | None:
    """Type of what is at a URI: "file", "directory", "other", or None if there is nothing."""
    try:
        info = call_store(uri, credentials, lambda files, path: files.info(path))
    except ObjectMissingError:
        return None
    if info.get("islink"):
        # Older versions of fsspec do not follow a local link here.
        return "directory" if os.path.isdir(info["name"]) else "file"  # noqa: PTH112
    return str(info["type"])


def _files(infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of files, and of links unless they lead to a folder: those can form cycles."""
    return [
        name
        for name, info in infos.items()
        if info["type"] == "file" or (info.get("islink") and not os.path.isdir(name))  # noqa: PTH112
    ]


def _choose(uri: str, by_format: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """The format that the files have in common, and the files."""
    if not by_format:
        raise DatasetError(f"{uri}: no file matches")
    if len(by_format) > 1:
        raise _several(uri, by_format)
    if "" in by_format:
        raise DatasetError(f"{uri}: unknown format; supported: {_SUPPORTED}, and folders of images")
    return next(iter(by_format.items()))


def _choose_in_folder(uri: str, by_format: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The files of a folder that are its rows, and their format; other files may be beside them."""
    by_format.pop("", None)
    if by_format.keys() & _SHARDS and "json" in by_format:
        by_format["json"] = [
            name for name in by_format["json"] if PurePosixPath(name).name not in _DESCRIPTIONS
        ]
    if "images" in by_format:
        metadata = {
            file_format: [name for name in names if is_metadata(name, file_format)]
            for file_format, names in by_format.items()
        }
        metadata = {file_format: names for file_format, names in metadata.items() if names}
        if metadata:
            return _choose(uri, metadata)
    for candidates in (_SHARDS, _TABLES):
        if found := [file_format for file_format in candidates if file_format in by_format]:
            return _choose(uri, {file_format: by_format[file_format] for file_format in found})
    raise DatasetError(f"{uri}: the folder has no images and no tables ({_SUPPORTED})")


def _several(uri: str, by_format: Mapping[str, Sequence[str]]) -> DatasetError:
    formats = " and ".join(
        ("images" if file_format == "images" else f"{file_format or 'other'} files")
        + f" ({printable(PurePosixPath(names[0]).name, 60)}{', ...' if len(names) > 1 else ''})"
        for file_format, names in sorted(by_format.items())
    )
    return DatasetError(f"{uri}: has {formats}; select one kind, as in folder/*.parquet")


def _format_of(name: str) -> str:
    path = PurePosixPath(name.lower())
    if path.suffix in IMAGE_SUFFIXES:
        return "images"
    if path.suffix in COMPRESSIONS:
        inner = TABLE_FORMATS.get(PurePosixPath(path.stem).suffix, "")
        return inner if inner not in _NOT_COMPRESSED else ""
    return TABLE_FORMATS.get(path.suffix, "")


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name[len(folder) :].split("/"))


def _before_wildcard(path: str) -> str:
    parts = path.split("/")
    wild = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return "/".join(parts[:wild])
