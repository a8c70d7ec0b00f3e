"""`ChatClient`: sends chat requests concurrently and retries them."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

from ..background_loop import BackgroundLoop, CoroutineGroup, GroupEndedError, Mailbox
from ..endpoint import VLLMEndpoint
from ..errors import EndpointError, EndpointUnreachableError
from ..types import ChatRequest, Failure, FailureKind, Outcome, Recovery
from .auto_limit import MaxInFlight, first_limit
from .check import served_model
from .each_server import ask_each_server
from .outcomes import CLOSED, Outcomes
from .pool import ServerPool
from .request_budget import RequestBudget
from .retry_policy import MAX_CRASHES
from .scores import scored_text
from .sender import Sender
from .servers import Request
from .stats import ClientStats
from .steering import Steering
from .watchdog import Watchdog

T = TypeVar("T")

_LOGGER = logging.getLogger("prefect_imageqa.serving")

_CHECK_SECONDS = 2.0
"""Interval at which a server that is not up yet is asked again."""

_NOT_OPEN = "the client is closed: use it inside its `with` block"


class ChatClient:
    """Sends chat requests concurrently from a background event loop.

    Threads share one client, so that connections are reused and `max_in_flight` is a limit across
    all of them. Every method raises an `EndpointError` if the client is not open, or is closed
    during the call.

    Requests wait while no server is up. A server that accepts requests and answers none is noticed
    within a minute; its requests go to other servers, or wait as well. `stats.notes` says at any
    time what is waited for.

    Args:
        endpoint: the servers. A request goes to the one that is likely to answer it first.
        max_in_flight: limit of requests sent and not yet answered, over all servers; "auto" finds
            one for each server that keeps it busy, without a long queue.
        loop: the event loop to run on; by default the client starts its own.
        request_timeout: seconds after which a request is cancelled if its server answers others
            meanwhile; never less than ten times what requests usually take.
        server_wait: seconds to wait while no server answers.
        recovery: restarts the only server, if it was started by the caller. Then `server_wait`
            does not count.
        sharers: how many clients send requests to these servers at the same time, this one
            included. A number given as `max_in_flight` is that of this client alone.
    """

    def __init__(
        self,
        endpoint: VLLMEndpoint,
        max_in_flight: MaxInFlight = "auto",
        loop: BackgroundLoop | None = None,
        *,
        request_timeout: float = 300.0,
        server_wait: float = 900.0,
        recovery: Recovery | None = None,
        sharers: int = 1,
    ) -> None:
        self.endpoint = endpoint
        self.stats = ClientStats()
        self._request_timeout = request_timeout
        self._server_wait = server_wait
        self._recovery = recovery
        self._sharers = sharers
        self._fixed_limit = None if max_in_flight == "auto" else max_in_flight
        self._model = endpoint.model
        self._shared_loop = loop
        self._group: CoroutineGroup | None = None
        self._memory = RequestBudget(2 * self.max_in_flight)

    def __enter__(self) -> Self:
        self._loop = self._shared_loop or BackgroundLoop()
        group = CoroutineGroup(self._loop)
        self._pool = ServerPool(
            self.endpoint,
            group,
            self.stats,
            self._fixed_limit,
            self._server_wait,
            self._recovery,
            self._sharers,
        )
        self._mailbox = Mailbox(self._loop, Sender(self._pool, group).add)
        self._group = group
        self._await(self._open(group))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.start(self._pool.close()).result()
        if self._shared_loop is None:
            self._loop.close()

    def stop(self) -> None:
        """Cancel all requests and send no more; blocked callers get an `EndpointError`."""
        if self._group is not None:
            self._mailbox.close()
            self._group.end(self._pool.close_line)
            self.stats.notes = ()  # it waits for nothing any more

    @property
    def max_in_flight(self) -> int:
        """Limit of requests sent and not yet answered, over all servers, as it is now."""
        if self._fixed_limit is not None:
            return self._fixed_limit
        if self._group is None:
            return first_limit(self._sharers) * len(self.endpoint.urls)
        return self._pool.max_in_flight

    @property
    def model(self) -> str:
        """The served model's name; calls `check` if the endpoint does not name one."""
        return self.check() if self._model is None else self._model

    @property
    def server_count(self) -> int:
        """How many servers there are."""
        return len(self._pool.servers)

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
        outcomes, count = Outcomes(on_outcome), 0
        iterator = iter(requests)
        try:
            while outcomes.error is None:
                self._memory.acquire()
                request = Request(outcomes, count, max_crashes, self._memory)
                try:
                    if (chat := next(iterator, None)) is None:
                        request.leave_memory()
                        break
                    self._submit(request, chat)
                except BaseException:
                    request.leave_memory()
                    raise
                count += 1
        except Exception:
            outcomes.wait(count)  # those that were sent are paid for
            raise
        return outcomes.result(count)

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
        bodies = [request.body(self.model) for request in requests]
        return self._await(ask_each_server(self._pool, bodies, seconds))

    def _submit(self, request: Request, chat: ChatRequest) -> None:
        try:
            body = chat.body(self.model)
        except TypeError as error:
            message = f"not JSON: {error}"
            request.unsendable = Failure(FailureKind.BAD_REQUEST, message, attempts=0)
        else:
            request.max_tokens = _max_tokens(chat.options)
            request.scored = scored_text(chat)
            request.hold(body)
        if self._group is None or not self._mailbox.put(request):
            raise EndpointError(_NOT_OPEN)

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            if self._group is not None:
                return self._group.start(coroutine).result()
        except GroupEndedError:
            pass
        except CancelledError:
            raise EndpointError(CLOSED) from None
        coroutine.close()
        raise EndpointError(_NOT_OPEN)

    # Everything below runs on the background loop.

    async def _open(self, group: CoroutineGroup) -> None:
        await self._pool.refresh()
        self._resize_memory()
        group.spawn(Watchdog(self._pool, group, self._request_timeout).run())
        if self._fixed_limit is None:
            group.spawn(Steering(self._pool, group, self._resize_memory).run())

    def _resize_memory(self) -> None:
        self._memory.resize(2 * self.max_in_flight)

    async def _check(self) -> str:
        self._pool.model = await served_model(self._pool, self._model)
        return self._pool.model


def _max_tokens(options: Mapping[str, Any]) -> int | None:
    """How many tokens a request asks for at most, under either name of that option."""
    limit = options.get("max_completion_tokens")
    limit = options.get("max_tokens") if limit is None else limit
    return limit if isinstance(limit, int) else None
