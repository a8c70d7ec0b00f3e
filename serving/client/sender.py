"""`Sender`: sends each request until it is answered, or is to blame for its failure."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace

from ..background_loop import CoroutineGroup
from ..errors import EndpointError, EndpointUnreachableError
from ..types import Completion, Failure, FailureKind, Outcome
from .check import served_model
from .pool import CRASH_CHECK_SECONDS, TEST_SECONDS, ServerPool
from .retry_policy import MAX_ATTEMPTS, MAX_CRASHES, backoff
from .servers import Health, Request, Server
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


class Sender:
    """Sends requests on the client's event loop.

    Args:
        pool: the servers.
        group: the client's coroutines.
    """

    def __init__(self, pool: ServerPool, group: CoroutineGroup) -> None:
        self._pool = pool
        self._group = group
        pool.send = self._start

    def add(self, requests: Iterable[Request]) -> None:
        """Send requests as soon as their turn comes."""
        for request in requests:
            if request.unsendable is not None:
                request.end(request.unsendable)
            else:
                self._pool.crash_expected = request.max_crashes < MAX_CRASHES
                self._pool.add(request)
        self._pool.wake()

    def _start(self, request: Request, server: Server) -> None:
        self._group.spawn(self._work((request, server)))

    async def _work(self, turn: tuple[Request, Server] | None) -> None:
        """Send a request, and then others, as long as some wait and a server may get them."""
        while turn is not None:
            await self._send(*turn)
            turn = self._pool.next()

    async def _send(self, request: Request, server: Server) -> None:
        """Send a request once; it ends, or gets in line once more."""
        try:
            outcome = await self._attempt(request, server)
            stats = self._pool.stats
            if isinstance(outcome, Completion):
                stats.completions += 1
                stats.prompt_tokens += outcome.prompt_tokens
                stats.completion_tokens += outcome.completion_tokens
                stats.last_completion = server.last_completion
                request.end(outcome)
                return
            self._pool.wake()  # others need not wait for what follows
            if (final := await self._final(request, server, outcome)) is None:
                self._pool.add(request)
            else:
                stats.failures += 1
                request.end(final)
        except Exception as error:
            request.fail(error)
        except BaseException as error:
            request.fail(error)
            raise

    async def _attempt(self, request: Request, server: Server) -> Outcome:
        """Send a request once to a server that was acquired for it."""
        stats, task = self._pool.stats, asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine on a loop always has a task
        server.begin(request, task)
        request.started = request.started or request.sent
        request.attempts += 1
        stats.requests += 1
        stats.in_flight += 1
        outcome: Outcome
        try:
            outcome = await server.transport.send(
                request.body,
                request.started,
                request.attempts,
                request.max_tokens,
                request.scored,
            )
        except asyncio.CancelledError:
            if request.cancelled is None or task.cancelling() > 1:
                raise  # the client is closed
            outcome = Failure(
                request.cancelled,
                f"{server.name}: no reply for {time.monotonic() - request.sent:.0f} s",
                attempts=request.attempts,
            )
        finally:
            if request.cancelled is not None:
                task.uncancel()
            server.attempts.discard(request)
            if request.has_slot:
                stats.in_flight -= 1
            else:
                stats.overtaken -= 1
                stats.overtaken_bytes -= len(request.body)
            self._pool.release(server, has_slot=request.has_slot)
        server.end(request, outcome)
        return outcome

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
            failures = request.count_failure(failed.kind)
            if server.rate_limit.delay(time.monotonic()) <= 0:  # otherwise, all requests wait
                wait = min(failed.retry_after, _MAX_OWN_WAIT)
                await asyncio.sleep(max(wait, backoff(failures)))
            return None
        if failed.kind is FailureKind.CONNECTION:
            reason = failed.message.removeprefix(f"{server.name}: ")
            self._pool.lose(server, Health.DOWN, f"does not answer ({reason})")
            return self._crash(request, failed) if _was_lost_after_error(request) else None
        if failed.kind not in MAX_ATTEMPTS:
            return await self._rejected(request, server, failed)
        count = request.count_failure(failed.kind)
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
        return self._crash(request, failed) if _was_lost_after_error(request) else None

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


def _was_lost_after_error(request: Request) -> bool:
    """Whether the server that answered with a 5xx was lost within seconds; told only once."""
    if request.error is None:
        return False
    server, time_of_error = request.error
    lost = 0 <= server.since - time_of_error <= CRASH_CHECK_SECONDS
    if lost:
        request.error = None
        request.failures[FailureKind.SERVER_ERROR] = 0
    return lost
