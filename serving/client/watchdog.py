"""Notices servers that are stalled, and requests that are never answered."""

import asyncio
import logging
import time

from ..background_loop import CoroutineGroup, Tolerated
from ..types import Completion, FailureKind
from .notes import notes_about
from .pool import TEST_SECONDS, ServerPool
from .servers import Health, Server
from .transport import is_alive

_LOGGER = logging.getLogger("prefect_imageqa.serving")

QUIET_SECONDS = 30.0
"""Without a completion for this long (or five times what is usual), a busy server is looked at."""

_ANSWERS = "it answers test requests"

_COMPUTING_SHARE = 0.1
"""Processors that the engines of a server of our own must use to count as computing."""

_TICK_SECONDS = 0.25
_NOTES_SECONDS = 1.0
_FIRST_LOG_SECONDS = 10.0
_LOG_SECONDS = 60.0
"""Notes are logged when they have lasted for the first of these, and then at this interval."""

_REFRESH_SECONDS = 30.0
"""How often names are resolved again, and the memory of a server of our own is looked at."""

_MOVE_SECONDS = 30.0
"""A server that has been down for this long is not going to answer the requests it was sent."""

_MAX_OVERTAKEN = 4
_MAX_OVERTAKEN_BYTES = 256 << 20
"""Overtaken requests may number this many times the limit of requests in flight, with this many
bytes: they wait outside of that limit, so that they hold up no others."""


class Watchdog:
    """Watches the servers of a client.

    Args:
        pool: the servers.
        group: the client's coroutines.
        request_timeout: seconds after which a request is cancelled.
    """

    def __init__(
        self,
        pool: ServerPool,
        group: CoroutineGroup,
        request_timeout: float,
    ) -> None:
        self._pool = pool
        self._group = group
        self._stats = pool.stats
        self._request_timeout = request_timeout
        self._described = self._refreshed = time.monotonic()
        self._next_log = self._described + _FIRST_LOG_SECONDS
        self._refreshing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refreshing.set_result(None)
        self._tolerated = Tolerated("the watchdog")

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            with self._tolerated:  # a run without its watchdog could fall silent
                self._tick(time.monotonic())
            await asyncio.sleep(_TICK_SECONDS)

    def _tick(self, now: float) -> None:
        for server in self._pool.servers:
            self._watch(server, now)
        self._pool.check_deadline(now)
        if now - self._described >= _NOTES_SECONDS:
            self._described = now
            self._stats.notes = notes_about(self._pool, now, self._request_timeout)
            self._log_notes(now)
        if now - self._refreshed >= _REFRESH_SECONDS and self._refreshing.done():
            self._refreshed = now
            self._refreshing = self._group.spawn(self._refresh())

    async def _refresh(self) -> None:
        """What may take long, above all where name servers do not answer."""
        with self._tolerated:
            await self._pool.refresh()
            await self._check_memory()

    def _log_notes(self, now: float) -> None:
        """Log the notes that last, soon and then once a minute."""
        if not self._stats.notes:
            self._next_log = now + _FIRST_LOG_SECONDS
        elif now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            for note in self._stats.notes:
                _LOGGER.warning("%s", note)

    def _watch(self, server: Server, now: float) -> None:
        if server.health is Health.UP:
            self._free_slots(server)
            self._cancel_overdue(server, now)
            quiet = now - server.last_alive > _patience(server)
            if server.attempts and quiet and server.looking is None:
                server.looking = self._group.spawn(self._look(server))
        elif server.health is Health.DRAINING:
            if not server.attempts or now - server.since > self._request_timeout:
                server.health = Health.STALLED  # so that it is restarted although it is healthy
                self._pool.recycle(server)
        elif self._pool.up and (
            server.health is Health.STALLED or now - server.since > _MOVE_SECONDS
        ):
            server.cancel_all(FailureKind.DISCONNECTED)  # other servers get them

    def _free_slots(self, server: Server) -> None:
        """Let requests that many later ones have overtaken wait outside of the limit.

        They may be the ones that are never answered, and must not keep the others from being sent.
        """
        limit = self._pool.max_in_flight
        for request in server.attempts:
            if request.has_slot and server.completed >= request.rank + limit:
                number = self._stats.overtaken + 1
                size = self._stats.overtaken_bytes + len(request.body)
                if number > _MAX_OVERTAKEN * limit or size > _MAX_OVERTAKEN_BYTES:
                    break
                request.has_slot = False
                self._stats.overtaken, self._stats.overtaken_bytes = number, size
                self._stats.in_flight -= 1
                self._pool.free_slot(server)
                request.leave_memory()
        self._pool.wake()

    def _cancel_overdue(self, server: Server, now: float) -> None:
        """Cancel requests that take far too long, as long as the server answers others.

        Those that it had when it hung are not to blame for that time.
        """
        limit = max(self._request_timeout, 10 * server.usual_latency())
        alive = now - server.last_alive <= _patience(server)
        for request in server.attempts if alive else ():
            waited = now - max(request.sent, server.back)
            if waited > limit and server.last_alive > request.sent:
                request.cancel(FailureKind.TIMEOUT)

    async def _look(self, server: Server) -> bool:
        """Look at a server that has completed nothing for long: is it busy, or stalled?"""
        began = time.monotonic()
        try:
            computed = self._processor_seconds()
            before = await server.transport.counters()
            asleep = before is not None and before.asleep
            alive, spent = (False, 0) if asleep else await self._send_test(server)
            after = await server.transport.counters() if before is not None else None
        finally:
            server.looking = None
        now = time.monotonic()
        tokens = after.tokens - before.tokens - spent if before and after else 0
        if alive or tokens > 0 or server.last_completion > began:
            rate = tokens / (now - began)
            server.activity = f"it is working: {rate:,.0f} tokens/s" if tokens > 0 else _ANSWERS
            server.last_alive = now
            return True
        computes = self._processor_seconds() - computed > _COMPUTING_SHARE * (now - began)
        if computes and server.silence(now) < self._request_timeout:
            server.activity = "it computes: perhaps a long prompt"
            server.last_alive = now
            return True
        if asleep:
            self._pool.lose(server, Health.STALLED, "is asleep")
            return False
        if server.attempts:
            quiet = now - server.last_alive
            count = f"{len(server.attempts)} request{'s' if len(server.attempts) > 1 else ''}"
            server.stalls += 1
            self._pool.lose(
                server,
                Health.STALLED,
                f"is stalled: {count} and no reply for {quiet:.0f} s, not even to a test request",
            )
        return False

    def _processor_seconds(self) -> float:
        recovery = self._pool.recovery
        return recovery.processor_seconds() if recovery is not None else 0.0

    async def _send_test(self, server: Server) -> tuple[bool, int]:
        """Whether a server answers a test request, and the tokens that this has taken."""
        if self._pool.model is not None:
            reply = await server.transport.test_request(self._pool.model, TEST_SECONDS)
            if isinstance(reply, Completion):
                return True, reply.prompt_tokens + reply.completion_tokens
            if is_alive(reply) is False:
                return False, 0
        return await server.transport.is_healthy(), 0

    async def _check_memory(self) -> None:
        """Drain a server of our own that uses too much memory, to restart it."""
        recovery = self._pool.recovery
        if recovery is None or not self._pool.up:
            return
        reason = await asyncio.to_thread(recovery.recycling_reason)
        if reason and self._pool.up:  # it may have been lost meanwhile
            (server,) = self._pool.servers
            server.health, server.reason, server.since = Health.DRAINING, reason, time.monotonic()
            _LOGGER.warning("%s %s: restarting it between batches", server.name, reason)


def _patience(server: Server) -> float:
    """Seconds that a busy server may go without completing a request.

    Longer each time that nothing was completed since it was last found stalled: perhaps it is slow.
    """
    return max(QUIET_SECONDS, 5 * server.usual_latency()) * 2.0**server.stalls
