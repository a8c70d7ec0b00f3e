"""Many chat requests in, one outcome each out, over one or more endpoints."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import orjson
import tenacity

from .endpoint import VLLMEndpoint, safe_url
from .errors import EndpointError
from .replies import failure, may_pass, read_reply, reason
from .types import ChatRequest, Completion, Failure, FailureKind, Outcome

T = TypeVar("T")

_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=20)

_REST_SECONDS = 5.0
"""How long a server that could not be reached is passed over."""


@dataclass(slots=True)
class ClientStats:
    """What a client has done so far; read it from any thread."""

    requests: int = 0
    in_flight: int = 0
    completions: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Sends chat requests concurrently from one background event loop that it owns.

    Threads share one client: connections are reused, and `max_in_flight` holds across all of them.

    Args:
        endpoint: the servers; requests go to the one with the fewest in flight. One that cannot
            be reached gets none for some seconds, as long as there is another.
        max_in_flight: requests sent and not yet answered, at most.
    """

    def __init__(self, endpoint: VLLMEndpoint, max_in_flight: int = 64) -> None:
        self.endpoint = endpoint
        self.stats = ClientStats()
        self._urls = endpoint.api_urls()
        self._load = dict.fromkeys(self._urls, 0)
        self._resting_until = dict.fromkeys(self._urls, 0.0)
        self._max_in_flight = max_in_flight
        # Bounds requests that hold their image bytes, sent or about to be.
        self._buffer = threading.BoundedSemaphore(2 * max_in_flight)
        self._model = endpoint.model
        self._running = False
        self._gate = threading.Lock()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chat-client", daemon=True
        )
        self._thread.start()
        self._running = True
        self._await(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._gate:
            self._running = False
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        closing.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def model(self) -> str:
        """The served model name; known after `check` where the endpoint names none."""
        if self._model is None:
            self.check()
        assert self._model is not None  # noqa: S101 - check() sets it or raises
        return self._model

    def check(self) -> None:
        """Ask every server what it serves, before any work.

        Raises:
            EndpointError: unreachable, wrong key, or the model is not served; one clear line.
        """
        for url in self._urls:
            served = self._await(self._served_models(url))
            if self._model is None:
                if len(served) != 1:
                    raise EndpointError(
                        f"{safe_url(url)} serves {len(served)} models ({', '.join(served)}): "
                        "name one with `model`"
                    )
                self._model = served[0]
            elif self._model not in served:
                raise EndpointError(
                    f"{safe_url(url)} does not serve {self._model!r}; it serves: "
                    f"{', '.join(served) or 'nothing'}"
                )

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Ask all of them; returns the outcomes in the order of the requests.

        `requests` is consumed lazily as slots come free, so that only requests in flight hold
        their images. `on_outcome` is called with position and outcome, on the client's thread.

        Raises:
            EndpointError: the client was closed meanwhile, or is not open.
        """
        futures: list[Future[Outcome]] = []
        iterator = iter(requests)
        while True:
            self._buffer.acquire()
            try:
                request = next(iterator, None)
                if request is None:
                    self._buffer.release()
                    break
                future = self._submit(request, len(futures), on_outcome)
            except BaseException:
                self._buffer.release()
                raise
            future.add_done_callback(lambda _: self._buffer.release())
            futures.append(future)
        try:
            return [future.result() for future in futures]
        except CancelledError:
            raise EndpointError("the client was closed before the server had answered") from None

    def _submit(
        self,
        request: ChatRequest,
        position: int,
        on_outcome: Callable[[int, Outcome], None] | None,
    ) -> Future[Outcome]:
        body: bytes | Failure
        try:
            body = orjson.dumps(
                {"model": self.model, "messages": request.messages, **request.options}
            )
        except TypeError as error:
            body = failure(FailureKind.BAD_REQUEST, f"not JSON: {error}", attempt=0)

        async def ask() -> Outcome:
            outcome = body if isinstance(body, Failure) else await self._ask(body)
            if on_outcome:
                on_outcome(position, outcome)
            return outcome

        return self._start(ask())

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        # What is started before the client closes is ended by it; nothing is started after.
        with self._gate:
            if self._running:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise EndpointError("the client is closed: use it inside its `with` block")

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._start(coroutine).result()

    # Everything below runs on the background loop.

    async def _open(self) -> None:
        endpoint = self.endpoint
        self._slots = asyncio.Semaphore(self._max_in_flight)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(
                total=endpoint.total_timeout,
                sock_connect=endpoint.connect_timeout,
                sock_read=endpoint.read_timeout,
            ),
            headers={**endpoint.headers(), "Content-Type": "application/json"},
            auto_decompress=True,
        )

    async def _close(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._session.close()

    async def _served_models(self, url: str) -> list[str]:
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
            raise EndpointError(f"{where} refuses the API key (HTTP {status})")
        try:
            return [str(model["id"]) for model in orjson.loads(data)["data"]]
        except (ValueError, KeyError, TypeError):
            raise EndpointError(
                f"{where}/models answers HTTP {status}, not a list of models: "
                "is it a vLLM server's address?"
            ) from None

    async def _ask(self, body: bytes) -> Outcome:
        started = time.perf_counter()
        async with self._slots:
            outcome = await self._send(body, started, 1)
            if may_pass(outcome):
                outcome = await self._ask_again(body, started, outcome)
        if isinstance(outcome, Completion):
            self.stats.completions += 1
            self.stats.prompt_tokens += outcome.prompt_tokens
            self.stats.completion_tokens += outcome.completion_tokens
        else:
            self.stats.failures += 1
        return outcome

    async def _ask_again(self, body: bytes, started: float, first: Outcome) -> Outcome:
        """Send the same request with backoff and jitter, as long as its failure can pass."""
        outcome = first

        async def attempt() -> Outcome:
            nonlocal outcome
            if given:
                outcome = await self._send(body, started, outcome.attempts + 1)
            given.append(True)
            return outcome

        # The first round hands over the outcome that is there: waiting comes before asking again.
        given: list[bool] = []
        return await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(may_pass), wait=_BACKOFF
        )(attempt)

    async def _send(self, body: bytes, started: float, attempt: int) -> Outcome:
        url = self._pick()
        self._load[url] += 1
        self.stats.requests += 1
        self.stats.in_flight += 1
        try:
            async with self._session.post(
                f"{url}/chat/completions", data=body, allow_redirects=False
            ) as response:
                data = await response.read()
                return read_reply(response.status, data, time.perf_counter() - started, attempt)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # A server that is gone fails at once: with the least load, it would get everything.
            self._resting_until[url] = time.monotonic() + _REST_SECONDS
            return failure(FailureKind.CONNECTION, f"{safe_url(url)}: {reason(error)}", attempt)
        except (aiohttp.ClientError, OSError) as error:
            waited = isinstance(error, TimeoutError)
            kind = FailureKind.TIMEOUT if waited else FailureKind.CONNECTION
            return failure(kind, f"{safe_url(url)}: {reason(error)}", attempt)
        finally:
            self._load[url] -= 1
            self.stats.in_flight -= 1

    def _pick(self) -> str:
        now = time.monotonic()
        up = [url for url in self._urls if self._resting_until[url] <= now]
        return min(up or self._urls, key=self._load.__getitem__)
