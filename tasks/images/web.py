"""Images from the web: identified by their ETag, fetched within limits.

URLs and servers are untrusted; `web_addresses` decides which ones may be contacted.
"""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import aiohttp
import tenacity
from yarl import URL

from ...serving.background_loop import BackgroundLoop, CoroutineGroup, GroupEndedError
from ...serving.client.responses import retry_after_seconds
from ..errors import StoreUnavailableError
from ..object_store.patience import Patience
from ..records import Kind, RowError
from .skipped_hosts import SkippedHosts
from .web_addresses import (
    CheckedResolver,
    check_host,
    display_url,
    parse_image_url,
    redirect_target,
)
from .web_errors import TransientError, host_port, request_error

T = TypeVar("T")

MAX_ATTEMPTS = 3
"""Attempts at an image, if a retry may help."""

MAX_REDIRECTS = 5

MAX_REQUESTS_PER_HOST = 4
"""Concurrent requests to one host, so as not to overload it."""

CONNECT_SECONDS = 10.0

TOTAL_SECONDS = 30.0
"""For one attempt with redirects and the complete body; waiting for a busy host is not counted. No
attempt begins later."""

MAX_RETRY_WAIT = 30.0
"""Most seconds to wait before a retry, even if a server asks for more."""

_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT_STATUSES = {408, 425, 429, 500, *range(502, 600)}
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=MAX_RETRY_WAIT)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes | None
    """None if it is larger than the limit."""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class WebImages:
    """Fetches images on a background event loop that threads share.

    It connects to public addresses only (see `web_addresses`). It uses no cookies, credentials or
    proxies from the environment, and decompresses nothing.

    Args:
        max_bytes: larger images are not fetched.
        allow_private_hosts: also fetch from private and loopback addresses.
        loop: the event loop; by default it starts one.
        patience: with a host that has answered and no longer does; by default there is none.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        allow_private_hosts: bool = False,
        loop: BackgroundLoop | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._patience = patience or Patience()
        self._allow_private = allow_private_hosts
        self._owns_loop = loop is None
        self._background = loop or BackgroundLoop()
        self._group = CoroutineGroup(self._background)
        self._skipped = SkippedHosts()
        self._await(self._open())

    def close(self) -> None:
        """Cancel running requests; threads that wait for one get a `RowError`."""
        self._group.end()
        self._background.start(self._session.close()).result()
        if self._owns_loop:
            self._background.close()

    def identify(self, url: str) -> str:
        """Request the ETag of an image, without its content.

        Returns:
            `etag:<tag>:<bytes>:<digest of the URL>`, or `url:<digest>` if the server gives no ETag
            or an error status: only `read` can tell whether the image exists.

        Raises:
            RowError: as for `read`, but not for a missing image.
        """
        target = parse_image_url(url)
        reply = self._fetch("HEAD", target, self._max_bytes)
        # A URL may carry a signature; an identity must hold no secret.
        digest = hashlib.sha256(str(target).encode()).hexdigest()
        if reply.body is None:
            raise self._too_large(target)
        tag = reply.headers.get("ETag") if reply.ok else None
        if not tag:
            return f"url:{digest}"
        return f"etag:{tag}:{reply.headers.get('Content-Length', '')}:{digest}"

    def read(self, url: str) -> bytes:
        """Fetch an image.

        Raises:
            RowError: image_missing, image_too_large, image_refused (the URL, a redirect or its
                host's address), bad_row (not a URL), or connection and timeout (both transient).
        """
        if (data := self.read_up_to(url, self._max_bytes)) is None:
            raise self._too_large(parse_image_url(url))
        return data

    def read_up_to(self, url: str, limit: int) -> bytes | None:
        """Fetch an image; None if it has more bytes than the limit.

        Raises:
            RowError: as for `read`.
        """
        target = parse_image_url(url)
        reply = self._fetch("GET", target, limit)
        if not reply.ok:
            raise RowError(Kind.IMAGE_MISSING, f"{display_url(target)}: HTTP status {reply.status}")
        return reply.body

    def _too_large(self, url: URL) -> RowError:
        limit = f"the limit of {self._max_bytes / 1e6:g} MB"
        return RowError(Kind.IMAGE_TOO_LARGE, f"{display_url(url)} is larger than {limit}")

    def _fetch(self, method: str, url: URL, limit: int) -> _Reply:
        """Send a request; wait for a host that has answered before in this run."""
        try:
            return self._patience.call(lambda: self._await(self._request(method, url, limit)))
        except StoreUnavailableError as error:
            self._skipped.add(error.server)
            raise RowError(Kind.CONNECTION, str(error)) from None

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return self._group.start(coroutine).result()
        except GroupEndedError:
            message = "the client for web images is closed"
            raise RowError(Kind.CONNECTION, message) from None
        except CancelledError:
            raise RowError(Kind.CONNECTION, "closed before the image was fetched") from None

    # Everything below runs on the background event loop.

    async def _open(self) -> None:
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self._allow_private),
                limit=0,  # the number of waiting threads is the limit
                # With thousands of hosts, idle connections must not use up the file descriptors.
                keepalive_timeout=2,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={
                "User-Agent": f"prefect-imageqa/{version('prefect-imageqa')}",
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )

    async def _request(self, method: str, url: URL, limit: int) -> _Reply:
        began = time.monotonic()
        try:
            return await tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(_may_pass),
                stop=tenacity.stop_after_attempt(MAX_ATTEMPTS)
                | tenacity.stop_after_delay(TOTAL_SECONDS),
                wait=_wait,
                reraise=True,
            )(self._follow, method, url, limit)
        except TransientError as error:
            if not (host := error.unreachable):
                raise
            answered = self._patience.last_answer(host)
            if answered and answered < began:
                problem = "timeout" if error.problem.kind is Kind.TIMEOUT else "no connection"
                reason = f"does not answer ({problem})"
                raise StoreUnavailableError(str(error), host, reason) from None
            if not answered:  # otherwise only this one URL is silent
                self._skipped.add(host)
            raise

    async def _follow(self, method: str, url: URL, limit: int) -> _Reply:
        seconds, target = TOTAL_SECONDS, url
        for _ in range(MAX_REDIRECTS + 1):
            check_host(target, self._allow_private)
            host = str(target.raw_host)
            async with self._host_slots.setdefault(host, asyncio.Semaphore(MAX_REQUESTS_PER_HOST)):
                server = host_port(target)
                if state := self._skipped.why(server):
                    message = f"{display_url(target)}: {server} was {state} a moment ago"
                    raise RowError(Kind.CONNECTION, message)
                started = time.monotonic()
                reply = await self._send(method, target, limit, max(seconds, 0.001))
                seconds -= time.monotonic() - started
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or location is None:
                return reply
            target = redirect_target(target, location)
        raise RowError(Kind.IMAGE_MISSING, f"{display_url(url)}: over {MAX_REDIRECTS} redirects")

    async def _send(self, method: str, url: URL, limit: int, seconds: float) -> _Reply:
        """Send one request, without following redirects."""
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        began, is_reading = time.monotonic(), False
        # After slow redirects the host has too little time left to be blamed for a timeout.
        answered = seconds < CONNECT_SECONDS
        try:
            async with self._session.request(
                method, url, timeout=limits, allow_redirects=False
            ) as response:
                answered = True
                self._patience.answered(host_port(url))
                if response.status in _TRANSIENT_STATUSES:
                    wait = retry_after_seconds(response.headers.get("Retry-After", ""))
                    message = f"{display_url(url)}: HTTP status {response.status}"
                    raise TransientError(Kind.CONNECTION, message, wait)
                is_reading = True
                body = await _body(response, limit) if 200 <= response.status < 300 else b""
                if method == "GET":
                    self._skipped.note_sent(host_port(url))
                return _Reply(response.status, response.headers, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failed = request_error(url, error, TOTAL_SECONDS, answered=answered)
            took_long = (
                isinstance(error, TimeoutError) or time.monotonic() - began > CONNECT_SECONDS
            )
            if is_reading and took_long and isinstance(failed, TransientError):
                failed.is_slow = True
                self._skipped.note_slow(host_port(url))
            raise failed from None


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The content; None if it has more bytes than the limit."""
    data = bytearray()
    if (response.content_length or 0) > limit:
        return None
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, TransientError) and not error.is_slow


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    requested = error.wait if isinstance(error, TransientError) else 0
    return min(max(_BACKOFF(state), requested), MAX_RETRY_WAIT)
