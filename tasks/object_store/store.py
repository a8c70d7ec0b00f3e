"""Reads, writes and lists objects in a local folder or an S3 bucket, with clear errors."""

import asyncio
import io
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import fsspec

from ...serving.endpoint import load_block
from ..errors import ObjectCorruptedError, ObjectMissingError, StoreError
from .block import StoreBlock
from .filesystems import GuardedFile, call_store, read_object
from .local_files import atomic_write, file_sizes, remove_file
from .prefect_results import parse_result_record

T = TypeVar("T")

_READ_BUFFER_BYTES = 1 << 20
_UPLOAD_BYTES = 16 << 20
"""A file of twice this size or more is uploaded in pieces: two of them are in memory at once."""
_MAX_UPLOADS = 10_000
"""S3's limit of pieces; that of an object is 5 TB."""
_MAX_LINE_BYTES = 256 << 20
"""Longer lines are split; a row with embedded images can take megabytes."""


class ObjectStore(StoreBlock):
    """Reads and writes objects below one URI by relative name. Thread-safe.

    Every method raises `StoreError` on failure, with a one-line message for the user; so does
    everything that takes a store as an argument.
    As Prefect's result storage it only reads plain JSON records, see `prefect_results`.

    Example:
        ```python
        from prefect_imageqa import ObjectStore, image_qa

        store = ObjectStore.load("BLOCK_NAME")
        store.check()
        image_qa("s3://bucket/qas.json", "s3://bucket/qa", "http://gpu-1:8000", store=store)
        ```
    """

    _block_type_name: ClassVar[str | None] = "Image QA Store"
    _block_type_slug: ClassVar[str | None] = "image-qa-store"
    _documentation_url: ClassVar[Any] = "https://docs.prefect.io/v3/concepts/blocks"
    _description: ClassVar[str | None] = (
        "Credentials for an S3 server that holds datasets, images or question-answer pairs. Runs "
        "of image-qa name this block as their `store` and use its credentials for every `s3://` "
        "URI. From Python it also reads and writes objects in a folder or bucket."
    )

    @property
    def is_local(self) -> bool:
        """Whether the objects are files on this machine."""
        return not self.uri.startswith("s3://")

    def uri_of(self, path: str) -> str:
        """The full URI of an object; `path` must not lead outside the store."""
        if not _is_object_name(path):
            raise StoreError(f"{path!r} is not the name of an object")
        return f"{self.uri.rstrip('/')}/{path}"

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """Read an object.

        Raises:
            ObjectMissingError: there is none; raised for no other failure.
            ObjectCorruptedError: it has more than `max_bytes`.
        """
        count = None if max_bytes is None else max_bytes + 1
        data = read_object(self.uri_of(path), count, self.s3_credentials)
        if max_bytes is not None and len(data) > max_bytes:
            raise ObjectCorruptedError(
                f"{self.uri_of(path)} is larger than the {max_bytes >> 20} MiB that it may have: "
                "this program did not write it; delete it"
            )
        return data

    def open(self, path: str) -> GuardedFile:
        """Open an object to read parts of it, such as some columns of a Parquet file.

        For reading line by line use `lines`. Later read errors raise `StoreError` too.
        """
        return GuardedFile(self.uri_of(path), self.s3_credentials)

    def lines(self, path: str) -> Iterator[bytes]:
        """Read an object line by line; the last line of a truncated one may lack its line end."""
        with io.BufferedReader(self.open(path), _READ_BUFFER_BYTES) as file:
            yield from iter(partial(file.readline, _MAX_LINE_BYTES), b"")

    def write(self, path: str, data: bytes) -> None:
        """Write an object atomically, replacing any of that name."""

        def write(filesystem: fsspec.AbstractFileSystem, key: str) -> None:
            if self.is_local:
                with atomic_write(Path(key)) as temp:
                    temp.write_bytes(data)
            else:
                filesystem.pipe_file(key, data)

        self._call(path, write)

    def put(self, path: str, local_file: Path) -> None:
        """Move a local file into the store atomically."""

        def put(filesystem: fsspec.AbstractFileSystem, key: str) -> None:
            if self.is_local:
                with atomic_write(Path(key)) as temp:
                    shutil.move(local_file, temp)
            else:
                size = max(_UPLOAD_BYTES, -(-local_file.stat().st_size // _MAX_UPLOADS))
                filesystem.put_file(str(local_file), key, chunksize=size)
                local_file.unlink()

        self._call(path, put)

    def sizes(self, folder: str = "", *, deep: bool = True) -> dict[str, int]:
        """Names and sizes of all objects below a folder; empty if there is no such folder.

        Args:
            folder: the folder; by default all of the store.
            deep: whether also those in folders of the folder.

        Returns:
            The sizes in bytes; the names are relative to the store, as for `read`.
        """
        uri = self.uri_of(folder) if folder else self.uri
        below = f"{folder}/" if folder else ""

        def sizes(filesystem: fsspec.AbstractFileSystem, key: str) -> dict[str, int]:
            key = f"{key.rstrip('/')}/"
            if self.is_local:
                found = file_sizes(uri, deep=deep)
            else:
                found = filesystem.sizes(key, deep=deep)
                key = key.partition("/")[2]  # without the bucket
            return {
                f"{below}{name[len(key) :]}": size
                for name, size in found.items()
                if name.startswith(key)
            }

        names = call_store(uri, self.s3_credentials, sizes)
        return {name: size for name, size in names.items() if _is_object_name(name)}

    def list(self, folder: str = "") -> list[str]:
        """Sorted names of all objects below a folder; empty if there is no such folder."""
        return sorted(self.sizes(folder))

    def exists(self, path: str) -> bool:
        """Whether there is an object (not a folder) of that name."""
        try:
            info = self._call(path, lambda filesystem, key: filesystem.info(key))
        except ObjectMissingError:
            return False
        return bool(info["type"] == "file")

    def stamp(self, path: str) -> str:
        """A text that changes when an object is replaced or edited.

        Raises:
            ObjectMissingError: there is no such object.
        """

        def stamp(filesystem: fsspec.AbstractFileSystem, key: str) -> str:
            if self.is_local:  # anyone can set mtime back, but not ctime
                info = Path(key).stat()
                return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"
            found = filesystem.info(key)
            # An object that is copied or restored keeps its ETag; not every server has ETags.
            return f"{found['size']} {found.get('ETag') or found.get('LastModified')}"

        return self._call(path, stamp)

    def remove(self, path: str) -> None:
        """Remove an object; does nothing if there is none."""

        def remove(filesystem: fsspec.AbstractFileSystem, key: str) -> None:
            if self.is_local:
                Path(key).unlink(missing_ok=True)
            else:
                filesystem.rm_file(key)

        self._call(path, remove)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove objects, if they are there; on this machine also folders that are empty then."""
        if self.is_local:
            for name in names:
                remove_file(Path(self.uri_of(name)), Path(self.uri))
        elif uris := [self.uri_of(name) for name in names]:
            call_store(self.uri, self.s3_credentials, lambda filesystem, _: filesystem.rm(uris))

    def check(self) -> None:
        """Check that objects can be written, read, listed and removed, using a small probe object.

        Raises:
            StoreError: with what is wrong, in one line.
        """
        folder = f".check-{uuid.uuid4().hex}"
        name, data = f"{folder}/probe", folder.encode()
        with self._probing("write", name):
            self.write(name, data)
        try:
            with self._probing("read", name):
                found = self.read(name)
            with self._probing("list", folder):
                sizes = self.sizes(folder)
            if found != data or sizes != {name: len(data)}:
                reason = "the object just written is not there; check the endpoint URL"
                raise StoreError(f"{self.uri}: {reason}")
        finally:
            with self._probing("remove", name):
                self.remove(name)
            if self.is_local:
                Path(self.uri_of(folder)).rmdir()

    def _call(self, path: str, action: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
        """Call `action` with the file system and path of an object; errors name the object."""
        return call_store(self.uri_of(path), self.s3_credentials, action)

    @contextmanager
    def _probing(self, action: str, path: str) -> Iterator[None]:
        """Make errors name the store and the action instead of the probe object."""
        try:
            yield
        except StoreError as error:
            reason = str(error).removeprefix(f"{self.uri_of(path)}: ")
            raise type(error)(f"{self.uri}: cannot {action}: {reason}") from error

    def read_path(self, path: str, *, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Read one of Prefect's result records; records that could run code are rejected.

        Raises:
            RecordRefusedError: the record was written by another serializer.
            RecordCorruptedError: it is not a record.
        """
        data = self.read(path)
        parse_result_record(data)
        return data

    async def aread_path(self, path: str) -> bytes:
        """`read_path` for async flows."""
        return await asyncio.to_thread(self.read_path, path)

    def write_path(  # type: ignore[override]
        self, path: str, content: bytes, *, _sync: bool = True
    ) -> None:
        """Write one of Prefect's result records."""
        self.write(path, content)

    async def awrite_path(self, path: str, content: bytes) -> None:
        """`write_path` for async flows."""
        await asyncio.to_thread(self.write_path, path, content)


def load_store(name: str) -> ObjectStore:
    """Load a saved `ObjectStore` block.

    Raises:
        StoreError: there is no block of that name.
    """
    return load_block(ObjectStore, name, StoreError)


def _is_object_name(path: str) -> bool:
    return "\0" not in path and {"", ".", ".."}.isdisjoint(path.split("/"))
