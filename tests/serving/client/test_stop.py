"""Closing a client ends every wait, and no more requests are sent."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat import ask, endpoint, noted, wait_until
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, sender
from prefect_imageqa.serving.client.auto_limit import FIRST_LIMIT
from prefect_imageqa.serving.errors import EndpointError

IN_MEMORY = 2 * FIRST_LIMIT
"""Requests that are built at a time."""

ROWS = [str(number) for number in range(200)]


def freeze(server: FakeVLLM) -> None:
    server.frozen = True


def stop(server: FakeVLLM) -> None:
    server.stop()


def limit_rate(server: FakeVLLM) -> None:
    server.status, server.headers = 429, {"Retry-After": "600"}


def fail(server: FakeVLLM) -> None:
    server.status = 500


def fail_test_requests_too(server: FakeVLLM) -> None:
    server.status = 502


@pytest.mark.parametrize(
    ("damage", "waits"),
    [
        (freeze, lambda client: client.stats.in_flight == 8),
        (stop, lambda client: client.stats.queued and noted(client, "waiting")()),
        (limit_rate, lambda client: client.stats.requests and client.stats.in_flight == 0),
        (fail, lambda client: client.stats.requests == IN_MEMORY and client.stats.in_flight == 0),
        (fail_test_requests_too, lambda client: noted(client, "answers no request")()),
    ],
)
def test_closing_ends_each_wait(
    damage: Callable[[FakeVLLM], None],
    waits: Callable[[ChatClient], object],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "backoff", lambda _: 600.0 if damage is fail else 0.0)
    with FakeVLLM() as server, ThreadPoolExecutor(3) as executor:
        with ChatClient(endpoint(server.url)) as client:
            damage(server)
            running = [executor.submit(client.complete, map(ask, ROWS)) for _ in range(3)]
            wait_until(lambda: waits(client))
            client.stop()
            for future in running:
                with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
                    future.result(30)  # the waits last for minutes
            assert not client.stats.notes
            sent = client.stats.requests  # the server may not have read all of them yet
            for call in (lambda: client.complete([ask("hello")]), client.check):
                with pytest.raises(EndpointError, match="the client is closed"):
                    call()
            assert client.complete([]) == []
        assert client.stats.requests == sent
        assert "hello" not in server.asked


def test_closing_ends_the_wait_of_a_check(dead_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as executor:
        with ChatClient(endpoint(dead_url)) as client:
            waiting = executor.submit(client.check, 600)
            wait_until(lambda: caplog.messages)
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            waiting.result(30)


def test_closing_ends_the_wait_for_a_restart(quick: None) -> None:
    """The restart itself goes on until the server's owner stops the server."""
    restarting, may_end = threading.Event(), threading.Event()

    class SlowRecovery:
        progress = "restarting vLLM: 1 s of 900"

        def recover(self, *_: object, **__: object) -> None:
            restarting.set()
            may_end.wait(60)

        def recycling_reason(self) -> str:
            return ""

        def processor_seconds(self) -> float:
            return 0.0

    with FakeVLLM() as server, ThreadPoolExecutor(1) as executor:
        try:
            with ChatClient(endpoint(server.url), recovery=SlowRecovery()) as client:
                server.stop()
                running = executor.submit(client.complete, map(ask, ROWS))
                assert restarting.wait(30)
            with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
                running.result(30)
        finally:
            may_end.set()


@pytest.mark.parametrize("count", [1, 30], ids=["in flight", "more than there are slots"])
def test_closing_cancels_requests_in_flight(count: int) -> None:
    with FakeVLLM() as server, ThreadPoolExecutor(3) as executor:
        server.frozen = True
        with ChatClient(endpoint(server.url), max_in_flight=2) as client:
            running = [executor.submit(client.complete, [ask("hello")] * count) for _ in range(3)]
            wait_until(lambda: len(server.active) == 2)
        for future in running:
            with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
                future.result(60)
        wait_until(lambda: not server.active)  # vLLM, too, aborts them then
