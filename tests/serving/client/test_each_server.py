"""A few requests that every server is sent."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_imageqa.serving.client.each_server import ask_each_server
from prefect_imageqa.serving.types import Failure, FailureKind

REFUSED = Failure(FailureKind.CONNECTION, "refused")


def server(name: str, seconds: float = 0) -> Any:
    async def send(body: bytes, started: float, attempt: int) -> Failure:
        await asyncio.sleep(seconds)
        return REFUSED

    return SimpleNamespace(transport=SimpleNamespace(name=name, send=send))


@pytest.mark.parametrize("up", [["b"], []], ids=["one is up", "none is up"])
def test_servers_that_are_up_are_asked_and_all_if_none_is(up: list[str]) -> None:
    servers = [server("a"), server("b")]
    pool: Any = SimpleNamespace(
        servers=servers, up=[each for each in servers if each.transport.name in up]
    )
    found = asyncio.run(ask_each_server(pool, [b"1", b"2"], 60))
    assert found == {key: [REFUSED, REFUSED] for key in up or ["a", "b"]}


def test_a_server_that_does_not_reply_is_not_waited_for() -> None:
    pool: Any = SimpleNamespace(up=[server("a", seconds=60)])
    found = asyncio.run(ask_each_server(pool, [b"1"], 0.01))
    assert [each.kind for each in found["a"] if isinstance(each, Failure)] == [FailureKind.TIMEOUT]
