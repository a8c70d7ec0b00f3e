"""A name with several addresses stands for several servers, which may join and leave."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from chat import ask, completing, endpoint, logged, noted, texts, wait_until
from fake_vllm import FakeVLLM, HTTPServer, reply
from prefect_imageqa.serving.client import ChatClient, sender, watchdog
from prefect_imageqa.serving.client.addresses import addresses_of

ROWS = [str(number) for number in range(40)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names; a name without one cannot be resolved."""
    known: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *options: Any, **more: Any) -> list[Any]:
        if host not in known:
            return list(resolve(host, port, *options, **more))
        if not known[host]:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, port))
            for address in known[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(watchdog, "_REFRESH_SECONDS", 0.05)
    return known


@pytest.fixture
def servers() -> Iterator[list[FakeVLLM]]:
    """Three servers at 127.0.0.1 to 127.0.0.3, with the same port."""
    with ExitStack() as running:
        first = running.enter_context(FakeVLLM())
        port = urlsplit(first.url).port
        assert port
        others = [FakeVLLM(f"127.0.0.{number}", port) for number in (2, 3)]
        yield [first, *(running.enter_context(other) for other in others)]


def url_of(servers: list[FakeVLLM]) -> str:
    return f"http://vllm.test:{urlsplit(servers[0].url).port}"


def test_each_address_of_a_name_is_a_server(
    names: dict[str, list[str]], servers: list[FakeVLLM]
) -> None:
    names["vllm.test"] = ["127.0.0.2", "127.0.0.1"]
    with ChatClient(endpoint(url_of(servers)), max_in_flight=8) as client:
        assert client.check() == "m"
        for server in servers:
            server.frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: [len(server.active) for server in servers] == [4, 4, 0])
            servers[1].stop()
            servers[0].frozen = False
            assert texts(outcomes.result(30)) == ROWS
        wait_until(noted(client, f"{url_of(servers)} (127.0.0.2) does not answer"))


def test_the_name_is_kept_in_requests(names: dict[str, list[str]]) -> None:
    hosts: list[str] = []

    async def record(request: web.Request) -> web.StreamResponse:
        hosts.append(request.host)
        return reply()

    names["vllm.test"] = ["127.0.0.1", "127.0.0.9"]
    with HTTPServer(record) as server:
        port = urlsplit(server.url).port
        with ChatClient(endpoint(f"http://vllm.test:{port}"), max_in_flight=1) as client:
            client.complete([ask("hello")])
    assert set(hosts) == {f"vllm.test:{port}"}


def test_a_server_that_joins_gets_requests_once_it_answers(
    names: dict[str, list[str]], servers: list[FakeVLLM]
) -> None:
    names["vllm.test"] = ["127.0.0.1"]
    servers[0].latency = 0.05
    servers[1].health = 503
    sent: list[str] = []

    def rows_until_it_has_one() -> Iterator[str]:
        deadline = time.monotonic() + 30
        while not servers[2].peak and time.monotonic() < deadline:
            sent.append(str(len(sent)))
            yield sent[-1]

    with ChatClient(endpoint(url_of(servers)), max_in_flight=2) as client:
        with completing(client, rows_until_it_has_one()) as outcomes:
            wait_until(lambda: servers[0].peak == 2)
            names["vllm.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
            assert texts(outcomes.result(60)) == sent
        assert servers[2].peak > 0
        assert servers[1].asked.total() == 0
        assert client.stats.requests == len(sent)
        wait_until(noted(client, f"{url_of(servers)} (127.0.0.2) has joined: "))
        servers[1].health = 200
        wait_until(lambda: not client.stats.notes)


def test_a_server_that_leaves_completes_what_it_has(
    names: dict[str, list[str]], servers: list[FakeVLLM]
) -> None:
    names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
    stays, leaves, _ = servers
    stays.hanging, leaves.hanging = set(ROWS), set(ROWS)
    with ChatClient(endpoint(url_of(servers)), max_in_flight=4) as client:
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: [len(server.active) for server in servers] == [2, 2, 0])
            names["vllm.test"] = ["127.0.0.1"]
            wait_until(lambda: any(server.leaving for server in client._pool.servers))
            leaves.hanging.discard(leaves.active[0])
            wait_until(lambda: [len(server.active) for server in servers] == [3, 1, 0])
            stays.hanging = set()
            wait_until(lambda: client.stats.completions == 39)
            leaves.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
        assert leaves.asked.total() == 2
        assert client.stats.requests == len(ROWS)
        wait_until(lambda: len(client._pool.servers) == 1)
        assert client._pool.servers[0].name == f"{url_of(servers)} (127.0.0.1)"


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_down_and_leaves_is_forgotten(
    names: dict[str, list[str]], servers: list[FakeVLLM], caplog: pytest.LogCaptureFixture
) -> None:
    names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
    with ChatClient(endpoint(url_of(servers)), max_in_flight=4) as client:
        servers[1].stop()
        assert len(texts(client.complete(map(ask, ROWS)))) == 40
        wait_until(noted(client, "(127.0.0.2) does not answer (connection refused)"))
        names["vllm.test"] = ["127.0.0.1"]
        wait_until(lambda: len(client._pool.servers) == 1)
        wait_until(lambda: not client.stats.notes)
        assert client._group
        wait_until(lambda: client._group and len(client._group._tasks) == 1)  # only the watchdog
        assert len(texts(client.complete(map(ask, ROWS)))) == 40
    assert len(logged(caplog)) == 1


@pytest.mark.usefixtures("quick")
def test_a_server_that_leaves_with_a_request(
    names: dict[str, list[str]],
    servers: list[FakeVLLM],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a pod is deleted: its name is resolved again before its failure is looked into."""
    monkeypatch.setattr(sender, "_CUT_CHECK_SECONDS", 0.4)
    names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
    with ChatClient(endpoint(url_of(servers)), max_in_flight=4) as client:
        servers[1].frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: len(servers[1].active) == 2)
            names["vllm.test"] = ["127.0.0.1"]
            wait_until(lambda: any(server.leaving for server in client._pool.servers))
            servers[1].stop()
            assert texts(outcomes.result(30)) == ROWS
        wait_until(lambda: len(client._pool.servers) == 1)
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_down_leaves_and_comes_back(
    names: dict[str, list[str]], servers: list[FakeVLLM]
) -> None:
    names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
    down = servers[1]
    down.hanging, down.health = set(ROWS), 503
    with ChatClient(endpoint(url_of(servers)), max_in_flight=4) as client:
        with completing(client, ROWS) as outcomes:
            wait_until(lambda: len(down.active) == 2)
            down.status_of = {down.active[0]: 502}
            down.hanging.discard(down.active[0])
            wait_until(noted(client, "(127.0.0.2) does not answer"))
            names["vllm.test"] = ["127.0.0.1"]
            wait_until(lambda: any(server.leaving for server in client._pool.servers))
            time.sleep(0.6)  # until it would be tested again
            names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
            wait_until(lambda: not any(server.leaving for server in client._pool.servers))
            down.hanging, down.health = set(), 200
            assert texts(outcomes.result(30)) == ROWS
        wait_until(lambda: not client.stats.notes)


def test_servers_stay_while_their_name_cannot_be_resolved(
    names: dict[str, list[str]], servers: list[FakeVLLM]
) -> None:
    names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
    with ChatClient(endpoint(url_of(servers)), max_in_flight=4) as client:
        names["vllm.test"] = []
        time.sleep(0.2)
        before = [server.name for server in client._pool.servers]
        assert texts(client.complete(map(ask, ROWS))) == ROWS
        assert len(before) == 2
        assert min(server.asked.total() for server in servers[:2]) > 0
        names["vllm.test"] = ["127.0.0.1", "127.0.0.2"]
        time.sleep(0.2)
        assert [server.name for server in client._pool.servers] == before


@pytest.mark.parametrize(
    ("url", "resolved", "expected"),
    [
        ("http://vllm.test:8000/v1", ["10.0.0.2", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"]),
        ("https://vllm.test/v1", ["10.0.0.1", "10.0.0.1"], ["10.0.0.1"]),
        # IPv4 and IPv6 addresses of a name are the same servers twice.
        ("http://vllm.test/v1", ["fd00::1", "10.0.0.1", "fd00::2"], ["10.0.0.1"]),
        ("http://vllm.test/v1", ["fd00::2", "fd00::1"], ["fd00::1", "fd00::2"]),
        ("http://vllm.test/v1", [], None),
        ("http://[::1]:8000/v1", [], ["::1"]),
        ("http://vllm..test/v1", [], None),
    ],
)
def test_the_addresses_of_a_name(
    url: str, resolved: list[str], expected: list[str] | None, names: dict[str, list[str]]
) -> None:
    names["vllm.test"] = resolved
    found = asyncio.run(addresses_of(url))
    assert (list(found) if found is not None else None) == expected
