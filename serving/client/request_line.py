"""`RequestLine`: requests wait in line here, until a server may get another one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..errors import EndpointError, ImageQAError
from .auto_limit import FIRST_LIMIT
from .open_files import max_connections
from .outcomes import CLOSED
from .servers import Health, Request, Server
from .stats import ClientStats


class RequestLine:
    """Gives each request a server, in the order in which they came, within all limits.

    Attributes:
        servers: those of the endpoint.
        stats: the client's counters.
        in_use: requests that have a server, without those that are overtaken.
        error: why all requests fail, once the servers were waited for in vain.
        is_auto: each server has a limit of its own.
        send: sends a request to a server.

    Args:
        max_in_flight: limit of the requests in flight over all servers; None to find one for each.
        stats: the client's counters.
    """

    send: Callable[[Request, Server], None]

    def __init__(self, max_in_flight: int | None, stats: ClientStats) -> None:
        self.servers: list[Server] = []
        self.stats = stats
        self.in_use = 0
        self.error: ImageQAError | None = None
        self.is_auto = max_in_flight is None
        connections = max_connections()  # also raises the limit of open files
        self._most = min(connections if max_in_flight is None else max_in_flight, connections)
        self._line: deque[Request] = deque()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def max_in_flight(self) -> int:
        """Limit of the requests in flight, over all servers, as it is now."""
        if not self.is_auto:
            return self._most
        limits = (server.auto_limit.value for server in self.up if server.auto_limit)
        return min(sum(limits) or FIRST_LIMIT, self._most)

    @property
    def up(self) -> Sequence[Server]:
        """The servers that get requests."""
        return [server for server in self.servers if server.health is Health.UP]

    def add(self, request: Request) -> None:
        """Put a request at the end of the line; `wake` sends it."""
        self._line.append(request)
        self.stats.queued += 1

    def next(self) -> tuple[Request, Server] | None:
        """The request that is first in line and the server that gets it, if one may get it now."""
        if self._is_closed or self.error is not None:
            self._fail_all(self.error or EndpointError(CLOSED))
        if not self._line:
            return None
        now = time.monotonic()
        if (server := self.acquire(now)) is None:
            self._wake_later(now)
            return None
        self.stats.queued -= 1
        return self._line.popleft(), server

    def wake(self) -> None:
        """Send the requests that are first in line, as far as servers may get them now."""
        while (turn := self.next()) is not None:
            self.send(*turn)

    def _fail_all(self, error: ImageQAError) -> None:
        while self._line:
            self.stats.queued -= 1
            self._line.popleft().fail(type(error)(str(error)))

    def acquire(self, now: float) -> Server | None:
        """Take the server that would answer another request first, if one may get it now."""
        if self.in_use >= self._most:
            return None
        ready = [server for server in self.servers if server.can_take(now)]
        if not ready:
            return None
        server = ready[0]
        if len(ready) > 1:
            usual = min((server.latency for server in ready if server.latency), default=1.0)
            server = min(ready, key=lambda server: server.cost(usual))
        server.load += 1
        server.in_use += 1
        self.in_use += 1
        server.rate_limit.sent(now)
        return server

    def release(self, server: Server, *, has_slot: bool) -> None:
        """A request that had the server has ended; `wake` or `next` give its place to another."""
        server.load -= 1
        if has_slot:
            self.free_slot(server)

    def free_slot(self, server: Server) -> None:
        """A request no longer counts for the limits."""
        server.in_use -= 1
        self.in_use -= 1

    def _wake_later(self, now: float) -> None:
        """Look again when a server may get a request because of its rate limit."""
        delays = [server.rate_limit.delay(now) for server in self.servers]
        delay = min([delay for delay in delays if delay > 0], default=0.0)
        if not delay:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, self.wake)

    def close_line(self) -> None:
        """Fail the requests in line, and send no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.next()
