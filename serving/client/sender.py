"""`Sender`: sends one request until it is answered, or is to blame for its failure."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..errors import EndpointError, EndpointUnreachableError
from ..types import Completion, Failure, FailureKind, Outcome
from .check import served_model
from .pool import CRASH_CHECK_SECONDS, TEST_SECONDS, ServerPool
from .retry_policy import MAX_ATTEMPTS, backoff
from .servers import Attempt, Health, Server
from .stats import ClientStats
from .transport import is_alive

_CHECKED_AT_ONCE = {FailureKind.DISCONNECTED, FailureKind.UNAVAILABLE}
"""Failures after which the server is likely to be down."""

_CRASH_SYMPTOMS = {FailureKind.DISCONNECTED, FailureKind.SERVER_ERROR}
"""How a request fails that crashes its server."""

_MAX_OWN_WAIT = 30.0
"""Seconds that a rejected request waits at most, if the others do not."""

_CUT_CHECK_SECONDS = 0.3
"""How long a server that lost a connection may take to complete another request, before it is
tested: a server that has crashed refuses connections at once."""


@dataclass(slots=True, eq=False)
class Request:
    """A request with its history.

    Attributes:
        body: the request as JSON.
        max_crashes: losses of the server, while it works on the request, after which it fails.
        free: called when the request no longer counts for the limit of requests in memory.
        max_tokens: how many tokens it asks for at most, if it says so.
        started: `time.monotonic()` when it was first sent.
        attempts: how many times it was sent.
        crashes: how many times its server was lost while it worked on it.
        failures: how many times it failed while the server was alive, by kind.
        error: the server and the time of its last 5xx, which may announce a crash.
    """

    body: bytes
    max_crashes: int
    free: Callable[[], None]
    max_tokens: int | None = None
    started: float = 0.0
    attempts: int = 0
    crashes: int = 0
    failures: Counter[FailureKind] = field(default_factory=Counter)
    error: tuple[Server, float] | None = None

    def was_lost_after_error(self) -> bool:
        """Whether the server that answered with a 5xx was lost within seconds; told only once."""
        if self.error is None:
            return False
        server, time_of_error = self.error
        lost = 0 <= server.since - time_of_error <= CRASH_CHECK_SECONDS
        if lost:
            self.error = None
            self.failures[FailureKind.SERVER_ERROR] = 0
        return lost


class Sender:
    """Sends requests on the client's event loop.

    Args:
        pool: the servers.
        stats: the client's counters.
    """

    def __init__(self, pool: ServerPool, stats: ClientStats) -> None:
        self._pool = pool
        self._stats = stats

    async def complete(self, request: Request) -> Outcome:
        """Send a request until it is answered, or fails for good.

        Raises:
            EndpointError: the server rejects the key, or does not serve the model.
            ImageQAError: the servers were waited for in vain.
        """
        while True:
            self._stats.queued += 1
            try:
                server = await self._pool.acquire()
            finally:
                self._stats.queued -= 1
            outcome = await self._attempt(request, server)
            if isinstance(outcome, Completion):
                self._stats.completions += 1
                self._stats.prompt_tokens += outcome.prompt_tokens
                self._stats.completion_tokens += outcome.completion_tokens
                self._stats.last_completion = server.last_completion
                return outcome
            if (final := await self._final(request, server, outcome)) is not None:
                self._stats.failures += 1
                return final

    async def _attempt(self, request: Request, server: Server) -> Outcome:
        """Send a request once to a server that was acquired for it."""
        attempt = Attempt(
            sent=time.monotonic(),
            overtaken_at=server.completed + server.load + self._pool.max_in_flight,
            size=len(request.body),
            scope=asyncio.timeout(None),
            on_overtaken=request.free,
        )
        request.started = request.started or attempt.sent
        request.attempts += 1
        self._stats.requests += 1
        self._stats.in_flight += 1
        try:
            return await server.send(
                request.body, attempt, request.started, request.attempts, request.max_tokens
            )
        finally:
            if attempt.has_slot:
                self._stats.in_flight -= 1
            else:
                self._stats.overtaken -= 1
                self._stats.overtaken_bytes -= attempt.size
            self._pool.release(server, has_slot=attempt.has_slot)

    async def _final(self, request: Request, server: Server, failed: Failure) -> Failure | None:
        """What a failed attempt means for its request.

        Returns:
            The failure, if the request is to blame; None to send it again, as soon as a server is
            up.

        Raises:
            EndpointError: the server's configuration is to blame.
        """
        if self._pool.error is not None:
            return None  # the pool raises it
        if failed.kind is FailureKind.RATE_LIMITED:
            request.failures[failed.kind] += 1
            if server.rate_limit.delay(time.monotonic()) <= 0:  # otherwise, all requests wait
                wait = min(failed.retry_after, _MAX_OWN_WAIT)
                await asyncio.sleep(max(wait, backoff(request.failures[failed.kind])))
            return None
        if failed.kind is FailureKind.CONNECTION:
            reason = failed.message.removeprefix(f"{server.name}: ")
            self._pool.lose(server, Health.DOWN, f"does not answer ({reason})")
            return self._crash(request, failed) if request.was_lost_after_error() else None
        if failed.kind not in MAX_ATTEMPTS:
            return await self._rejected(request, server, failed)
        request.failures[failed.kind] += 1
        count = request.failures[failed.kind]
        is_last = count >= MAX_ATTEMPTS[failed.kind]
        if is_last or failed.kind in _CHECKED_AT_ONCE:
            is_cut = failed.kind is FailureKind.DISCONNECTED
            patience = _CUT_CHECK_SECONDS if is_cut else CRASH_CHECK_SECONDS
            if not await self._pool.answers(server, time.monotonic(), patience):
                request.failures[failed.kind] -= 1
                return self._crash(request, failed) if failed.kind in _CRASH_SYMPTOMS else None
        if is_last:
            return failed
        request.error = (server, time.monotonic()) if failed.kind in _CRASH_SYMPTOMS else None
        await asyncio.sleep(backoff(count))
        return self._crash(request, failed) if request.was_lost_after_error() else None

    def _crash(self, request: Request, failed: Failure) -> Failure | None:
        """Count that the server was lost with a request; the failure, if that was too often."""
        request.crashes += 1
        if request.crashes < request.max_crashes:
            return None
        return replace(failed, kind=FailureKind.CRASH)

    async def _rejected(self, request: Request, server: Server, failed: Failure) -> Failure | None:
        """A rejected request is to blame, unless the server rejects its key or model in general."""
        if failed.kind is FailureKind.BAD_REQUEST or server.last_completion > request.started:
            return failed
        try:
            model = await served_model(self._pool, self._pool.model)
        except EndpointUnreachableError:
            self._pool.lose(server, Health.DOWN, "does not answer")
            return None
        if is_alive(await server.transport.test_request(model, TEST_SECONDS)):
            return failed
        raise EndpointError(f"{server.name} refuses to answer: {failed.message}")
