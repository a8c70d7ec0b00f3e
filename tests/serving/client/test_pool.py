"""Which server gets a request, and who waits in line for one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from chat import endpoint
from prefect_imageqa.serving.client.outcomes import Outcomes
from prefect_imageqa.serving.client.pool import ServerPool
from prefect_imageqa.serving.client.request_budget import RequestBudget
from prefect_imageqa.serving.client.servers import Request
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.serving.errors import EndpointLostError

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2")


@asynccontextmanager
async def servers(max_in_flight: int | None, *urls: str) -> AsyncIterator[ServerPool]:
    """A pool of servers that have accepted requests before."""
    group: Any = None
    pool = ServerPool(endpoint(*urls), group, ClientStats(), max_in_flight, 1.0, None)
    await pool.refresh()
    for server in pool.servers:
        server.rate_limit.accepted()
    yield pool
    await pool.close()


def acquired(pool: ServerPool, count: int) -> list[int]:
    """The requests of each server after so many were given out at once."""
    for _ in range(count):
        assert pool.acquire(time.monotonic()) is not None
    return [server.load for server in pool.servers]


@pytest.mark.parametrize(
    ("latencies", "loads"),
    [((1.0, 1.0), [6, 6]), ((1.0, 2.0), [8, 4]), ((2.0, 0.0), [6, 6]), ((0.0, 0.0), [6, 6])],
    ids=["equal", "half speed", "one not known yet", "none known yet"],
)
def test_requests_go_where_they_are_likely_to_be_answered_first(
    latencies: tuple[float, float], loads: list[int]
) -> None:
    async def spread() -> list[int]:
        async with servers(12, *URLS) as pool:
            for server, latency in zip(pool.servers, latencies, strict=True):
                server.latency = latency
            return acquired(pool, 12)

    assert asyncio.run(spread()) == loads


def test_each_server_has_a_limit_of_its_own() -> None:
    async def spread() -> tuple[list[int], int, bool]:
        async with servers(None, *URLS) as pool:
            for server, limit in zip(pool.servers, (3, 5), strict=True):
                assert server.auto_limit is not None
                server.auto_limit.value = limit
            loads = acquired(pool, 8)
            assert pool.acquire(time.monotonic()) is None
            return loads, pool.max_in_flight, all(server.was_full for server in pool.servers)

    assert asyncio.run(spread()) == ([3, 5], 8, True)


@pytest.mark.parametrize(("wanted", "possible"), [(900, 744), (500, 500), (None, 744)])
def test_a_limit_needs_as_many_open_files(
    wanted: int | None, possible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the system allows at first, and no more than it allows at all."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (300, 1000))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))

    async def spread() -> int:
        async with servers(wanted, URLS[0]) as pool:
            for server in pool.servers:
                server.auto_limit = None
            return len([*iter(lambda: pool.acquire(time.monotonic()), None)])

    assert asyncio.run(spread()) == possible
    assert raised == [(1000, 1000)]


@dataclass
class Sent:
    """Requests in line, and the positions of those that were sent."""

    pool: ServerPool
    positions: list[int] = field(default_factory=list)
    outcomes: Outcomes = field(default_factory=lambda: Outcomes(None))

    def __post_init__(self) -> None:
        self.pool.send = lambda request, _: self.positions.append(request.position)

    def add(self, *positions: int) -> None:
        for position in positions:
            self.pool.add(Request(self.outcomes, position, 2, RequestBudget(8)))
        self.pool.wake()


def test_requests_are_sent_in_the_order_in_which_they_came() -> None:
    async def wait() -> list[int]:
        async with servers(2, URLS[0]) as pool:
            sent, (server,) = Sent(pool), pool.servers
            sent.add(0, 1, 2)
            assert (sent.positions, pool.stats.queued) == ([0, 1], 1)
            pool.release(server, has_slot=True)
            sent.add(3)  # the first in line is sent first
            assert (sent.positions, pool.stats.queued) == ([0, 1, 2], 1)
            pool.release(server, has_slot=True)
            pool.wake()
            assert (pool.in_use, server.load, server.in_use) == (2, 2, 2)
            return sent.positions

    assert asyncio.run(wait()) == [0, 1, 2, 3]


def test_requests_in_line_fail_when_the_servers_were_waited_for_in_vain() -> None:
    async def wait() -> Outcomes:
        async with servers(1, URLS[0]) as pool:
            sent = Sent(pool)
            sent.add(0, 1, 2)
            pool.fail(EndpointLostError("gone"))
            assert (sent.positions, pool.stats.queued) == ([0], 0)
            return sent.outcomes

    outcomes = asyncio.run(wait())
    with pytest.raises(EndpointLostError, match="gone"):
        outcomes.result(2)


def test_an_overtaken_request_frees_its_slot_once() -> None:
    async def overtake() -> tuple[int, int]:
        async with servers(1, URLS[0]) as pool:
            server = pool.acquire(time.monotonic())
            assert server is not None
            pool.free_slot(server)
            acquired(pool, 1)
            pool.release(server, has_slot=False)
            return pool.in_use, server.load

    assert asyncio.run(overtake()) == (1, 1)
