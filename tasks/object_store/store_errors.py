"""What the errors of a local file system or an S3 server mean: which `StoreError`, in one line."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from ..errors import AccessDeniedError, ObjectMissingError, StoreError, StoreUnavailableError

_CREDENTIALS_REJECTED = {
    *("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"),
}
_CLOCK_SKEWED = {"RequestExpired", "RequestTimeTooSkewed"}
_WRONG_REGION = {
    *("301", "307", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    *("PermanentRedirect", "TemporaryRedirect"),
}
_STORE_FULL = {"InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull"}
_UNKNOWN_NAME = "unknown host name"
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


@contextmanager
def store_errors(uri: str, server: str = "") -> Iterator[None]:
    """Turn any error of the file systems into one `StoreError` that names the URI.

    Args:
        uri: what is accessed.
        server: the S3 server, for people.
    """
    try:
        yield
    except StoreError:
        raise
    except (OSError, boto.BotoCoreError, boto.ClientError) as error:
        raise _store_error(uri, server, error) from error
    except Exception as error:
        # s3fs does not wrap these: errors while reading a body, and replies that are not S3.
        if type(error).__module__.split(".")[0] not in {"aiohttp", "botocore"}:
            raise
        raise _store_error(uri, server, error) from error


def _store_error(uri: str, server: str, error: Exception) -> StoreError:
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
    if status is not None and status < 500 and status != 429:
        return StoreError(f"{uri}: the S3 server rejected the request ({code})")
    if status is None and _is_connection_error(error):
        return _unreachable(uri, server, error)
    if status is None and isinstance(error, OSError) and error.__cause__ is None:
        return StoreError(f"{uri}: {error.strerror or error}")
    if status is None and isinstance(error, boto.BotoCoreError):
        return StoreError(f"{uri}: not a valid S3 request ({type(error).__name__})")
    reason = code or type(error).__name__
    return StoreUnavailableError(
        f"{uri}: the S3 server failed ({reason}); try again later",
        server,
        f"fails ({reason})",
        is_misaddressed=isinstance(error, ResponseParserError),  # it speaks no S3
    )


def _is_connection_error(error: Exception) -> bool:
    kinds = (boto.ConnectionError, boto.HTTPClientError, TimeoutError, ConnectionError)
    return isinstance(error, kinds) or type(error).__module__.startswith("aiohttp")


def _unreachable(uri: str, server: str, error: Exception) -> StoreError:
    """The error for a request without a reply."""
    problem = _connection_problem(error)
    what, check = f"cannot be reached ({problem})", "the network"
    if isinstance(error, boto.SSLError):
        what, check = "speaks no TLS, or its certificate is not trusted", "AWS_CA_BUNDLE"
    return StoreUnavailableError(
        f"{uri}: the S3 endpoint {what}; check the endpoint URL and {check}",
        server,
        f"does not answer ({problem})",
        is_misaddressed=problem == _UNKNOWN_NAME or isinstance(error, boto.SSLError),
    )


def _connection_problem(error: BaseException) -> str:
    """What happened to a connection, in a few words and without its address."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return _UNKNOWN_NAME
    timeouts = (TimeoutError, boto.ConnectTimeoutError, boto.ReadTimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes):
        return "timeout"
    numbers = [cause.errno for cause in causes if isinstance(cause, OSError) and cause.errno]
    return os.strerror(numbers[0]).lower() if numbers else "connection lost"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it; botocore keeps them in an attribute, aiohttp in another."""
    while error is not None:
        yield error
        known = getattr(error, "kwargs", {}).get("error") or getattr(error, "os_error", None)
        error = known or error.__cause__


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
