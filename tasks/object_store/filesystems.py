"""Local paths and `s3://` URIs -> file systems, and their errors -> `StoreError`."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import fsspec
from botocore import exceptions as boto

from ..errors import AccessDeniedError, ObjectMissingError, StoreError, StoreUnavailableError
from .credentials import S3Credentials

SUPPORTED = "a local path or s3://bucket/prefix"

_CREDENTIALS_REJECTED = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_CLOCK_SKEWED = {"RequestExpired", "RequestTimeTooSkewed"}
_WRONG_REGION = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_STORE_FULL = {"InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull"}
_ERRNO_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def is_encodable(uri: str) -> bool:
    """Whether a local path or `s3://` URI can be encoded for the system that reads it."""
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
        return _connect(os.getpid(), environment, credentials), path


@lru_cache(maxsize=4)
def _connect(
    _pid: int,  # a connection does not survive a fork
    _environment: tuple[tuple[str, str], ...],
    credentials: S3Credentials | None,
) -> fsspec.AbstractFileSystem:
    from .s3 import connect  # slow to import, and not needed for local stores

    return connect(credentials or S3Credentials())


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn any error of the file systems into one `StoreError` that names the URI."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, boto.BotoCoreError, boto.ClientError) as error:
        raise _store_error(uri, error) from error
    except Exception as error:
        # s3fs does not wrap these: errors while reading a body, and replies that are not S3.
        if type(error).__module__.split(".")[0] not in {"aiohttp", "botocore"}:
            raise
        raise _store_error(uri, error) from error


def _store_error(uri: str, error: Exception) -> StoreError:
    """Explain an exception of a file system to the user, without secrets."""
    code, status = _s3_response(error)
    if known := _error_for_code(uri, code, status):
        return known
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"{uri}: not found")
    if number in _ERRNO_REASONS and code is None:
        return StoreError(f"{uri}: {_ERRNO_REASONS[number]}")
    if isinstance(error, PermissionError):
        reason = "access denied; check the S3 credentials and the bucket's policy"
        return AccessDeniedError(f"{uri}: {reason}")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        reason = "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        return AccessDeniedError(f"{uri}: {reason}")
    if isinstance(error, boto.ProfileNotFound | boto.ConfigNotFound):
        return AccessDeniedError(f"{uri}: the AWS profile cannot be used: {error}")
    if isinstance(error, boto.SSLError):
        reason = "the S3 endpoint's TLS certificate is not trusted, or it speaks no TLS"
        return StoreUnavailableError(f"{uri}: {reason}; check the endpoint URL and AWS_CA_BUNDLE")
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | TimeoutError):
        reason = "the S3 endpoint cannot be reached; check the endpoint URL and the network"
        return StoreUnavailableError(f"{uri}: {reason}")
    if status is not None and status < 500 and status != 429:
        return StoreError(f"{uri}: the S3 server rejected the request ({code})")
    if status is None and isinstance(error, OSError) and error.__cause__ is None:
        return StoreError(f"{uri}: {error.strerror or error}")
    if status is None and isinstance(error, boto.BotoCoreError):
        return StoreError(f"{uri}: not a valid S3 request ({type(error).__name__})")
    reason = code or type(error).__name__
    return StoreUnavailableError(f"{uri}: the S3 server failed ({reason}); try again later")


def _error_for_code(uri: str, code: str | None, status: int | None) -> StoreError | None:
    """The error for an S3 error code that the user can do something about."""
    if code == "NoSuchBucket":
        return StoreError(f"{uri}: the bucket does not exist; create it first")
    if status == 404 and code in {"", "404"}:  # a missing object has its own code
        return StoreError(f"{uri}: the server does not respond like S3; check the endpoint URL")
    if code in _CREDENTIALS_REJECTED:
        return AccessDeniedError(f"{uri}: the S3 credentials were rejected ({code})")
    if code in _CLOCK_SKEWED:
        return AccessDeniedError(f"{uri}: this machine's clock is wrong; set it ({code})")
    if code in _WRONG_REGION:
        reason = "the bucket is in another region or at another endpoint; check AWS_REGION and"
        return StoreError(f"{uri}: {reason} the endpoint URL ({code})")
    if code in _STORE_FULL or status == 507:
        return StoreError(f"{uri}: the store is full or over its quota ({code})")
    if code == "EntityTooLarge":
        return StoreError(f"{uri}: the object exceeds the S3 server's size limit ({code})")
    return None


def _s3_response(error: BaseException) -> tuple[str | None, int | None]:
    """The S3 error code ("NoSuchBucket") and HTTP status behind an exception."""
    for source in (error, error.__cause__):
        response: Any = getattr(source, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return response.get("Error", {}).get("Code"), status
    return None, None


class GuardedFile(io.RawIOBase):
    """An open file whose read errors are `StoreError`s too. Not buffered."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The current position."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        with store_errors(self._uri):
            return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or everything to the end."""
        with store_errors(self._uri):
            return self._file.read(-1 if size is None else size)

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
        if not self.closed:
            self._file.close()
        super().close()
