"""`ChatClient`: sends chat requests concurrently and retries them."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from typing import Any, Self, TypeVar

import orjson

from ..background_loop import BackgroundLoop, CoroutineGroup, GroupEndedError
from ..endpoint import VLLMEndpoint
from ..errors import EndpointError, EndpointUnreachableError
from ..types import ChatRequest, Failure, FailureKind, Outcome, Recovery
from .check import served_model
from .each_server import ask_each_server
from .pool import ServerPool
from .retry_policy import MAX_CRASHES
from .sender import Request, Sender
from .stats import ClientStats
from .watchdog import Watchdog

T = TypeVar("T")

_LOGGER = logging.getLogger("prefect_imageqa.serving")

_CHECK_SECONDS = 2.0
"""Interval at which a server that is not up yet is asked again."""


class ChatClient:
    """Sends chat requests concurrently from a background event loop.

    Threads share one client, so that connections are reused and `max_in_flight` is a limit across
    all of them. Every method raises an `EndpointError` if the client is not open, or is closed
    during the call.

    Requests wait while no server is up. A server that accepts requests and answers none is noticed
    within a minute; its requests go to other servers, or wait as well. `stats.notes` says at any
    time what is waited for.

    Args:
        endpoint: the servers. A request goes to the one with the fewest in flight.
        max_in_flight: limit of requests sent and not yet answered.
        loop: the event loop to run on; by default the client starts its own.
        request_timeout: seconds after which a request is cancelled if its server answers others
            meanwhile; never less than ten times what requests usually take.
        server_wait: seconds to wait while no server answers.
        recovery: restarts the only server, if it was started by the caller. Then `server_wait`
            does not count.
    """

    def __init__(
        self,
        endpoint: VLLMEndpoint,
        max_in_flight: int = 64,
        loop: BackgroundLoop | None = None,
        *,
        request_timeout: float = 300.0,
        server_wait: float = 900.0,
        recovery: Recovery | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.max_in_flight = max_in_flight
        self.stats = ClientStats()
        self._request_timeout = request_timeout
        self._server_wait = server_wait
        self._recovery = recovery
        # Bounds the requests whose images are in memory: those in flight and those next in line.
        self._buffer = threading.BoundedSemaphore(2 * max_in_flight)
        self._model = endpoint.model
        self._shared_loop = loop
        self._group: CoroutineGroup | None = None

    def __enter__(self) -> Self:
        self._loop = self._shared_loop or BackgroundLoop()
        self._group = CoroutineGroup(self._loop)
        self._await(self._open(self._group))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.start(self._pool.close()).result()
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

    def check(self, wait_seconds: float = 0.0) -> str:
        """Ask the servers which models they serve; returns the name of the model to use.

        Of several servers, one that answers is enough; the others are waited for.

        Args:
            wait_seconds: how long to wait until a server answers.

        Raises:
            EndpointUnreachableError: no server answers.
            EndpointError: a server rejects the key or does not serve the model.
        """
        began = time.monotonic()
        while True:
            try:
                self._model = self._await(self._check())
            except EndpointUnreachableError as error:
                waited = time.monotonic() - began
                if waited >= wait_seconds:
                    raise
                if not self._pool.note:
                    _LOGGER.warning("%s; waiting for it, up to %.0f s", error, wait_seconds)
                name = self._pool.servers[0].name
                self._pool.note = (
                    f"{name} is not up yet: waiting, {waited:.0f} s of {wait_seconds:.0f}"
                )
                self._await(asyncio.sleep(min(wait_seconds - waited, _CHECK_SECONDS)))
            else:
                self._pool.note = ""
                return self._model

    def complete(
        self,
        requests: Iterable[ChatRequest],
        on_outcome: Callable[[int, Outcome], None] | None = None,
        *,
        max_crashes: int = MAX_CRASHES,
    ) -> list[Outcome]:
        """Send all requests and wait for their outcomes.

        Args:
            requests: consumed lazily as slots become free, so that only a bounded number of
                requests have their images in memory.
            on_outcome: called with position and outcome, on the event loop's thread.
            max_crashes: losses of the server after which the requests it was working on fail, as
                `FailureKind.CRASH`.

        Returns:
            The outcomes, in the order of the requests.

        Raises:
            EndpointError: no server answered for `server_wait` seconds, or one rejects the key or
                no longer serves the model. Outcomes until then were reported to `on_outcome`.
        """
        futures: list[Future[Outcome]] = []
        errors: list[BaseException] = []
        iterator = iter(requests)
        try:
            while not errors:
                self._buffer.acquire()
                free = _once(self._buffer.release)
                try:
                    request = next(iterator, None)
                    if request is None:
                        free()
                        break
                    future = self._submit(request, len(futures), on_outcome, max_crashes, free)
                except BaseException:
                    free()
                    raise
                future.add_done_callback(lambda done: _collect(done, errors))
                futures.append(future)
        except Exception:
            wait(futures)  # those that were sent are paid for
            raise
        wait(futures)
        return [_result(future) for future in futures]

    def complete_at_each(
        self, requests: Sequence[ChatRequest], seconds: float
    ) -> Mapping[str, Sequence[Outcome]]:
        """Send a few requests to each server that is up, outside of all limits and counts.

        Args:
            requests: each for a few tokens; none is repeated.
            seconds: how long to wait for the replies.

        Returns:
            The outcomes of each server by its name, in the order of the requests.
        """
        bodies = [
            orjson.dumps({"model": self.model, "messages": request.messages, **request.options})
            for request in requests
        ]
        return self._await(ask_each_server(self._pool, bodies, seconds))

    def _submit(
        self,
        request: ChatRequest,
        position: int,
        on_outcome: Callable[[int, Outcome], None] | None,
        max_crashes: int,
        free: Callable[[], None],
    ) -> Future[Outcome]:
        body: bytes | Failure
        try:
            body = orjson.dumps(
                {"model": self.model, "messages": request.messages, **request.options}
            )
        except TypeError as error:
            body = Failure(FailureKind.BAD_REQUEST, f"not JSON: {error}", attempts=0)

        async def complete() -> Outcome:
            self._pool.crash_expected = max_crashes < MAX_CRASHES
            try:
                outcome = (
                    body
                    if isinstance(body, Failure)
                    else await self._sender.complete(
                        Request(body, max_crashes, free, _max_tokens(request.options))
                    )
                )
            finally:
                free()
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

    async def _open(self, group: CoroutineGroup) -> None:
        slots = asyncio.Semaphore(self.max_in_flight)
        self._pool = ServerPool(self.endpoint, group, self._server_wait, self._recovery)
        self._sender = Sender(self._pool, self.stats, slots, self.max_in_flight)
        await self._pool.refresh()
        watchdog = Watchdog(
            self._pool, group, self.stats, slots, self.max_in_flight, self._request_timeout
        )
        group.spawn(watchdog.run())

    async def _check(self) -> str:
        self._pool.model = await served_model(self._pool, self._model)
        return self._pool.model


def _max_tokens(options: Mapping[str, Any]) -> int | None:
    """How many tokens a request asks for at most, under either name of that option."""
    limits = (options.get("max_completion_tokens"), options.get("max_tokens"))
    return next((limit for limit in limits if isinstance(limit, int)), None)


def _collect(future: Future[Outcome], errors: list[BaseException]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        errors.append(error)


def _once(function: Callable[[], object]) -> Callable[[], None]:
    """Calls the function at the first call only; for use by several threads."""
    calls = [function]

    def call() -> None:
        with suppress(IndexError):
            calls.pop()()

    return call


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise EndpointError("the client was closed before the server answered") from None
