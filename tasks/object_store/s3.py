"""The connection to an S3 server: its timeouts and retries.

Imported only when an `s3://` URI is used: importing s3fs is slow.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fsspec
import fsspec.asyn
import s3fs
from botocore import exceptions as boto
from botocore.handlers import add_expect_header
from botocore.session import Session

from .credentials import S3Credentials

_CONNECT_TIMEOUT = 5.0
_READ_TIMEOUT = 15.0
"""Seconds without receiving a byte."""

_FIRST_BACKOFF = 0.2
"""Seconds before the second attempt; each further wait is twice as long."""

_ATTEMPTS_THROTTLED = 6
_ATTEMPTS_FAILED = 4
_ATTEMPTS_SILENT = 2
"""Low, so that we give up on a server that never answers within half a minute."""

_CALL_TIMEOUT = 45.0
_MIN_BYTES_PER_SECOND = 256 << 10
"""A call with all its retries may take `_CALL_TIMEOUT` seconds, plus the time for its data at this
rate. The timeouts above do not catch a server that accepts no bytes or only trickles them."""

_THROTTLED_CODES = {"RequestLimitExceeded", "ServiceUnavailable", "SlowDown", "TooManyRequests"}


class _S3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        body = kwargs.get("Body") or b""
        async with _call_timeout(len(body)):
            reply = await super()._call_s3(method, *args, **kwargs)
        if method == "get_object":
            reply["Body"] = _TimedBody(reply["Body"], int(reply.get("ContentLength") or 0))
        return reply

    async def _sizes(self, path: str, deep: bool) -> dict[str, int]:
        bucket, _, prefix = path.partition("/")
        sizes: dict[str, int] = {}
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        request |= {} if deep else {"Delimiter": "/"}
        while True:
            page = await self._call_s3("list_objects_v2", **request)
            sizes.update((found["Key"], int(found["Size"])) for found in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return sizes
            request["ContinuationToken"] = page["NextContinuationToken"]

    def sizes(self, path: str, *, deep: bool) -> dict[str, int]:
        """Names and sizes of all objects of a bucket whose names begin with a path.

        Keeps a tenth of what `find` keeps of each, which matters for a million objects. If not
        `deep`, objects are left out whose names have a further slash.
        """
        sizes: dict[str, int] = fsspec.asyn.sync(self.loop, self._sizes, path, deep)
        return sizes


class _TimedBody:
    """The body of a reply, with a read timeout that fits its size."""

    def __init__(self, body: Any, size: int) -> None:
        self._body = body
        self._size = size

    async def read(self, *count: int) -> bytes:
        async with _call_timeout(self._size):
            data: bytes = await self._body.read(*count)
            return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


@asynccontextmanager
async def _call_timeout(size: int) -> AsyncIterator[None]:
    """Cancel a call that takes longer than `size` bytes may take."""
    try:
        async with asyncio.timeout(_CALL_TIMEOUT + size / _MIN_BYTES_PER_SECOND):
            yield
    except TimeoutError as error:
        raise boto.EndpointConnectionError(endpoint_url="S3", error=error) from error


def connect(credentials: S3Credentials) -> fsspec.AbstractFileSystem:
    """Open a file system for one S3 server. Safe across threads, not across a fork."""
    region = (
        credentials.region
        or Session().get_config_variable("region")
        or os.environ.get("AWS_REGION")
        or "us-east-1"
    )
    filesystem = _S3FileSystem(
        key=credentials.access_key_id or None,
        secret=credentials.secret_access_key or None,
        token=credentials.session_token or None,
        endpoint_url=credentials.endpoint_url or None,
        use_listings_cache=False,  # others write to the bucket too
        skip_instance_cache=True,
        default_block_size=4 << 20,
        # One request per object: parts fetched separately could be of different versions of it.
        max_concurrency=1,
        config_kwargs={
            "region_name": region,
            "signature_version": "s3v4",
            "connect_timeout": _CONNECT_TIMEOUT,
            "read_timeout": _READ_TIMEOUT,
            "s3": {"addressing_style": "path"},
            "retries": {"mode": "standard", "total_max_attempts": 1},  # `_retry_delay` decides
            # Many S3-compatible servers send no checksums.
            "response_checksum_validation": "when_required",
            "request_checksum_calculation": "when_required",
        },
    )
    filesystem.retries = 2  # for truncated replies; multiplies with `_retry_delay`
    filesystem.connect()
    events = filesystem.s3.meta.events
    events.register_first("needs-retry.s3", _retry_delay)
    # The read timeout does not cover waiting for "100 Continue": a silent server would hang us.
    events.unregister("before-call.s3", add_expect_header)
    return filesystem


def _retry_delay(
    attempts: int, response: Any, caught_exception: Exception | None, **_: Any
) -> float | None:
    """Seconds to wait before the next attempt, or None if there should be none.

    Raises:
        EndpointConnectionError: there was no response and no attempts are left.
        ClientError: the server redirects without saying where; botocore would retry forever.
    """
    if response is not None and response[0].status_code in {301, 302, 307, 308}:
        http, parsed = response
        if "x-amz-bucket-region" not in http.headers and "Region" not in parsed.get("Error", {}):
            raise boto.ClientError(parsed, "redirect")
    if attempts >= _max_attempts(response, caught_exception):
        if isinstance(caught_exception, boto.HTTPClientError):
            # s3fs retries this one itself, and would wait for a silent server many times over.
            raise boto.EndpointConnectionError(endpoint_url="S3", error=caught_exception)
        return None
    # With jitter: clients that were throttled together must not all retry at the same time.
    wait: float = _FIRST_BACKOFF * 2 ** (attempts - 1) * random.uniform(0.5, 1)  # noqa: S311
    return wait


def _max_attempts(response: Any, error: Exception | None) -> int:
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError):
        return _ATTEMPTS_SILENT
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError):
        return _ATTEMPTS_FAILED
    if response is None:
        return 1
    http, parsed = response
    code = parsed.get("Error", {}).get("Code", "")
    if http.status_code in {429, 503} or code in _THROTTLED_CODES:
        return _ATTEMPTS_THROTTLED
    failed = http.status_code in {500, 502, 504} or code == "RequestTimeout"
    return _ATTEMPTS_FAILED if failed else 1
