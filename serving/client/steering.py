"""Adapts the limits of servers to what they show, in the background."""

import asyncio
import time
from collections.abc import Callable

from ..background_loop import CoroutineGroup, Tolerated
from ..metrics import Counters
from .pool import ServerPool
from .servers import Server
from .throughput import Observation

_TICK_SECONDS = 0.25
"""A server's page of metrics is read at every tick until its limit is found."""

_PAGE_SECONDS = 1.0
"""After that, it is read at this interval."""

_NO_PAGE_SECONDS = 15.0
"""A server without such a page is asked for it again at this interval."""


class Steering:
    """Adapts the limits of a client's servers.

    Args:
        pool: the servers.
        group: the client's coroutines.
        on_change: called when a limit may have changed.
    """

    def __init__(
        self, pool: ServerPool, group: CoroutineGroup, on_change: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._on_change = on_change
        self._group = group
        self._next_page: dict[Server, float] = {}
        self._reading: set[Server] = set()
        self._pageless: set[Server] = set()
        self._tolerated = Tolerated("adapting the limit of requests in flight")

    async def run(self) -> None:
        """Adapt the limits until cancelled."""
        while True:
            with self._tolerated:
                self._tick(time.monotonic())
            await asyncio.sleep(_TICK_SECONDS)

    def _tick(self, now: float) -> None:
        for server in self._next_page.keys() - set(self._pool.servers):  # it has left
            del self._next_page[server]
            self._pageless.discard(server)
        for server in self._pool.up:
            if server.attempts and server not in self._reading:
                self._look(server, now)
        self._on_change()  # servers may have been lost

    def _look(self, server: Server, now: float) -> None:
        if now >= self._next_page.get(server, 0.0):
            self._reading.add(server)
            self._group.spawn(self._read(server))
        elif server in self._pageless:
            self._adapt(server, now, None)

    async def _read(self, server: Server) -> None:
        """Read a server's page of metrics, and adapt its limit to it."""
        began, page = time.monotonic(), None
        try:
            with self._tolerated:  # one that cannot be read is none
                page = await server.transport.counters()
        finally:
            self._reading.discard(server)
        now = time.monotonic()
        if page is None:
            self._pageless.add(server)
            self._next_page[server] = now + _NO_PAGE_SECONDS
        else:
            self._pageless.discard(server)
            if page.running:
                server.rate_limit.works()
            is_settled = server.auto_limit is not None and server.auto_limit.is_settled
            # A server that takes long to make the page is asked for it half of the time at most.
            self._next_page[server] = max(
                now + (_PAGE_SECONDS if is_settled else 0), 2 * now - began
            )
        self._adapt(server, now, page)

    def _adapt(self, server: Server, now: float, page: Counters | None) -> None:
        limit = server.auto_limit
        if limit is None:
            return
        seen = Observation(
            now,
            server.in_use,
            server.completed,
            server.latency_sum,
            server.was_full,
            server.latency,
            page,
        )
        server.was_full = False
        with self._tolerated:  # the limit stays as it is
            limit.observe(seen)
        self._pool.wake()
        self._on_change()
