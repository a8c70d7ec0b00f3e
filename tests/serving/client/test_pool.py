"""Which server gets a request, and who waits in line for one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from chat import endpoint
from prefect_imageqa.serving.client.pool import ServerPool
from prefect_imageqa.serving.client.servers import Server

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2")


@asynccontextmanager
async def servers(max_in_flight: int | None, *urls: str) -> AsyncIterator[ServerPool]:
    """A pool of servers that have accepted requests before."""
    group: Any = None
    pool = ServerPool(endpoint(*urls), group, max_in_flight, 1.0, None)
    await pool.refresh()
    for server in pool.servers:
        server.rate_limit.accepted()
    yield pool
    await pool.close()


async def acquired(pool: ServerPool, count: int) -> list[int]:
    """The requests of each server after so many were given out at once."""
    async with asyncio.timeout(5):
        for _ in range(count):
            await pool.acquire()
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
            return await acquired(pool, 12)

    assert asyncio.run(spread()) == loads


def test_each_server_has_a_limit_of_its_own() -> None:
    async def spread() -> tuple[list[int], int, bool]:
        async with servers(None, *URLS) as pool:
            for server, limit in zip(pool.servers, (3, 5), strict=True):
                assert server.auto_limit is not None
                server.auto_limit.value = limit
            loads = await acquired(pool, 8)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 0.05)
            return loads, pool.max_in_flight, all(server.was_full for server in pool.servers)

    assert asyncio.run(spread()) == ([3, 5], 8, True)


def test_requests_wait_in_line_and_those_cancelled_lose_nothing() -> None:
    async def wait() -> list[str]:
        served: list[str] = []

        async def ask(name: str) -> Server:
            server = await pool.acquire()
            served.append(name)
            return server

        async with servers(1, URLS[0]) as pool:
            first = await ask("first")
            waiting = {name: asyncio.create_task(ask(name)) for name in "abcd"}
            await asyncio.sleep(0)
            waiting["b"].cancel()
            pool.release(first, has_slot=True)
            second = await waiting["a"]
            pool.release(second, has_slot=True)  # now it is c's turn
            waiting["c"].cancel()  # it has a server, but does not know it yet
            third = await waiting["d"]
            pool.release(third, has_slot=True)
            assert (pool.in_use, third.load, third.in_use) == (0, 0, 0)
        return served

    assert asyncio.run(wait()) == ["first", "a", "d"]


def test_an_overtaken_request_frees_its_slot_once() -> None:
    async def overtake() -> tuple[int, int]:
        async with servers(1, URLS[0]) as pool:
            server = await pool.acquire()
            pool.free_slot(server)
            await acquired(pool, 1)
            pool.release(server, has_slot=False)
            return pool.in_use, server.load

    assert asyncio.run(overtake()) == (1, 1)
