"""Local paths and `s3://` behind one door: file systems, and what their errors mean."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fsspec
from botocore import exceptions as boto

from .errors import StoreError

SUPPORTED = "a local path or s3://bucket/prefix"

_KEY_REFUSED = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
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


class ObjectMissingError(StoreError):
    """There is no object of that name."""


class StoreUnavailableError(StoreError):
    """The store did not answer, or answered that it cannot now; later it may."""


class AccessDeniedError(StoreError):
    """There are no S3 credentials, they were refused, or they do not allow this."""


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """Who we are to an S3 server, and where it is. What is empty comes from the environment.

    Attributes:
        access_key_id: name of the key.
        secret_access_key: the key's secret; never shown.
        session_token: of temporary credentials; never shown.
        endpoint_url: the server, where it is not AWS's own.
        region: its region.
    """

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    endpoint_url: str = ""
    region: str = ""


def is_path(uri: str) -> bool:
    """Whether a local path or `s3://` URI can be encoded for the system that is to read it."""
    try:
        # Python stands a local file's name that is not UTF-8 for with surrogates; S3 has none.
        uri.encode("utf-8", "strict" if uri[:5].lower() == "s3://" else "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in uri


def open_filesystem(
    uri: str, credentials: S3Credentials | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Find the file system of a URI and the path in it.

    S3 credentials, region and endpoint come from the standard AWS environment, profile or role;
    one connection is kept per process, until that environment changes.

    Args:
        uri: a local path (`~` is the home folder) or `s3://bucket/prefix`.
        credentials: who to be on S3; by default the environment says.

    Raises:
        StoreError: the URI is of another kind, or no S3 session could be made.
    """
    if not uri.strip() or not is_path(uri):
        raise StoreError(f"an empty or broken path; give {SUPPORTED}")
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))  # noqa: PTH100, PTH111
    if scheme.lower() != "s3":
        raise StoreError(f"{scheme[:20]}:// is not supported; give {SUPPORTED}")
    path = rest.strip("/")
    bucket = path.split("/", 1)[0]
    if not bucket or "@" in bucket or ":" in bucket:
        raise StoreError("an s3:// URI without a plain bucket name; give s3://bucket/prefix")
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith("AWS_")))
    with store_errors(f"s3://{path}"):
        return _connect(os.getpid(), environment, credentials), path


@lru_cache(maxsize=4)
def _connect(
    _pid: int,  # a connection does not survive a fork
    _environment: tuple[tuple[str, str], ...],
    credentials: S3Credentials | None,
) -> fsspec.AbstractFileSystem:
    import s3fs
    from botocore.handlers import add_expect_header
    from botocore.session import Session

    given = credentials or S3Credentials()
    region = given.region or Session().get_config_variable("region") or os.environ.get("AWS_REGION")
    filesystem = s3fs.S3FileSystem(
        key=given.access_key_id or None,
        secret=given.secret_access_key or None,
        token=given.session_token or None,
        endpoint_url=given.endpoint_url or None,
        use_listings_cache=False,  # others write to the bucket too
        skip_instance_cache=True,
        default_block_size=4 << 20,
        config_kwargs={
            "region_name": region or "us-east-1",
            "signature_version": "s3v4",
            "connect_timeout": 5,
            "read_timeout": 15,
            "s3": {"addressing_style": "path"},
            "retries": {"mode": "standard", "max_attempts": 2},
            # Many servers that speak S3 send no checksums.
            "response_checksum_validation": "when_required",
            "request_checksum_calculation": "when_required",
        },
    )
    filesystem.retries = 3  # multiplies with botocore's own; the default waits 44 s
    filesystem.connect()
    # Waiting for "100 Continue" is outside the read timeout: a silent server would hang us.
    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)
    return filesystem


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
        # s3fs passes errors of aiohttp's response body on as they are; not worth its import.
        if type(error).__module__.split(".")[0] != "aiohttp":
            raise
        raise _store_error(uri, error) from error


def _store_error(uri: str, error: Exception) -> StoreError:
    """Say what an exception of a file system means for the user, without secrets."""
    code, status = _s3_answer(error)
    number = getattr(error, "errno", None)
    if code == "NoSuchBucket":
        return StoreError(f"{uri}: the bucket does not exist; create it first")
    if isinstance(error, FileNotFoundError):
        return ObjectMissingError(f"{uri}: not found")
    if code in _KEY_REFUSED:
        return AccessDeniedError(f"{uri}: the S3 credentials were refused ({code})")
    if number in _LOCAL_REASONS:
        return StoreError(f"{uri}: {_LOCAL_REASONS[number]}")
    if isinstance(error, PermissionError):
        reason = "access denied; check the S3 credentials and the bucket's policy"
        return AccessDeniedError(f"{uri}: {reason}")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        reason = "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        return AccessDeniedError(f"{uri}: {reason}")
    if isinstance(error, boto.ProfileNotFound | boto.ConfigNotFound):
        return AccessDeniedError(f"{uri}: the AWS profile cannot be used: {error}")
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | TimeoutError):
        reason = "the S3 endpoint cannot be reached; check AWS_ENDPOINT_URL and the network"
        return StoreUnavailableError(f"{uri}: {reason}")
    if status is not None and status < 500 and status != 429:
        return StoreError(f"{uri}: the S3 server refused the request ({code})")
    if status is None and isinstance(error, OSError) and error.__cause__ is None:
        return StoreError(f"{uri}: {error.strerror or error}")
    if status is None and isinstance(error, boto.BotoCoreError):
        return StoreError(f"{uri}: not a valid S3 request ({type(error).__name__})")
    reason = code or type(error).__name__
    return StoreUnavailableError(f"{uri}: the S3 server failed ({reason}); try again later")


def _s3_answer(error: BaseException) -> tuple[str | None, int | None]:
    """The S3 error code ("NoSuchBucket") and HTTP status behind an exception."""
    for suspect in (error, error.__cause__):
        response: Any = getattr(suspect, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return response.get("Error", {}).get("Code"), status
    return None, None
