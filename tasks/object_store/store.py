"""Where bytes live: whole objects in a local folder or an S3 bucket, with clear errors."""

import asyncio
import io
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec

from ...serving.endpoint import load_block
from ..errors import ObjectMissingError, StoreError
from .block import StoreBlock
from .filesystems import GuardedFile, open_filesystem, store_errors
from .local_files import replacing, sizes_below
from .prefect_results import record_result

_BYTES_AT_ONCE = 1 << 20
_MAX_LINE_BYTES = 256 << 20
"""What is longer comes in pieces; a row with embedded images can take megabytes."""


class ObjectStore(StoreBlock):
    """Whole objects below one URI, by relative name. Safe to use from several threads.

    Every method raises `StoreError` where the store cannot do it, with one line for the user; so
    does everything that is handed a store.
    As Prefect's result storage it reads plain JSON records only, see `result_records`.

    Example:
        ```python
        from prefect_imageqa import ObjectStore, image_qa

        store = ObjectStore.load("BLOCK_NAME")
        store.check()
        image_qa("s3://bucket/qas.json", "s3://bucket/qa", "http://gpu-1:8000", store="BLOCK_NAME")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Image QA Store"
    _block_type_slug: ClassVar[str | None] = "image-qa-store"
    _documentation_url: ClassVar[Any] = "https://docs.prefect.io/v3/concepts/blocks"
    _description: ClassVar[str | None] = (
        "The key to an S3 server, for datasets, images and question-answer pairs. Runs of image-qa "
        "name this block as their `store`, and use its credentials for every `s3://` URI they are "
        "given; from Python it is also a folder or bucket to read and write."
    )

    @property
    def is_local(self) -> bool:
        """Whether the objects are files on this machine."""
        return not self.uri.startswith("s3://")

    def uri_of(self, path: str) -> str:
        """The full URI of an object; `path` must not lead outside the store."""
        if not _is_name(path):
            raise StoreError(f"{path!r} is not the name of an object")
        return f"{self.uri.rstrip('/')}/{path}"

    def read(self, path: str) -> bytes:
        """Read an object.

        Raises:
            ObjectMissingError: there is none; no other failure looks like this.
            StoreError: it cannot be read.
        """
        with self._at(path) as (filesystem, key):
            data: bytes = filesystem.cat_file(key)
            return data

    def open(self, path: str) -> GuardedFile:
        """Open an object for reading pieces of it, such as some columns of a Parquet file.

        Every read asks the store for just these bytes; reading line by line would be slow.
        What fails later while it is read raises `StoreError`, too.
        """
        with self._at(path) as (filesystem, key):
            if self.is_local:
                return GuardedFile(Path(key).open("rb"), self.uri_of(path))
            file = filesystem.open(key, "rb", cache_type="none")
            return GuardedFile(file, self.uri_of(path))

    def lines(self, path: str) -> Iterator[bytes]:
        """Read an object line by line; of one that is cut off the last may have no end."""
        with io.BufferedReader(self.open(path), _BYTES_AT_ONCE) as file:
            yield from iter(partial(file.readline, _MAX_LINE_BYTES), b"")

    def write(self, path: str, data: bytes) -> None:
        """Write an object, replacing one of that name: whole or not at all."""
        with self._at(path) as (filesystem, key):
            if self.is_local:
                with replacing(Path(key)) as temp:
                    temp.write_bytes(data)
            else:
                filesystem.pipe_file(key, data)

    def put(self, path: str, local_file: Path) -> None:
        """Move a local file into the store, whole or not at all; it is gone from its old place."""
        with self._at(path) as (filesystem, key):
            if self.is_local:
                with replacing(Path(key)) as temp:
                    shutil.move(local_file, temp)
            else:
                filesystem.put_file(str(local_file), key)
                local_file.unlink()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name all objects below a folder with their bytes; none where there is no such folder.

        The names are relative to the store, as `read` takes them.
        """
        uri = self.uri_of(folder) if folder else self.uri
        with store_errors(uri):
            if self.is_local:
                found = sizes_below(uri)
            else:
                filesystem, key = open_filesystem(uri, self.s3_credentials)
                objects = filesystem.find(f"{key}/", detail=True)
                found = {f"s3://{name}": int(info["size"]) for name, info in objects.items()}
        below = f"{uri.rstrip('/')}/"
        root = f"{self.uri.rstrip('/')}/"
        names = {
            name.removeprefix(root): size for name, size in found.items() if name.startswith(below)
        }
        return {name: size for name, size in names.items() if _is_name(name)}

    def list(self, folder: str = "") -> list[str]:
        """Name all objects below a folder, sorted; none where there is no such folder."""
        return sorted(self.sizes(folder))

    def exists(self, path: str) -> bool:
        """Whether there is an object (not a folder) of that name."""
        try:
            with self._at(path) as (filesystem, key):
                return bool(filesystem.info(key)["type"] == "file")
        except ObjectMissingError:
            return False

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens where there is none."""
        with self._at(path) as (filesystem, key):
            if self.is_local:
                Path(key).unlink(missing_ok=True)
            else:
                filesystem.rm_file(key)

    def check(self) -> None:
        """Try to list, write, read and remove; a small object is there for a moment.

        Raises:
            StoreError: what is wrong, in one line.
        """
        folder = f".check-{uuid.uuid4().hex}"
        name, data = f"{folder}/probe", folder.encode()
        with self._checking("write", name):
            self.write(name, data)
        try:
            with self._checking("read", name):
                found = self.read(name)
            with self._checking("list", folder):
                sizes = self.sizes(folder)
            if found != data or sizes != {name: len(data)}:
                reason = "what is written is not there; check the endpoint URL"
                raise StoreError(f"{self.uri}: {reason}")
        finally:
            with self._checking("remove", name):
                self.remove(name)
            if self.is_local:
                Path(self.uri_of(folder)).rmdir()

    @contextmanager
    def _at(self, path: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        """The file system of an object and the path in it; errors name the object."""
        uri = self.uri_of(path)
        with store_errors(uri):
            yield open_filesystem(uri, self.s3_credentials)

    @contextmanager
    def _checking(self, action: str, path: str) -> Iterator[None]:
        """Blame the store and what was tried, not the small object that stood for all others."""
        try:
            yield
        except StoreError as error:
            reason = str(error).removeprefix(f"{self.uri_of(path)}: ")
            raise type(error)(f"{self.uri}: cannot {action}: {reason}") from error

    def read_path(self, path: str, *, _sync: bool = True) -> bytes:  # type: ignore[override]
        """Read one of Prefect's result records; one that could run code is refused.

        Raises:
            RecordRefusedError: the record is of another kind than this package writes.
            RecordCorruptedError: it is no record.
            StoreError: it cannot be read.
        """
        data = self.read(path)
        record_result(data)
        if self._accept is not None:
            self._accept(path, data)
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
        StoreError: there is none of that name.
    """
    return load_block(ObjectStore, name, StoreError)


def _is_name(path: str) -> bool:
    return "\0" not in path and {"", ".", ".."}.isdisjoint(path.split("/"))
