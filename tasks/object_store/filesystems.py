"""Local paths and `s3://` behind one door: file systems, and what their errors mean."""

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

_KEY_REFUSED = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_CLOCK_WRONG = {"RequestExpired", "RequestTimeTooSkewed"}
_ELSEWHERE = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_STORE_FULL = {"InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull"}
_LOCAL_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def is_path(uri: str) -> bool:
    """Whether a local path or `s3://` URI can be encoded for the system that is to read it."""
    try:
        # Python stands a local file's name that is not UTF-8 for with surrogates; S3 has none.
        uri.encode("utf-8", "strict" if uri[:5].lower() == "s3://" else "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in uri


def split_uri(uri: str) -> tuple[str, str]:
    """Tell a URI's protocol, `file` or `s3`, from its path; a local path is made absolute.

    Raises:
        StoreError: the URI is of another kind.
    """
    if not uri.strip() or not is_path(uri):
        raise StoreError(f"an empty or broken path; give {SUPPORTED}")
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
    profile or role; one connection is kept per process, until that environment changes.

    Raises:
        StoreError: the URI is of another kind, or no S3 session could be made.
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
    from .s3 import connect  # slow to import, and local stores do without

    return connect(credentials or S3Credentials())


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what the file systems raise into one clear `StoreError` that names the URI."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, boto.BotoCoreError, boto.ClientError) as error:
        raise _store_error(uri, error) from error
    except Exception as error:
        # s3fs passes these on as they are: errors of a reply's body, and replies that are no S3.
        if type(error).__module__.split(".")[0] not in {"aiohttp", "botocore"}:
            raise
        raise _store_error(uri, error) from error


def _store_error(uri: str, error: Exception) -> StoreError:
    """Say what an exception of a file system means for the user, without secrets."""
    code, status = _s3_answer(error)
    if told := _refusal(uri, code, status):
        return told
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"{uri}: not found")
    if number in _LOCAL_REASONS and code is None:
        return StoreError(f"{uri}: {_LOCAL_REASONS[number]}")
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
        return StoreError(f"{uri}: the S3 server refused the request ({code})")
    if status is None and isinstance(error, OSError) and error.__cause__ is None:
        return StoreError(f"{uri}: {error.strerror or error}")
    if status is None and isinstance(error, boto.BotoCoreError):
        return StoreError(f"{uri}: not a valid S3 request ({type(error).__name__})")
    reason = code or type(error).__name__
    return StoreUnavailableError(f"{uri}: the S3 server failed ({reason}); try again later")


def _refusal(uri: str, code: str | None, status: int | None) -> StoreError | None:
    """What an S3 error code means that asks for something to be done."""
    if code == "NoSuchBucket":
        return StoreError(f"{uri}: the bucket does not exist; create it first")
    if status == 404 and code in {"", "404"}:  # a missing object has a code of its own
        return StoreError(f"{uri}: the server does not answer like S3; check the endpoint URL")
    if code in _KEY_REFUSED:
        return AccessDeniedError(f"{uri}: the S3 credentials were refused ({code})")
    if code in _CLOCK_WRONG:
        return AccessDeniedError(f"{uri}: this machine's clock is wrong; set it ({code})")
    if code in _ELSEWHERE:
        reason = "the bucket is in another region or at another endpoint; check AWS_REGION and"
        return StoreError(f"{uri}: {reason} the endpoint URL ({code})")
    if code in _STORE_FULL or status == 507:
        return StoreError(f"{uri}: the store is full or its quota used up ({code})")
    if code == "EntityTooLarge":
        return StoreError(f"{uri}: the object is larger than the S3 server takes ({code})")
    return None


def _s3_answer(error: BaseException) -> tuple[str | None, int | None]:
    """The S3 error code ("NoSuchBucket") and HTTP status behind an exception."""
    for suspect in (error, error.__cause__):
        response: Any = getattr(suspect, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return response.get("Error", {}).get("Code"), status
    return None, None


class GuardedFile(io.RawIOBase):
    """An open file whose later failures are `StoreError`, too. Not buffered."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        with store_errors(self._uri):
            return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or the rest."""
        with store_errors(self._uri):
            return self._file.read(-1 if size is None else size)

    def readall(self) -> bytes:
        """Read the rest."""
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
