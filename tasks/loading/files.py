"""Finding the files of a dataset: one table, several of one format, or images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from ..errors import DatasetError, ObjectMissingError
from ..object_store.credentials import S3Credentials
from ..object_store.filesystems import open_filesystem, store_errors

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
_KNOWN = f"{', '.join(TABLE_FORMATS)} (but for .parquet also with {', '.join(COMPRESSIONS)})"


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of one dataset.

    Attributes:
        name: short, for people.
        folder: what relative image paths are relative to, local or `s3://`.
        format: one of the values of `TABLE_FORMATS`, or "images".
        files: full local paths or `s3://` URIs, sorted.
        labels: the same relative to the folder, for messages.
        searched: whether the folder was searched for them, as for a folder or a glob.
    """

    name: str
    folder: str
    format: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    searched: bool


def find_files(uri: str, credentials: S3Credentials | None = None) -> DatasetFiles:
    """Find the files that a path, folder or glob means; reads none of them.

    Raises:
        DatasetError: there are none, or of several or unknown formats.
        StoreError: the folder or bucket cannot be listed.
    """
    filesystem, path = open_filesystem(uri, credentials)
    scheme = "s3://" if uri.lower().startswith("s3://") else ""
    with store_errors(uri):
        kind = _kind_of(filesystem, path)
        if kind == "file":
            root, found = os.path.dirname(path), [path]  # noqa: PTH120 (the path may be on S3)
        elif kind == "directory":
            root = path
            names = filesystem.find(path, detail=True)
            found = [name for name in _files(names) if not _is_hidden(name, path)]
        elif kind is None and any(mark in path for mark in "*?["):
            root = _before_wildcard(path) or ("" if scheme else "/")
            found = _files(filesystem.glob(path, detail=True))
        elif kind is None:
            raise DatasetError(f"{uri}: there is no such file or folder")
        else:
            raise DatasetError(f"{uri}: is neither a file nor a folder")
    # In a folder, files that are no data (a README, labels) may lie around; in a glob, none.
    form, chosen = _choose(uri, found, strict=kind != "directory")
    return DatasetFiles(
        name=PurePosixPath(path if kind else root).name or uri,
        folder=f"{scheme}{root}",
        format=form,
        files=tuple(f"{scheme}{name}" for name in chosen),
        labels=tuple(name[len(root) :].lstrip("/") for name in chosen),
        searched=kind != "file",
    )


def file_version(uri: str, credentials: S3Credentials | None = None) -> str:
    """What tells a file from what it was or will be at another time, without reading it.

    Raises:
        StoreError: the file cannot be asked for; one that is gone has a version too.
    """
    filesystem, path = open_filesystem(uri, credentials)
    try:
        with store_errors(uri):
            if not uri.startswith("s3://"):
                info = os.stat(path)  # noqa: PTH116
                return f"{uri} {info.st_size} {info.st_mtime_ns}"
            found = filesystem.info(path)
            return f"{uri} {found['size']} {found.get('ETag')}"
    except ObjectMissingError:
        return f"{uri} gone"


def _kind_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str | None:
    """What is at a path: "file", "directory", "other", or None for nothing."""
    try:
        with store_errors(path):
            info = filesystem.info(path)
    except ObjectMissingError:
        return None
    if info.get("islink"):
        # The local file system calls a link neither file nor folder, whatever it leads to.
        return "directory" if os.path.isdir(path) else "file"  # noqa: PTH112
    return str(info["type"])


def _files(infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What may be a file; a link may, unless it leads to a folder: those can go in circles."""
    return [
        name
        for name, info in infos.items()
        if info["type"] == "file" or (info.get("islink") and not os.path.isdir(name))  # noqa: PTH112
    ]


def _choose(uri: str, found: Sequence[str], *, strict: bool) -> tuple[str, list[str]]:
    """The one format among the files, and the files of it."""
    by_format: dict[str, list[str]] = {}
    for name in sorted(found):
        by_format.setdefault(_format_of(name), []).append(name)
    if not strict:
        by_format = {form: by_format[form] for form in ("parquet", "images") if form in by_format}
    if not by_format:
        what = "no file matches" if strict else "the folder holds no images and no Parquet files"
        raise DatasetError(f"{uri}: {what}")
    if len(by_format) > 1:
        formats = " and ".join(sorted(form or "other" for form in by_format))
        raise DatasetError(f"{uri}: holds {formats} files; name one kind, as in folder/*.parquet")
    form, chosen = by_format.popitem()
    if not form:
        raise DatasetError(f"{uri}: unknown format; known are {_KNOWN}, and folders of images")
    return form, chosen


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
