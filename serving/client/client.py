"""`ChatClient`: sends chat requests concurrently and retries them."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar

import orjson

from ..background_loop import BackgroundLoop, CoroutineGroup, GroupEndedError
from ..endpoint import VLLMEndpoint, safe_url
from ..errors import EndpointError
from ..types import ChatRequest, Completion, Failure, FailureKind, Outcome
from .responses import GATEWAY_STATUSES, failure
from .retry_policy import should_retry
from .stats import ClientStats
from .transport import Transport

T = TypeVar("T")

_MAX_BACKOFF_SECONDS = 20.0
"""Upper limit of the back-off between two attempts of a request."""

_POLL_SECONDS = 3.0
"""Upper limit of the interval between two checks whether a server is up again."""

_CRASH_CHECK_DELAY = 3.0
"""Seconds after a 5xx until the server's health is checked.

When its engine has died, vLLM answers 500 for up to 2.5 s before it exits. The requests in flight
at that moment must not be blamed for the error.
"""

_SERVER_UNREACHABLE = {FailureKind.CONNECTION, FailureKind.UNAVAILABLE}
"""Failures that would affect every other request too."""


class ChatClient:
    """Sends chat requests concurrently from a background event loop.

    Threads share one client, so that connections are reused and `max_in_flight` is a limit across
    all of them. Every method raises an `EndpointError` if the client is not open, or is closed
    during the call.

    Args:
        endpoint: the servers. A request goes to the server with the fewest in flight; one that
            could not be reached gets none for some seconds, as long as there is another.
        max_in_flight: limit of requests sent and not yet answered.
        loop: the event loop to run on; by default the client starts its own.
    """

    def __init__(
        self, endpoint: VLLMEndpoint, max_in_flight: int = 64, loop: BackgroundLoop | None = None
    ) -> None:
        self.endpoint = endpoint
        self.max_in_flight = max_in_flight
        self.stats = ClientStats()
        self._transport = Transport(endpoint)
        # Bounds the requests whose images are in memory: those in flight and those next in line.
        self._buffer = threading.BoundedSemaphore(2 * max_in_flight)
        self._model = endpoint.model
        self._shared_loop = loop
        self._group: CoroutineGroup | None = None

    def __enter__(self) -> Self:
        self._loop = self._shared_loop or BackgroundLoop()
        self._group = CoroutineGroup(self._loop)
        self._await(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.start(self._transport.close()).result()
        if self._shared_loop is None:
            self._loop.close()

    def stop(self) -> None:
        """Cancel all requests and send no more; blocked callers get an `EndpointError`."""
        if self._group is not None:
            self._group.end()

    @property
    def model(self) -> str:
        """The served model's name; calls `check` if the endpoint does not name one."""
        return self.check() if self._model is None else self._model

    def check(self) -> str:
        """Ask every server which models it serves; returns the name of the model to use.

        Raises:
            EndpointError: a server is unreachable, rejects the key or does not serve the model.
        """
        for url in self._transport.urls:
            served = self._await(self._transport.served_models(url))
            if not served:
                raise EndpointError(f"{safe_url(url)} serves no model: start it with a model")
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
                    f"{', '.join(served)}"
                )
        assert self._model is not None  # noqa: S101 - there is at least one server
        return self._model

    def wait_until_up(self, seconds: float) -> bool:
        """Wait up to `seconds` (above 0) until at least one of the servers answers.

        Costs one small request per server if one is up. Threads may wait at the same time.
        """
        return self._await(self._up_within(seconds))

    def pause(self, seconds: float) -> None:
        """Sleep, but end with an `EndpointError` when the client is stopped."""
        self._await(asyncio.sleep(seconds))

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Send all requests and wait for their outcomes.

        Args:
            requests: consumed lazily as slots become free, so that only a bounded number of
                requests have their images in memory.
            on_outcome: called with position and outcome, on the event loop's thread.

        Returns:
            The outcomes, in the order of the requests.
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
        return [_result(future) for future in futures]

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

        async def complete() -> Outcome:
            outcome = body if isinstance(body, Failure) else await self._complete(body)
            if on_outcome:
                on_outcome(position, outcome)
            return outcome

        return self._start(complete())

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._group is not None:
                return self._group.start(coroutine)
        except GroupEndedError:
            pass
        coroutine.close()
        raise EndpointError("the client is closed: use it inside its `with` block")

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return _result(self._start(coroutine))

    # Everything below runs on the background loop.

    async def _open(self) -> None:
        self._slots = asyncio.Semaphore(self.max_in_flight)
        await self._transport.open()

    async def _up_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not await self._transport.any_is_up():
                    await asyncio.sleep(random.uniform(0, _POLL_SECONDS))  # noqa: S311
        except TimeoutError:
            return False
        return True

    async def _complete(self, body: bytes) -> Outcome:
        started = time.perf_counter()
        outcome = await self._attempt(body, started)
        while should_retry(outcome):
            unreachable = outcome.kind in _SERVER_UNREACHABLE
            self.stats.queued += unreachable
            try:
                await asyncio.sleep(_backoff(outcome.attempts))
            finally:
                self.stats.queued -= unreachable
            outcome = await self._attempt(body, started, outcome)
        if isinstance(outcome, Completion):
            self.stats.completions += 1
            self.stats.prompt_tokens += outcome.prompt_tokens
            self.stats.completion_tokens += outcome.completion_tokens
        else:
            self.stats.failures += 1
        return outcome

    async def _attempt(self, body: bytes, started: float, last: Outcome | None = None) -> Outcome:
        """Send a request once, after the outcome `last`; holds a slot only until the reply."""
        number, disconnects = last.attempts + 1 if last else 1, getattr(last, "disconnects", 0)
        async with self._slot():
            url = self._transport.pick()
            # A tunnel or proxy in front of a dead server accepts requests and drops them. That says
            # nothing about the request, so after a disconnect check first that the server is up.
            if disconnects and not await self._transport.is_up(url):
                what = f"{safe_url(url)}: the server went down"
                return failure(FailureKind.CONNECTION, what, number, disconnects=disconnects)
            outcome = await self._send(url, body, started, number)
        if isinstance(outcome, Completion):
            return outcome
        if await self._has_crashed(url, outcome):
            after = f"HTTP {outcome.status}" if outcome.status else "a timeout"
            what = f"{safe_url(url)}: the server went down after {after}"
            outcome = failure(FailureKind.CONNECTION, what, number, outcome.status, disconnects=1)
        return replace(outcome, disconnects=disconnects + outcome.disconnects)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it inside the block."""
        self.stats.queued += 1
        try:
            await self._slots.acquire()
        finally:
            self.stats.queued -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def _send(self, url: str, body: bytes, started: float, number: int) -> Outcome:
        self.stats.requests += 1
        self.stats.in_flight += 1
        try:
            return await self._transport.send(url, body, started, number)
        finally:
            self.stats.in_flight -= 1

    async def _has_crashed(self, url: str, failed: Failure) -> bool:
        """Whether a request failed because its server crashed, or is about to exit."""
        if failed.kind is FailureKind.SERVER_ERROR:
            await asyncio.sleep(_CRASH_CHECK_DELAY)
        elif failed.kind is not FailureKind.TIMEOUT and failed.status not in GATEWAY_STATUSES:
            return False
        return not await self._transport.is_up(url)


def _backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts; random, so that retries do not arrive all at once."""
    return random.uniform(0, min(0.5 * 2 ** (attempts - 1), _MAX_BACKOFF_SECONDS))  # noqa: S311


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise EndpointError("the client was closed before the server answered") from None
