"""Where bytes live: whole objects in a local folder or an S3 bucket, with clear errors."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import StoreError
from .filesystems import ObjectMissingError, open_filesystem, store_errors

_TEMP_PREFIX = ".writing-"
"""Names of files that are not whole yet; a killed process can leave one behind."""


@dataclass(frozen=True)
class ObjectStore:
    """Whole objects below one URI, by relative name. Safe to use from several threads.

    Every method raises `StoreError` where the store cannot do it, with one line for the user.

    Attributes:
        uri: a local path or `s3://bucket/prefix`; a local path is made absolute.
    """

    uri: str

    def __post_init__(self) -> None:
        _, path = open_filesystem(self.uri)
        object.__setattr__(self, "uri", path if "://" not in self.uri else f"s3://{path}")

    @property
    def is_local(self) -> bool:
        """Whether the objects are files on this machine."""
        return not self.uri.startswith("s3://")

    def uri_of(self, path: str) -> str:
        """The full URI of an object; `path` must not lead outside the store."""
        if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise StoreError(f"{path!r} is not the name of an object")
        return f"{self.uri.rstrip('/')}/{path}"

    def read(self, path: str) -> bytes:
        """Read an object.

        Raises:
            ObjectMissingError: there is none; no other failure looks like this.
            StoreError: it cannot be read.
        """
        uri = self.uri_of(path)
        with store_errors(uri):
            filesystem, key = open_filesystem(uri)
            data: bytes = filesystem.cat_file(key)
            return data

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing one of that name: whole or not at all."""
        uri = self.uri_of(path)
        with store_errors(uri):
            if self.is_local:
                with _replacing(Path(uri)) as temp:
                    temp.write_bytes(data)
            else:
                filesystem, key = open_filesystem(uri)
                filesystem.pipe_file(key, data)

    def put(self, path: str, local_file: Path) -> None:
        """Move a local file into the store, whole or not at all; it is gone from its old place."""
        uri = self.uri_of(path)
        with store_errors(uri):
            if self.is_local:
                with _replacing(Path(uri)) as temp:
                    shutil.move(local_file, temp)
            else:
                filesystem, key = open_filesystem(uri)
                filesystem.put_file(str(local_file), key)
                local_file.unlink()

    def list(self, folder: str = "") -> list[str]:
        """Name all objects below a folder, sorted; none where there is no such folder.

        The names are relative to the store, as `read` takes them.
        """
        uri = self.uri_of(folder) if folder else self.uri
        with store_errors(uri):
            if self.is_local:
                found = _files_below(uri)
            else:
                filesystem, key = open_filesystem(uri)
                found = [f"s3://{name}" for name in filesystem.find(f"{key}/")]
        below = f"{uri.rstrip('/')}/"
        root = f"{self.uri.rstrip('/')}/"
        return sorted(name.removeprefix(root) for name in found if name.startswith(below))

    def exists(self, path: str) -> bool:
        """Whether there is an object (not a folder) of that name."""
        uri = self.uri_of(path)
        try:
            with store_errors(uri):
                filesystem, key = open_filesystem(uri)
                return bool(filesystem.info(key)["type"] == "file")
        except ObjectMissingError:
            return False

    def delete(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""
        uri = self.uri_of(path)
        with store_errors(uri):
            if self.is_local:
                Path(uri).unlink(missing_ok=True)
            else:
                filesystem, key = open_filesystem(uri)
                filesystem.rm_file(key)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a path to write to; afterwards it replaces `target` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f"{_TEMP_PREFIX}{uuid.uuid4().hex}")
    try:
        yield temp
        with temp.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name without its bytes
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)


def _files_below(folder: str) -> list[str]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return [
        f"{parent}/{name}"
        for parent, _, names in os.walk(folder, onerror=fail)
        for name in names
        if not name.startswith(_TEMP_PREFIX)
    ]
