"""HTTP to one server. Runs on the client's event loop."""

import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from yarl import URL

from ..endpoint import VLLMEndpoint, safe_url
from ..errors import EndpointError, EndpointUnreachableError
from ..metrics import Counters, parse_metrics
from ..types import Completion, Failure, FailureKind, Outcome
from .addresses import PinnedResolver
from .bodies import MAX_BODY, BodyError, read_body, reply_limit
from .proxies import proxy_of
from .responses import kind_of_error, read_reply, reason

_KEEPALIVE_SECONDS = 4.0
"""How long an idle connection may be reused: less than the 5 s after which vLLM closes it.

A request on a connection that an idle server has just closed looks like one during which the server
crashed.
"""

PROBE_SECONDS = 5.0
"""How long a server may take to report its health or its counters."""

_ERRORS = (aiohttp.ClientError, OSError, RuntimeError)
"""How a request fails. `RuntimeError`: the server has left, and its session is closed."""


class Transport:
    """The connections to one server.

    Attributes:
        url: its API URL, ending with `/v1`.
        key: URL and address, which together identify it.
        name: for messages, without secrets.

    Args:
        url: its API URL, ending with `/v1`.
        endpoint: key, headers and connect timeout.
        address: the IP address to connect to, if the URL's host has several.
    """

    def __init__(self, url: str, endpoint: VLLMEndpoint, address: str = "") -> None:
        self.url = url
        self.key = (url, address)
        self.name = f"{safe_url(url).removesuffix('/v1')}{f' ({address})' if address else ''}"
        self._root = url.removesuffix("/v1")
        headers = endpoint.headers()
        self._has_key = any(name.lower() == "authorization" for name in headers)
        self._proxy = proxy_of(url)
        resolver = PinnedResolver(address) if address else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, resolver=resolver
            ),
            # Requests are cancelled by the watchdog, which knows whether the server is alive.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_timeout),
            headers={
                **headers,
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,  # without a limit; see `read_body`
            **_proxy_options(self._proxy),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(
        self,
        body: bytes,
        started: float,
        attempt: int,
        max_tokens: int | None = None,
        scored: str = "",
    ) -> Outcome:
        """Send a request once.

        Args:
            body: the request as JSON.
            started: `time.monotonic()` at the start of the first attempt.
            attempt: counts from 1.
            max_tokens: the limit of the request, if it has one.
            scored: the text that it scores, if that is what it does; the reply may be long then.
        """
        try:
            async with self._session.post(
                f"{self.url}/chat/completions", data=body, allow_redirects=False
            ) as response:
                data = await read_body(response, reply_limit(None if scored else max_tokens))
                latency = time.monotonic() - started
                wait = response.headers.get("Retry-After", "")
                outcome = read_reply(
                    response.status, data, latency, attempt, wait, max_tokens, scored
                )
                return self._with_advice(outcome)
        except _ERRORS as error:
            return Failure(kind_of_error(error), f"{self.name}: {reason(error)}", attempts=attempt)

    async def is_healthy(self) -> bool:
        """Whether the server reports to be up; it may be stalled all the same."""
        status = await self._status(f"{self._root}/health")
        if status is not None and 300 <= status < 500:  # a gateway that does not expose /health
            status = await self._status(f"{self.url}/models")
        return status is not None and status < 500

    async def _status(self, url: str) -> int | None:
        try:
            async with self._session.get(
                url, timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS), allow_redirects=False
            ) as response:
                return response.status
        except _ERRORS:
            return None

    async def test_request(self, model: str, seconds: float) -> Outcome:
        """Ask for a single token, to see whether the server answers at all."""
        message = {"role": "user", "content": "Hello"}
        body = orjson.dumps({"model": model, "messages": [message], "max_tokens": 1})
        limit: dict[str, Any] = {"timeout": aiohttp.ClientTimeout(total=seconds)}
        try:
            async with self._session.post(
                f"{self.url}/chat/completions", data=body, allow_redirects=False, **limit
            ) as response:
                return read_reply(response.status, await read_body(response, MAX_BODY), 0.0, 1)
        except TimeoutError:
            return Failure(FailureKind.TIMEOUT, f"no reply within {seconds:g} s")
        except _ERRORS as error:
            return Failure(FailureKind.CONNECTION, reason(error))

    async def counters(self) -> Counters | None:
        """The counters of vLLM; None if they cannot be read."""
        try:
            async with self._session.get(
                f"{self._root}/metrics",
                timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS),
                allow_redirects=False,
            ) as response:
                data = await read_body(response, MAX_BODY)
                return parse_metrics(data.decode("utf-8", "replace"))
        except _ERRORS:
            return None

    async def is_asleep(self) -> bool:
        """Whether the engine was put to sleep: it answers nothing then, and may not be tested."""
        counters = await self.counters()
        return counters is not None and counters.asleep

    async def served_models(self) -> list[str]:
        """The names of the models the server serves.

        Raises:
            EndpointUnreachableError: it does not answer, or not yet.
            EndpointError: it rejects the key, or is not a vLLM server.
        """
        where = safe_url(self.url)
        try:
            async with self._session.get(
                f"{self.url}/models", timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False
            ) as response:
                data, status = await read_body(response, MAX_BODY), response.status
        except BodyError as error:
            raise EndpointError(f"{where}/models: {error}{self._through_proxy()}") from None
        except (*_ERRORS, ValueError) as error:
            raise EndpointUnreachableError(
                f"no server answers at {where} ({reason(error)}): start one with "
                f"`prefect-imageqa serve MODEL`, or check the URL{self._through_proxy()}"
            ) from None
        if status in {401, 403}:
            problem = "rejects the API key" if self._has_key else "wants an API key"
            sent = (
                ""
                if self._has_key
                else ", and no key was sent: give the endpoint one, "
                "as PREFECT_IMAGEQA_API_KEY or in a saved vLLM Endpoint block"
            )
            raise EndpointError(f"{where} {problem} (HTTP {status}){sent}{self._through_proxy()}")
        try:
            return [str(model["id"]) for model in orjson.loads(data)["data"]]
        except (ValueError, KeyError, TypeError):
            error_type = EndpointUnreachableError if status >= 500 else EndpointError
            raise error_type(
                f"{where}/models returned HTTP {status} and no list of models: "
                f"is this the address of a vLLM server?{self._through_proxy()}"
            ) from None

    def _with_advice(self, outcome: Outcome) -> Outcome:
        """The outcome; one rejected for want of a key says so."""
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.AUTH and not self._has_key:
            return replace(outcome, message=f"{outcome.message} (no key was sent)")
        return outcome

    def _through_proxy(self) -> str:
        """The proxy that may be to blame, for the end of a message; empty without one."""
        if self._proxy is None:
            return ""
        host = urlsplit(self.url).hostname
        return (
            f" (asked through the proxy {safe_url(self._proxy)}; to ask it directly, "
            f"add {host} to no_proxy)"
        )


def _proxy_options(proxy: str | None) -> dict[str, Any]:
    """Options of a session that sends everything through a proxy."""
    if proxy is None:
        return {}
    plain, auth = aiohttp.helpers.strip_auth_from_url(URL(proxy))
    return {"proxy": plain, "proxy_auth": auth}


def is_alive(reply: Outcome) -> bool | None:
    """Whether the reply to a test request shows a server that answers; None if it does not tell.

    A rejection (wrong key, rate limit, a model that needs an image) says nothing about the engine,
    nor does an error that a gateway sends with HTTP 200: the gateway itself is up.
    """
    if isinstance(reply, Completion):
        return True
    if reply.status == 200 and reply.kind is not FailureKind.BAD_REPLY:
        return None
    rejections = {
        FailureKind.AUTH,
        FailureKind.NOT_FOUND,
        FailureKind.BAD_REQUEST,
        FailureKind.RATE_LIMITED,
    }
    return None if reply.kind in rejections else False
