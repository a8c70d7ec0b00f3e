"""Requests that are never answered, among others that are."""

import time

import pytest
from chat import ask, completing, endpoint, noted, only_failure, texts, wait_until
from fake_vllm import TEST_TEXT, FakeVLLM
from prefect_imageqa.serving.client import ChatClient, notes, watchdog
from prefect_imageqa.serving.types import FailureKind

pytestmark = pytest.mark.usefixtures("quick", "watchful")

ROWS = [str(number) for number in range(40)]


def test_a_request_that_is_never_answered_fails_alone() -> None:
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=4, request_timeout=0.3) as client,
    ):
        server.hanging, server.latency = {"7"}, 0.08
        outcomes = client.complete(map(ask, ROWS))
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


def test_requests_are_not_blamed_for_a_server_that_hangs_longer_than_they_may_take() -> None:
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=4, request_timeout=0.15) as client,
    ):
        assert texts(client.complete(map(ask, ROWS))) == ROWS
        server.frozen = True
        with completing(client, ROWS) as outcomes:
            wait_until(noted(client, "is stalled"))
            time.sleep(0.2)
            server.frozen = False
            assert texts(outcomes.result(30)) == ROWS


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
                    "1 row has had no answer for over 0 s: cancelled after 300 s (the oldest: 0 s)",
                )
            )
            server.hanging = set()
            assert texts(outcomes.result(30)) == ROWS
