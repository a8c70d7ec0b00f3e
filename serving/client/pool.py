"""`ServerPool`: the servers of an endpoint: which one gets the next request, and which are lost."""

import asyncio
import logging
import time

from ..background_loop import CoroutineGroup
from ..endpoint import VLLMEndpoint
from ..errors import EndpointLostError, ImageQAError, ServerError
from ..types import Completion, FailureKind, Recovery
from .addresses import addresses_of
from .auto_limit import AutoLimit
from .proxies import proxy_of
from .request_line import RequestLine
from .servers import Health, Server
from .stats import ClientStats
from .transport import Transport, is_alive

_LOGGER = logging.getLogger("prefect_imageqa.serving")

CRASH_CHECK_SECONDS = 3.0
"""How long a server that failed a request may take to complete another one, before it is tested.

When its engine has died, vLLM answers 500 for up to 2.5 s before it exits. The requests in flight
at that moment must not be blamed for the error.
"""

TEST_SECONDS = 15.0
"""How long a server may take to answer a test request for one token."""

_MAX_PROBE_DELAY = 5.0
"""Seconds between two tests of a server that is not up, at most."""


class ServerPool(RequestLine):
    """The servers of an endpoint. Used on the client's event loop only.

    Args:
        endpoint: the servers.
        group: the client's coroutines.
        stats: the client's counters.
        max_in_flight: limit of the requests in flight over all servers; None to find one for each.
        server_wait: seconds to wait while no server answers.
        recovery: restarts the only server.
        sharers: how many clients share the servers.

    Attributes:
        note: what is waited for before any request is sent.
        crash_expected: the requests in flight are suspected of crashing the server.
    """

    def __init__(
        self,
        endpoint: VLLMEndpoint,
        group: CoroutineGroup,
        stats: ClientStats,
        max_in_flight: int | None,
        server_wait: float,
        recovery: Recovery | None,
        sharers: int = 1,
    ) -> None:
        super().__init__(max_in_flight, stats)
        self.note = ""
        self.crash_expected = False
        self.server_wait = server_wait
        self.recovery = recovery
        self.model: str | None = endpoint.model
        self._sharers = sharers
        self._endpoint = endpoint
        self._group = group

    async def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            await server.transport.close()

    async def refresh(self) -> None:
        """Take in the servers that have joined under a name, and let go of those that have left."""
        found = [key for url in self._endpoint.api_urls() for key in await self._resolve(url)]
        known = {server.transport.key: server for server in self.servers}
        for url, address in found:
            if (url, address) not in known:
                server = Server(
                    Transport(url, self._endpoint, address),
                    auto_limit=AutoLimit(self._sharers) if self.is_auto else None,
                )
                self.servers.append(server)
                if known:  # a newcomer may still be starting
                    self.lose(server, Health.DOWN, "has joined")
        for key, server in known.items():
            server.leaving = key not in found
            if server.leaving and not server.load:
                self.servers.remove(server)
                await server.transport.close()
        self.wake()

    async def _resolve(self, url: str) -> list[tuple[str, str]]:
        """URL and address of each server under a URL; no address where the name has only one."""
        known = [key for key in (s.transport.key for s in self.servers) if key[0] == url]
        if proxy_of(url) is not None:
            return [(url, "")]  # the proxy resolves the name
        if self.recovery is not None or (addresses := await addresses_of(url)) is None:
            return known or [(url, "")]
        if len(addresses) > 1 or any(address for _, address in known):
            return [(url, address) for address in addresses]
        return [(url, "")]

    # --- servers that fail ------------------------------------------------------------------------

    async def answers(self, server: Server, since: float, patience: float) -> bool:
        """Whether a server still answers requests, after it failed one at the time `since`.

        A completion is proof. Without one, a test request decides after `patience` seconds; a
        server that does not answer it is taken for lost.
        """
        while server.was_up_since(since) and server.last_completion <= since:
            if time.monotonic() >= since + patience:
                return await self.test(server)
            await asyncio.sleep(0.05)
        return server.was_up_since(since)

    async def test(self, server: Server) -> bool:
        """Whether a server answers a test request; if not, it is taken for lost."""
        if server.looking is None:
            server.looking = self._group.spawn(self._test(server))
        return await asyncio.shield(server.looking)

    async def _test(self, server: Server) -> bool:
        try:
            problem = await self._problem(server)
            if problem:
                self.lose(server, Health.DOWN, problem)
            return not problem
        finally:
            server.looking = None

    async def _problem(self, server: Server) -> str:
        """Why a server answers no requests; empty if it does."""
        if not await server.transport.is_healthy():
            return "does not answer"
        if server.health is Health.STALLED and await server.transport.is_asleep():
            return "is asleep"
        if self.model is None:
            return ""
        reply = await server.transport.test_request(self.model, TEST_SECONDS)
        if isinstance(reply, Completion) or is_alive(reply) is not False:
            server.last_alive = time.monotonic()
            return ""
        is_late = reply.kind is FailureKind.TIMEOUT and reply.status is None  # not a gateway's 504
        if is_late and server.health is not Health.STALLED:
            return ""  # it may only be slow; if it is not, the watchdog will notice
        return f"answers no request ({reply.message})"

    def lose(self, server: Server, health: Health, reason: str) -> None:
        """Give a server no more requests until it answers again."""
        if server.health is not Health.UP or server not in self.servers:
            return
        server.health, server.reason, server.since = health, reason, time.monotonic()
        self._log_loss(server)
        self._group.spawn(self._bring_back(server))
        self.wake()

    def _log_loss(self, server: Server) -> None:
        others = len(self.up)
        if server.health is Health.STALLED and self.recovery is not None:
            return  # the restart is logged
        if others:
            plan = f"the run goes on with {others} of {len(self.servers)} servers"
        elif self.recovery is not None:
            plan = "restarting it if it does not recover"
        else:
            plan = f"waiting for it, up to {self.server_wait:,.0f} s"
        _LOGGER.warning("%s %s: %s", server.name, server.reason, plan)

    async def _bring_back(self, server: Server) -> None:
        """Return a server to work when it answers again; one of our own is restarted if need be."""
        if self.recovery is None:
            await self._wait_for(server)
        elif not await self._restart(server, self.recovery):
            return
        if server not in self.servers:
            return
        now = time.monotonic()
        _LOGGER.warning("%s answers, after %.0f s", server.name, now - server.since)
        server.health, server.last_alive = Health.UP, now
        server.back = now
        self.error = None
        self.wake()

    async def _wait_for(self, server: Server) -> None:
        delay = 0.25
        while server in self.servers and await self._problem(server):
            if server.health is Health.STALLED and server.last_completion > server.since:
                return  # it has completed a request that it was sent before
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_PROBE_DELAY)

    async def _restart(self, server: Server, recovery: Recovery) -> bool:
        """Restart a server until it answers requests; False if that was given up."""
        # One that cannot be reached may be dead, which `recover` finds out.
        problem = "" if server.health is Health.DOWN else server.reason
        while True:
            if problem:
                server.cancel_all(FailureKind.DISCONNECTED)
            try:
                await asyncio.to_thread(recovery.recover, problem, expected=self.crash_expected)
            except ImageQAError as error:
                self.fail(error)
                return False
            except Exception as error:  # nobody else would see it, and all requests would wait
                what = f"cannot be restarted ({type(error).__name__}: {error})"
                self.fail(ServerError(f"{server.name} {what}"))
                return False
            server.health = Health.DOWN
            problem = await self._problem(server)
            if not problem:
                return True

    def recycle(self, server: Server) -> None:
        """Restart a server that has been drained."""
        self._group.spawn(self._bring_back(server))

    # --- servers that are waited for in vain ------------------------------------------------------

    def check_deadline(self, now: float) -> None:
        """Fail all requests if no server has answered for as long as may be waited."""
        since = self.lost_since()
        if since is None or self.recovery is not None or self.error is not None:
            return
        if now - since < self.server_wait:
            return
        reasons = {server.reason or "rejects every request" for server in self.servers}
        self.fail(
            EndpointLostError(
                f"{self._names()} {' / '.join(sorted(reasons))}: waited {self.server_wait:,.0f} s; "
                "when a server is back, run the same command again to resume"
            )
        )

    def lost_since(self) -> float | None:
        """Since when no server answers; None if one does."""
        times = [
            server.since if server.health is not Health.UP else server.rate_limit.refused_since
            for server in self.servers
        ]
        return max(times) if times and all(times) else None

    def fail(self, error: ImageQAError) -> None:
        """End all requests with an error."""
        self.error = error
        for server in self.servers:
            server.cancel_all(FailureKind.CONNECTION)
        self.wake()

    def _names(self) -> str:
        return ", ".join(server.name for server in self.servers)
