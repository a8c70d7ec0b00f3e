"""Local paths and `s3://` URIs -> file systems, and calls that wait for an S3 server."""

import errno
import io
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import fsspec

from ...serving.endpoint import safe_url
from ...serving.printable import printable
from ..errors import ObjectMissingError, StoreError
from .credentials import S3Credentials
from .regular_files import open_regular
from .store_errors import store_errors

T = TypeVar("T")

SUPPORTED = "a local path or s3://bucket/prefix"


def is_encodable(uri: str) -> bool:
    """Whether a local path or `s3://` URI can be encoded for the system that reads it."""
    if uri.isascii():
        return "\0" not in uri
    try:
        # Python uses surrogates for local file names that are not UTF-8; S3 has no such names.
        uri.encode("utf-8", "strict" if uri[:5].lower() == "s3://" else "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in uri


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into protocol (`file` or `s3`) and path; a local path is made absolute.

    Raises:
        StoreError: the URI has another scheme or is malformed.
    """
    if not uri.strip() or not is_encodable(uri):
        raise StoreError(f"empty or invalid path; give {SUPPORTED}")
    scheme, mark, rest = uri.partition("://")
    if not mark:
        if uri[:3].lower() == "s3:":  # a slash was forgotten; else there would be a folder "s3:"
            raise StoreError(f"{printable(uri, 60)}: give {SUPPORTED}")
        return "file", os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    if scheme.lower() != "s3":
        raise StoreError(f"{scheme[:20]}:// is not supported; give {SUPPORTED}")
    path = rest.strip("/")
    bucket = path.split("/", 1)[0]
    if not bucket or "@" in bucket or ":" in bucket:
        raise StoreError("an s3:// URI without a plain bucket name; give s3://bucket/prefix")
    return "s3", path


def open_filesystem(
    uri: str, credentials: S3Credentials | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Find the file system of a URI (a local path, or `s3://bucket/prefix`) and the path in it.

    S3 credentials, region and endpoint that are not given come from the standard AWS environment,
    profile or role. Connections are cached per process until that environment changes.

    Raises:
        StoreError: the URI is not supported, or no S3 session could be created.
    """
    protocol, path = split_uri(uri)
    if protocol == "file":
        return fsspec.filesystem("file"), path
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith("AWS_")))
    with store_errors(f"s3://{path}"):
        return _connect(os.getpid(), environment, credentials or S3Credentials()), path


@lru_cache(maxsize=4)
def _connect(
    _pid: int,  # a connection does not survive a fork
    _environment: tuple[tuple[str, str], ...],
    credentials: S3Credentials,
) -> fsspec.AbstractFileSystem:
    from .s3 import connect  # slow to import, and not needed for local stores

    return connect(credentials)


def call_store(
    uri: str,
    credentials: S3Credentials | None,
    action: Callable[[fsspec.AbstractFileSystem, str], T],
    *,
    essential: bool = True,
) -> T:
    """Do something with the file system of a URI and the path in it; errors are `StoreError`s.

    As long as an S3 server does not answer, it is done again: see `Patience`.

    Args:
        uri: a local path or `s3://` URI.
        credentials: S3 credentials, with the patience; by default those of the environment.
        action: gets the file system and the path; must be safe to repeat.
        essential: as for `Patience.call`.
    """
    credentials = credentials or S3Credentials()
    filesystem, path = open_filesystem(uri, credentials)
    if "s3" not in filesystem.protocol:
        with store_errors(uri):
            return action(filesystem, path)
    server = f"S3 at {safe_url(filesystem.s3.meta.endpoint_url)}"

    def attempt() -> T:
        try:
            with store_errors(uri, server):
                result = action(filesystem, path)
        except ObjectMissingError:
            credentials.patience.answered(server)
            raise
        credentials.patience.answered(server)
        return result

    return credentials.patience.call(attempt, server=server, essential=essential)


def read_start(filesystem: fsspec.AbstractFileSystem, path: str, count: int | None) -> bytes:
    """Read the first `count` bytes of an object in S3, or all of it."""
    try:
        data: bytes = filesystem.cat_file(path, end=count)
    except OSError as error:
        if count is not None and error.errno == errno.EINVAL:
            return b""  # an empty object has no first byte to request
        raise
    return data


def read_object(uri: str, count: int | None, credentials: S3Credentials | None = None) -> bytes:
    """Read the first `count` bytes of a local file or of an object in S3, or all of it.

    Raises:
        ObjectMissingError: there is none; raised for no other failure.
        StoreError: it cannot be read, or is no regular file.
    """

    def read(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
        if "s3" in filesystem.protocol:
            return read_start(filesystem, path, count)
        with open_regular(path) as file:
            return file.read(-1 if count is None else count)

    return call_store(uri, credentials, read)


class GuardedFile(io.RawIOBase):
    """An open file or object whose read errors are `StoreError`s too. Not buffered.

    Every read of an object is one request for just those bytes, see `call_store`.

    Args:
        uri: a local path or `s3://` URI.
        credentials: S3 credentials; by default those of the environment.
    """

    def __init__(self, uri: str, credentials: S3Credentials | None = None) -> None:
        self._uri = uri
        self._call = partial(call_store, uri, credentials)
        self._file: Any = None  # Python closes this object even if opening the file fails
        self._file = self._call(_open)

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The current position."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        with store_errors(self._uri):
            return int(self._file.seek(offset, whence))

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or everything to the end."""
        # A read that has failed has not moved the position.
        data: bytes = self._call(lambda *_: self._file.read(-1 if size is None else size))
        return data

    def readall(self) -> bytes:
        """Read everything to the end."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()


def _open(filesystem: fsspec.AbstractFileSystem, path: str) -> Any:
    if "s3" in filesystem.protocol:
        return filesystem.open(path, "rb", cache_type="none")
    return open_regular(path)
