"""`RequestLine`: requests wait in line here, until a server may get another one."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from ..errors import ImageQAError
from .auto_limit import FIRST_LIMIT
from .open_files import max_connections
from .servers import Health, Server


class RequestLine:
    """Gives each request a server, in the order in which they came, within all limits.

    Attributes:
        servers: those of the endpoint.
        in_use: requests that servers were acquired for, without those that are overtaken.
        error: why all requests fail, once the servers were waited for in vain.
        is_auto: each server has a limit of its own.

    Args:
        max_in_flight: limit of the requests in flight over all servers; None to find one for each.
    """

    def __init__(self, max_in_flight: int | None) -> None:
        self.servers: list[Server] = []
        self.in_use = 0
        self.error: ImageQAError | None = None
        self.is_auto = max_in_flight is None
        connections = max_connections()
        self._most = connections if max_in_flight is None else max_in_flight
        self._line: deque[asyncio.Future[Server]] = deque()
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

    async def acquire(self) -> Server:
        """Wait in line for a server that may get a request.

        Raises:
            ImageQAError: the servers were waited for in vain.
        """
        self._check()
        if not self._line and (server := self._next_server(time.monotonic())) is not None:
            return server
        turn: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        if len(self._line) == 1:
            self.wake()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result(), has_slot=True)
            raise

    def _check(self) -> None:
        if self.error is not None:
            raise type(self.error)(str(self.error))

    def _next_server(self, now: float) -> Server | None:
        """The server that would answer another request first, if one may get it now."""
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
        """A request that `acquire` gave the server to has ended."""
        server.load -= 1
        if has_slot:
            self.free_slot(server)
        else:
            self.wake()

    def free_slot(self, server: Server) -> None:
        """A request no longer counts for the limits."""
        server.in_use -= 1
        self.in_use -= 1
        self.wake()

    def wake(self) -> None:
        """Give the requests that are first in line a server, as far as one may get them now."""
        while self._line:
            if self._line[0].done():  # cancelled
                self._line.popleft()
                continue
            now = time.monotonic()
            try:
                self._check()
                server = self._next_server(now)
            except ImageQAError as error:
                self._line.popleft().set_exception(error)
                continue
            if server is None:
                self._wake_later(now)
                return
            self._line.popleft().set_result(server)

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
        """Wake up nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
