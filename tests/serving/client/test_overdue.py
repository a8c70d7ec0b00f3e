"""Requests that are never answered, among others that are."""

import asyncio
import time
from typing import Any

import pytest
from chat import ask, completing, endpoint, noted, only_failure, texts, wait_until
from fake_vllm import TEST_TEXT, FakeVLLM
from prefect_imageqa.serving.client import ChatClient, notes, watchdog
from prefect_imageqa.serving.client.outcomes import Outcomes
from prefect_imageqa.serving.client.pool import ServerPool
from prefect_imageqa.serving.client.request_budget import RequestBudget
from prefect_imageqa.serving.client.servers import Request, Server
from prefect_imageqa.serving.client.stats import ClientStats
from prefect_imageqa.serving.client.transport import Transport
from prefect_imageqa.serving.client.watchdog import Watchdog
from prefect_imageqa.serving.types import FailureKind

pytestmark = pytest.mark.usefixtures("quick", "patient")

ROWS = [str(number) for number in range(40)]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Requests are cancelled only while it is not empty: others may be late on a busy machine."""
    cancelling: list[bool] = []
    cancel = Watchdog._cancel_overdue

    def cancel_overdue(*given: Any) -> None:
        if cancelling:
            cancel(*given)

    monkeypatch.setattr(Watchdog, "_cancel_overdue", cancel_overdue)
    return cancelling


def test_a_request_that_is_never_answered_fails_alone(limits: list[bool]) -> None:
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=4, request_timeout=0.3) as client,
    ):
        server.hanging = {"7"}
        with completing(client, ROWS) as running:
            wait_until(lambda: client.stats.completions == 39)
            limits.append(True)
            outcomes = running.result(30)
    assert texts(outcomes) == [row for row in ROWS if row != "7"]
    failure = only_failure(outcomes[7:8])
    assert (failure.kind, failure.attempts) == (FailureKind.TIMEOUT, 2)
    assert failure.message.startswith(f"{server.url}: no reply for ")
    assert {server.asked[row] for row in ROWS if row != "7"} == {1}


def test_the_only_request_that_is_never_answered_fails_too() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), request_timeout=0.3) as client:
        server.hanging = {"bad"}
        failure = only_failure(client.complete([ask("bad")]))
        assert (failure.kind, failure.attempts) == (FailureKind.TIMEOUT, 2)
        assert server.asked[TEST_TEXT] >= 1


def test_requests_are_not_blamed_for_a_server_that_hangs_longer_than_they_may_take(
    limits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TEST_SECONDS", 0.2)
    limits.append(True)
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=4, request_timeout=0.15) as client,
    ):
        server.frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(noted(client, "is stalled"))
            time.sleep(0.2)
            assert client.stats.requests == 4
            limits.clear()
            server.frozen = False
            assert texts(outcomes.result(30)) == ROWS
        assert client.stats.requests == len(ROWS)
        (state,) = client._pool.servers
        assert state.back > state.since > 0


@pytest.mark.parametrize(
    ("back", "now", "is_overdue"),
    [(0, 299, False), (0, 301, True), (1000, 1299, False), (1000, 1301, True)],
    ids=["in time", "overdue", "its server was away", "its server is back for long"],
)
def test_a_request_is_overdue_if_its_server_answers_others(
    back: float, now: float, is_overdue: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[FailureKind] = []
    monkeypatch.setattr(Request, "cancel", lambda _, kind: cancelled.append(kind))

    async def watch() -> None:
        group: Any = None
        server = Server(Transport("http://127.0.0.1:1/v1", endpoint("http://127.0.0.1:1")))
        pool = ServerPool(endpoint("http://127.0.0.1:1"), group, ClientStats(), 4, 1.0, None)
        server.attempts.add(Request(Outcomes(None), 0, 2, RequestBudget(8)))
        server.back, server.last_alive = back, now
        Watchdog(pool, group, 300.0)._cancel_overdue(server, now)
        await server.transport.close()

    asyncio.run(watch())
    assert cancelled == [FailureKind.TIMEOUT] * is_overdue


def test_overtaken_requests_give_up_their_slots() -> None:
    """Otherwise as many requests that are never answered as there are slots stopped all others."""
    rows = [str(number) for number in range(120)]
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.hanging = set(rows[:100:10])
        with completing(client, rows) as outcomes:
            wait_until(lambda: client.stats.completions == 110)
            wait_until(lambda: client.stats.overtaken == 10)
            assert client.stats.overtaken_bytes > 10 * len('{"model": "m"}')
            assert client.stats.in_flight == 0
            server.hanging = set()
            assert texts(outcomes.result(30)) == rows
        assert (client.stats.overtaken, client.stats.overtaken_bytes) == (0, 0)
        assert client.stats.in_flight == 0
        assert {server.asked[row] for row in rows} == {1}
    assert server.peak <= 14


@pytest.mark.parametrize(
    ("limit", "value"), [("_MAX_OVERTAKEN", 1), ("_MAX_OVERTAKEN_BYTES", 330)], ids=["all", "bytes"]
)
def test_the_number_and_size_of_overtaken_requests_are_bounded(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, limit, value)
    rows = [str(number) for number in range(100)]
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.hanging = set(rows[::10])
        with completing(client, rows) as outcomes:
            wait_until(lambda: server.active == rows[:80:10])
            time.sleep(0.3)
            assert server.active == rows[:80:10]
            assert (client.stats.overtaken, client.stats.in_flight) == (4, 4)
            server.hanging = set()
            assert texts(outcomes.result(30)) == rows


def test_old_requests_are_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_SLOW_SECONDS", 0.3)
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.hanging, server.latency = {"3"}, 0.05
        with completing(client, ROWS) as outcomes:
            wait_until(
                noted(
                    client,
                    "1 row has had no answer for over 0 s: cancelled after 300 s (the oldest: N s)",
                )
            )
            server.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
