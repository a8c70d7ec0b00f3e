"""Images from the web: known by the server's tag of them, fetched within limits.

URLs and servers are a stranger's; `web_addresses` says where they may lead.
"""

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import aiohttp
import tenacity
from yarl import URL

from ...serving.background import BackgroundLoop, CoroutineGroup, GroupEndedError
from ...serving.client.replies import reason
from ..records import Kind, RowError
from .web_addresses import (
    CheckedResolver,
    RefusedAddressError,
    check_host,
    redirected,
    refused,
    shown,
    web_url,
)

T = TypeVar("T")

ATTEMPTS = 3
"""Tries at an image, where trying again may help."""

MAX_REDIRECTS = 5

PER_HOST = 4
"""Requests at once to one host, so that we are no burden to it."""

CONNECT_SECONDS = 10.0

TOTAL_SECONDS = 30.0
"""For one try, redirects and the whole image; waiting for a busy host's turn is not counted."""

MAX_WAIT = 30.0
"""Seconds waited before another try at most, also where a server asks for more."""

REST_SECONDS = 60.0
"""How long a host that cannot be reached or is silent is passed over: datasets are full of them."""

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, *range(502, 600)}
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=MAX_WAIT)


class _PassingError(RowError):
    """What may go well when it is tried again.

    Attributes:
        wait: seconds that the server asks to wait first.
        unreached: host and port, where these could not be connected to, or did not answer.
    """

    def __init__(self, kind: Kind, message: str, wait: float = 0, unreached: str = "") -> None:
        super().__init__(kind, message)
        self.wait = wait
        self.unreached = unreached


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class WebImages:
    """Fetches images on a background event loop; threads share it.

    Only public addresses are connected to (see `web_addresses`). No cookies, credentials or
    proxies of the environment are used, and nothing is decompressed.

    Args:
        max_bytes: larger images are not fetched.
        allow_private_hosts: let images come from private and loopback addresses too.
        loop: what it runs on; by default a loop of its own.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        allow_private_hosts: bool = False,
        loop: BackgroundLoop | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._allow_private = allow_private_hosts
        self._owns_loop = loop is None
        self._background = loop or BackgroundLoop()
        self._group = CoroutineGroup(self._background)
        self._await(self._open())

    def close(self) -> None:
        """End what is under way; those who wait for it get a `RowError`."""
        self._group.end()
        self._background.start(self._session.close()).result()
        if self._owns_loop:
            self._background.close()

    def identify(self, url: str) -> str:
        """Ask the server for its tag of an image, without the image.

        Gives `etag:<tag>:<bytes>:<digest of the URL>`, or `url:<digest>` where the server has no
        tag, or does not say: whether there is an image, only `read` can tell.

        Raises:
            RowError: as `read` does, but for a missing image.
        """
        target = web_url(url)
        reply = self._await(self._ask("HEAD", target))
        # A URL may carry a signature; an identity must hold no secret.
        digest = hashlib.sha256(str(target).encode()).hexdigest()
        tag = reply.headers.get("ETag") if reply.ok else None
        if not tag:
            return f"url:{digest}"
        return f"etag:{tag}:{reply.headers.get('Content-Length', '')}:{digest}"

    def read(self, url: str) -> bytes:
        """Fetch an image.

        Raises:
            RowError: image_missing, image_too_large, image_refused (the URL, a redirect or its
                host's address), bad_row (no URL), or connection and timeout, which may pass.
        """
        target = web_url(url)
        reply = self._await(self._ask("GET", target))
        if not reply.ok:
            raise RowError(Kind.IMAGE_MISSING, f"{shown(target)}: answers HTTP {reply.status}")
        return reply.body

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            return self._group.start(coroutine).result()
        except GroupEndedError:
            message = "the client for images from the web is closed"
            raise RowError(Kind.CONNECTION, message) from None
        except CancelledError:
            raise RowError(Kind.CONNECTION, "closed before the image had been fetched") from None

    # Everything below runs on the background loop.

    async def _open(self) -> None:
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._resting_until: dict[str, float] = {}
        self._answered: dict[str, float] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self._allow_private),
                limit=0,  # as many as there are threads that wait
                # Thousands of hosts, each asked once, must not use up the file descriptors.
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

    async def _ask(self, method: str, url: URL) -> _Reply:
        began = time.monotonic()
        try:
            return await tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(_PassingError),
                stop=tenacity.stop_after_attempt(ATTEMPTS),
                wait=_wait,
                reraise=True,
            )(self._follow, method, url)
        except _PassingError as error:
            # One silent address of a host that answers others says nothing of the host.
            if error.unreached and self._answered.get(error.unreached, 0) < began:
                self._resting_until[error.unreached] = time.monotonic() + REST_SECONDS
            raise

    async def _follow(self, method: str, url: URL) -> _Reply:
        seconds, target = TOTAL_SECONDS, url
        for _ in range(MAX_REDIRECTS + 1):
            check_host(target, self._allow_private)
            host = str(target.raw_host)
            async with self._turns.setdefault(host, asyncio.Semaphore(PER_HOST)):
                if self._resting_until.get(_place(target), 0) > time.monotonic():
                    what = f"{shown(target)}: {_place(target)} could not be reached a moment ago"
                    raise RowError(Kind.CONNECTION, what)
                started = time.monotonic()
                reply = await self._send(method, target, max(seconds, 0.001))
                seconds -= time.monotonic() - started
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or location is None:
                return reply
            target = redirected(target, location)
        raise RowError(Kind.IMAGE_MISSING, f"{shown(url)}: over {MAX_REDIRECTS} redirects")

    async def _send(self, method: str, url: URL, seconds: float) -> _Reply:
        """Make one request; its redirect is not followed."""
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        answers = seconds < CONNECT_SECONDS  # redirects took the rest: it had no fair chance
        try:
            async with self._session.request(
                method, url, timeout=limits, allow_redirects=False
            ) as response:
                answers = True
                self._answered[_place(url)] = time.monotonic()
                if response.status in _PASSING:
                    wait = _retry_after(response.headers.get("Retry-After", ""))
                    message = f"{shown(url)}: answers HTTP {response.status}"
                    raise _PassingError(Kind.CONNECTION, message, wait)
                body = await self._body(response) if 200 <= response.status < 300 else b""
                return _Reply(response.status, response.headers, body)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _wire_error(url, error, answers) from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large(response.url)
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large(response.url)
        return bytes(data)

    def _too_large(self, url: URL) -> RowError:
        limit = f"the limit of {self._max_bytes / 1e6:g} MB"
        return RowError(Kind.IMAGE_TOO_LARGE, f"{shown(url)} is larger than {limit}")


def _wire_error(
    url: URL, error: aiohttp.ClientError | OSError | ValueError, answers: bool
) -> RowError:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return RowError(Kind.CONNECTION, f"{shown(url)}: its certificate is not trusted")
    if isinstance(error, ValueError):  # of aiohttp, or of the encoding of a host name
        return RowError(Kind.BAD_ROW, f"{shown(url)} is no URL that can be asked")
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, RefusedAddressError):
            return refused(url)
        message = f"{shown(url)}: {reason(error)}"
        return _PassingError(Kind.CONNECTION, message, unreached=_place(url))
    if isinstance(error, TimeoutError):
        unreached = "" if answers else _place(url)  # a slow image says nothing of its host
        message = f"{shown(url)}: no image within {TOTAL_SECONDS:g} s"
        return _PassingError(Kind.TIMEOUT, message, unreached=unreached)
    return _PassingError(Kind.CONNECTION, f"{shown(url)}: {reason(error)}")


def _place(url: URL) -> str:
    return f"{url.raw_host}:{url.port}"


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _PassingError) else 0
    return min(max(_BACKOFF(state), asked), MAX_WAIT)


def _retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks for: a number, or a date."""
    if value.isdecimal():
        return float(value[:9])
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0
