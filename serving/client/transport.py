"""HTTP to the servers, and the choice of server. Runs on the client's event loop."""

import asyncio
import time

import aiohttp
import orjson

from ..endpoint import VLLMEndpoint, safe_url
from ..errors import EndpointError
from ..types import FailureKind, Outcome
from .responses import failure, is_disconnect, read_reply, reason

_COOLDOWN_SECONDS = 5.0
"""How long a server that could not be reached gets no requests."""

_KEEPALIVE_SECONDS = 4.0
"""How long an idle connection may be reused: less than the 5 s after which vLLM closes it.

A request on a connection that an idle server has just closed looks like one during which the server
crashed.
"""

_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5)


class Transport:
    """Connections to an endpoint's servers, with the load of each server."""

    def __init__(self, endpoint: VLLMEndpoint) -> None:
        self.urls = endpoint.api_urls()
        self._endpoint = endpoint
        self._load = dict.fromkeys(self.urls, 0)
        self._cooldown_until = dict.fromkeys(self.urls, 0.0)

    async def open(self) -> None:
        """Create the HTTP session; connections are opened as needed."""
        endpoint = self._endpoint
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=endpoint.total_timeout,
                sock_connect=endpoint.connect_timeout,
                sock_read=endpoint.read_timeout,
            ),
            headers={**endpoint.headers(), "Content-Type": "application/json"},
            auto_decompress=True,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def pick(self) -> str:
        """The server with the fewest requests; one in its cool-down only if there is no other."""
        now = time.monotonic()
        up = [url for url in self.urls if self._cooldown_until[url] <= now]
        return min(up or self.urls, key=self._load.__getitem__)

    async def send(self, url: str, body: bytes, started: float, attempt: int) -> Outcome:
        """Send a request to one server, once.

        Args:
            url: the server.
            body: the request as JSON.
            started: `time.perf_counter()` at the start of the first attempt.
            attempt: counts from 1.
        """
        self._load[url] += 1
        try:
            async with self._session.post(
                f"{url}/chat/completions", data=body, allow_redirects=False
            ) as response:
                data = await response.read()
                return read_reply(response.status, data, time.perf_counter() - started, attempt)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # A dead server fails fast, so its load is always lowest: it would get every request.
            self._cooldown_until[url] = time.monotonic() + _COOLDOWN_SECONDS
            return failure(FailureKind.CONNECTION, f"{safe_url(url)}: {reason(error)}", attempt)
        except TimeoutError as error:
            return failure(FailureKind.TIMEOUT, f"{safe_url(url)}: {reason(error)}", attempt)
        except (aiohttp.ClientError, OSError) as error:
            what = f"{safe_url(url)}: {reason(error)}"
            return failure(
                FailureKind.CONNECTION, what, attempt, disconnects=int(is_disconnect(error))
            )
        finally:
            self._load[url] -= 1

    async def is_up(self, url: str) -> bool:
        """Whether the server answers now; if it does not, its cool-down starts."""
        status = await self._status(f"{url.removesuffix('/v1')}/health")
        if status is not None and 300 <= status < 500:  # a gateway that does not expose /health
            status = await self._status(f"{url}/models")
        up = status is not None and status < 500
        self._cooldown_until[url] = 0.0 if up else time.monotonic() + _COOLDOWN_SECONDS
        return up

    async def any_is_up(self) -> bool:
        """Whether at least one of the servers answers now."""
        return any(await asyncio.gather(*map(self.is_up, self.urls)))

    async def _status(self, url: str) -> int | None:
        try:
            async with self._session.get(
                url, timeout=_PROBE_TIMEOUT, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, OSError):
            return None

    async def served_models(self, url: str) -> list[str]:
        """The names of the models a server serves.

        Raises:
            EndpointError: it does not answer, rejects the key, or is not a vLLM server.
        """
        where = safe_url(url)
        try:
            async with self._session.get(
                f"{url}/models", timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False
            ) as response:
                data, status = await response.read(), response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise EndpointError(
                f"no server answers at {where} ({reason(error)}): "
                "start one with `prefect-imageqa serve MODEL`, or check the URL"
            ) from None
        if status in {401, 403}:
            raise EndpointError(f"{where} rejects the API key (HTTP {status})")
        try:
            return [str(model["id"]) for model in orjson.loads(data)["data"]]
        except (ValueError, KeyError, TypeError):
            raise EndpointError(
                f"{where}/models returned HTTP {status} and no list of models: "
                "is this the address of a vLLM server?"
            ) from None
