"""Finds the files of a dataset: one table, several of the same format, or images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import DatasetError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import call_store, split_uri

TABLE_FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_SUPPORTED = f"{', '.join(TABLE_FORMATS)} (except .parquet also with {', '.join(COMPRESSIONS)})"


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
    """

    name: str
    folder: str
    format: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    searched: bool


def find_files(uri: str, credentials: S3Credentials | None = None) -> DatasetFiles:
    """Find the files that a path, folder or glob refers to, without reading them.

    Raises:
        DatasetError: there are none, or they are of several or unknown formats.
        StoreError: the folder or bucket cannot be listed.
    """
    protocol, path = split_uri(uri)
    scheme = "s3://" if protocol == "s3" else ""
    kind = _kind_of(uri, credentials)
    if kind == "file":
        root, matches = os.path.dirname(path), [path]  # noqa: PTH120 (the path may be on S3)
    elif kind == "directory":
        root = path
        names = call_store(uri, credentials, lambda files, path: files.find(path, detail=True))
        matches = [name for name in _files(names) if not _is_hidden(name, path)]
    elif kind is None and any(mark in path for mark in "*?["):
        root = _before_wildcard(path) or ("" if scheme else "/")
        found = call_store(uri, credentials, lambda files, path: files.glob(path, detail=True))
        matches = _files(found)
    elif kind is None:
        raise DatasetError(f"{uri}: no such file or folder")
    else:
        raise DatasetError(f"{uri}: neither a file nor a folder")
    # A folder may contain other files too (a README, labels); a glob must match data files only.
    file_format, chosen = _choose(uri, matches, strict=kind != "directory")
    return DatasetFiles(
        name=PurePosixPath(path if kind else root).name or uri,
        folder=f"{scheme}{root}",
        format=file_format,
        files=tuple(f"{scheme}{name}" for name in chosen),
        labels=tuple(name[len(root) :].lstrip("/") for name in chosen),
        searched=kind != "file",
    )


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


def _choose(uri: str, matches: Sequence[str], *, strict: bool) -> tuple[str, list[str]]:
    """The format that the files have in common, and the files of that format.

    Unless `strict`, only Parquet files and images count.
    """
    by_format: dict[str, list[str]] = {}
    for name in sorted(matches):
        by_format.setdefault(_format_of(name), []).append(name)
    if not strict:
        by_format = {name: by_format[name] for name in ("parquet", "images") if name in by_format}
    if not by_format:
        reason = "no file matches" if strict else "the folder has no images and no Parquet files"
        raise DatasetError(f"{uri}: {reason}")
    if len(by_format) > 1:
        formats = " and ".join(sorted(file_format or "other" for file_format in by_format))
        raise DatasetError(f"{uri}: has {formats} files; select one kind, as in folder/*.parquet")
    file_format, chosen = by_format.popitem()
    if not file_format:
        raise DatasetError(f"{uri}: unknown format; supported: {_SUPPORTED}, and folders of images")
    return file_format, chosen


def _format_of(name: str) -> str:
    path = PurePosixPath(name.lower())
    if path.suffix in _IMAGES:
        return "images"
    if path.suffix in COMPRESSIONS:
        inner = TABLE_FORMATS.get(PurePosixPath(path.stem).suffix, "")
        return inner if inner != "parquet" else ""
    return TABLE_FORMATS.get(path.suffix, "")


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name[len(folder) :].split("/"))


def _before_wildcard(path: str) -> str:
    parts = path.split("/")
    wild = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return "/".join(parts[:wild])
