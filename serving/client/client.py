"""Many chat requests in, one outcome each out, over one or more endpoints."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import orjson

from ..background import BackgroundLoop, CoroutineGroup, GroupEndedError
from ..endpoint import VLLMEndpoint, safe_url
from ..errors import EndpointError
from ..types import ChatRequest, Completion, Failure, FailureKind, Outcome
from .replies import GATEWAY_STATUSES, failure, may_pass
from .transport import Transport

T = TypeVar("T")

_LONGEST_WAIT = 20.0
"""Seconds before a request is sent again, at most."""

_POLL_SECONDS = 3.0
"""Between two looks whether a server is back, at most."""

_DYING_SECONDS = 3.0
"""How long after a 5xx a server is looked at again.

vLLM whose engine has died answers 500 for up to 2.5 s more before it exits: what was with it then
must not be taken for a request that it cannot answer.
"""


_SERVER_AWAY = {FailureKind.CONNECTION, FailureKind.UNAVAILABLE}
"""What every other request would come to as well."""


@dataclass(slots=True)
class ClientStats:
    """What a client has done so far; read it from any thread.

    Attributes:
        requests: sent, repeated ones included.
        queued: requests that wait for a slot, or for a server that is away.
        in_flight: requests that are with a server.
        completions: requests that were answered.
        failures: requests that were given up.
        prompt_tokens: tokens the model read.
        completion_tokens: tokens the model wrote.
    """

    requests: int = 0
    queued: int = 0
    in_flight: int = 0
    completions: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Sends chat requests concurrently from a background event loop.

    Threads share one client: connections are reused, and `max_in_flight` holds across all of them.
    Who waits for it gets an `EndpointError` when it is closed, or was not open.

    Args:
        endpoint: the servers; requests go to the one with the fewest in flight. One that cannot
            be reached gets none for some seconds, as long as there is another.
        max_in_flight: requests sent and not yet answered, at most.
        loop: what it runs on; by default a loop of its own.
    """

    def __init__(
        self, endpoint: VLLMEndpoint, max_in_flight: int = 64, loop: BackgroundLoop | None = None
    ) -> None:
        self.endpoint = endpoint
        self.max_in_flight = max_in_flight
        self.stats = ClientStats()
        self._transport = Transport(endpoint)
        # Bounds requests that hold their image bytes, sent or about to be.
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
        """Give up what is in flight, and send nothing more; who waits gets an `EndpointError`."""
        if self._group is not None:
            self._group.end()

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
        for url in self._transport.urls:
            served = self._await(self._transport.served_models(url))
            if not served:
                raise EndpointError(f"{safe_url(url)} serves no model: start it with one")
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

    def wait_until_up(self, seconds: float) -> bool:
        """Wait until at least one of the servers answers, at most `seconds` (above 0).

        One small request where a server is up. Threads may wait at the same time.
        """
        return self._await(self._up_within(seconds))

    def pause(self, seconds: float) -> None:
        """Wait before asking again."""
        self._await(asyncio.sleep(seconds))

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Ask all of them; returns the outcomes in the order of the requests.

        `requests` is consumed lazily as slots come free, so that only requests in flight hold
        their images. `on_outcome` is called with position and outcome, on the client's thread.
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

        async def ask() -> Outcome:
            outcome = body if isinstance(body, Failure) else await self._ask(body)
            if on_outcome:
                on_outcome(position, outcome)
            return outcome

        return self._start(ask())

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

    async def _ask(self, body: bytes) -> Outcome:
        started = time.perf_counter()
        outcome = await self._attempt(body, started)
        while may_pass(outcome):
            away = outcome.kind in _SERVER_AWAY
            self.stats.queued += away
            try:
                await asyncio.sleep(_backoff(outcome.attempts))
            finally:
                self.stats.queued -= away
            outcome = await self._attempt(body, started, outcome)
        if isinstance(outcome, Completion):
            self.stats.completions += 1
            self.stats.prompt_tokens += outcome.prompt_tokens
            self.stats.completion_tokens += outcome.completion_tokens
        else:
            self.stats.failures += 1
        return outcome

    async def _attempt(self, body: bytes, started: float, last: Outcome | None = None) -> Outcome:
        """Send it once more after `last`; a slot is held while it is with the server, no longer."""
        number, cuts = last.attempts + 1 if last else 1, getattr(last, "cuts", 0)
        async with self._slot():
            url = self._transport.pick()
            # A tunnel or proxy before a dead server accepts a request and drops it, which is no
            # cut: what was cut goes out again only to a server that is seen to be there.
            if cuts and not await self._transport.is_up(url):
                what = f"{safe_url(url)}: the server went away"
                return failure(FailureKind.CONNECTION, what, number, cuts=cuts)
            outcome = await self._send(url, body, started, number)
        if isinstance(outcome, Completion):
            return outcome
        if await self._is_dying(url, outcome):
            after = f"HTTP {outcome.status}" if outcome.status else "a timeout"
            what = f"{safe_url(url)}: the server went away after {after}"
            outcome = failure(FailureKind.CONNECTION, what, number, outcome.status, cuts=1)
        return replace(outcome, cuts=cuts + outcome.cuts)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
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

    async def _is_dying(self, url: str, failed: Failure) -> bool:
        """Whether a request has failed because its server has gone, or is about to."""
        if failed.kind is FailureKind.SERVER_ERROR:
            await asyncio.sleep(_DYING_SECONDS)
        elif failed.kind is not FailureKind.TIMEOUT and failed.status not in GATEWAY_STATUSES:
            return False
        return not await self._transport.is_up(url)


def _backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts; random, so that requests do not come back at once."""
    return random.uniform(0, min(0.5 * 2 ** (attempts - 1), _LONGEST_WAIT))  # noqa: S311


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise EndpointError("the client was closed before the server had answered") from None
