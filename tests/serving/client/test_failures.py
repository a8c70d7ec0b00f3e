"""Requests that fail although their server answers others: how often they are sent again."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web
from chat import ask, completing, endpoint, only_failure, texts, wait_until
from fake_vllm import FakeVLLM, serving
from prefect_imageqa.serving.client import ChatClient, rate_limit, retry_policy, sender, transport
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import Completion, FailureKind
from raw_server import (
    COMPLETION,
    Behaviour,
    drop,
    healthy,
    listening,
    reset,
    speak_ssh,
    truncate_body,
    truncate_head,
)


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (400, FailureKind.BAD_REQUEST, 1),
        (413, FailureKind.BAD_REQUEST, 1),
        (422, FailureKind.BAD_REQUEST, 1),
        (401, FailureKind.AUTH, 1),
        (404, FailureKind.NOT_FOUND, 1),
        (408, FailureKind.TIMEOUT, 2),
        (504, FailureKind.TIMEOUT, 2),
        (524, FailureKind.TIMEOUT, 2),
        (500, FailureKind.SERVER_ERROR, 3),
        (501, FailureKind.SERVER_ERROR, 3),
        (502, FailureKind.DISCONNECTED, 4),
        (503, FailureKind.UNAVAILABLE, 4),
        (520, FailureKind.DISCONNECTED, 4),
        (204, FailureKind.BAD_REPLY, 3),
        (307, FailureKind.BAD_REPLY, 3),
    ],
)
def test_each_kind_of_failure_has_its_number_of_attempts(
    status: int, kind: FailureKind, attempts: int, quick: list[int]
) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.status_of["bad"] = status
        with completing(client, ["bad", "good"]) as outcomes:
            failure, completion = outcomes.result(30)
        assert client.stats.failures == 1
    assert isinstance(completion, Completion)
    assert only_failure([failure]).kind is kind
    assert only_failure([failure]).attempts == server.asked["bad"] == attempts
    assert quick == list(range(1, attempts))
    assert only_failure([failure]).status == status
    if status != 204:
        sent = " (no key was sent)" if status == 401 else ""
        assert only_failure([failure]).message == f"HTTP {status}: simulated failure{sent}"


def test_a_gateway_that_sends_its_error_with_http_200_each_time(quick: list[int]) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return web.Response()
        return web.json_response({"error": {"message": "overloaded", "code": 502}})

    with serving(answer) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("bad")]))
    assert (failure.kind, failure.attempts) == (FailureKind.DISCONNECTED, 4)
    assert failure.message == "HTTP 200 with error 502: overloaded"
    assert quick == [1, 2, 3]


@pytest.mark.parametrize("status", [307, 408, 429, 500, 502, 503])
def test_a_request_that_is_answered_at_the_second_attempt(status: int, quick: list[int]) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.statuses = [status]
        (outcome,) = client.complete([ask("hello")])
        assert (client.stats.requests, client.stats.failures) == (2, 0)
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 2


def test_a_rejection_for_the_rate_counts_as_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_MIN_PAUSE", 0.01)
    monkeypatch.setattr(rate_limit, "_MAX_PAUSE", 0.01)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.statuses = [429] * 20
        (outcome,) = client.complete([ask("hello")])
        assert client.stats.failures == 0
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 21


@pytest.mark.parametrize("behave", [drop, reset, truncate_body, truncate_head])
def test_a_request_whose_connection_is_cut_each_time(behave: Behaviour, quick: list[int]) -> None:
    with listening(healthy(behave)) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("bad")]))
    assert (failure.kind, failure.attempts) == (FailureKind.DISCONNECTED, 4)
    assert quick == [1, 2, 3]


def test_a_request_that_gets_no_http_reply_each_time(quick: list[int]) -> None:
    with (
        listening(healthy(speak_ssh)) as url,
        ChatClient(endpoint(url), server_wait=5) as client,
    ):
        failure = only_failure(client.complete([ask("bad")]))
    assert (failure.kind, failure.attempts) == (FailureKind.BAD_REPLY, 3)


def test_a_request_whose_upload_is_cut_each_time(quick: list[int]) -> None:
    """So does a gateway that limits the size of requests, without saying so."""
    with FakeVLLM() as server, ChatClient(endpoint(server.url), server_wait=5) as client:
        server.max_body = 100_000
        failure = only_failure(client.complete([ask("x" * (1 << 24))]))
        assert len(texts(client.complete([ask("good")]))) == 1
    assert (failure.kind, failure.attempts) == (FailureKind.DISCONNECTED, 4)


def test_the_backoff_is_random_grows_and_is_bounded() -> None:
    longest = [max(retry_policy.backoff(count) for _ in range(200)) for count in (1, 3, 50)]
    assert 0.1 < longest[0] <= 0.25 < longest[1] <= 1 < longest[2] <= 5


def test_an_idle_connection_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM closes idle connections after 5 s.
    assert transport._KEEPALIVE_SECONDS < 5
    opened = []

    def keep_open(connection: socket.socket, _request: bytes) -> None:
        opened.append(connection)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION)
        connection.sendall(head + COMPLETION)
        connection.recv(1)  # until the client closes it

    monkeypatch.setattr(transport, "_KEEPALIVE_SECONDS", 0.05)
    with listening(keep_open) as url, ChatClient(endpoint(url)) as client:
        assert isinstance(client.complete([ask("hello")])[0], Completion)
        time.sleep(0.2)
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    assert len(opened) == 2


def test_a_request_holds_no_slot_while_it_waits_for_its_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "backoff", lambda _: 600.0)
    with ThreadPoolExecutor(1) as executor, FakeVLLM() as server:
        server.statuses = [500]
        with ChatClient(endpoint(server.url), max_in_flight=1) as client:
            running = executor.submit(client.complete, [ask(str(number)) for number in range(11)])
            wait_until(lambda: client.stats.completions == 10)
            assert client.stats.requests == 11
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            running.result(60)


def test_the_number_of_requests_that_wait_for_their_retry_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "backoff", lambda _: 600.0)
    built = 0

    def requests() -> Iterator[str]:
        nonlocal built
        while True:
            built += 1
            yield "hello"

    with ThreadPoolExecutor(1) as executor, FakeVLLM() as server:
        server.status = 500
        with ChatClient(endpoint(server.url), max_in_flight=3) as client:
            running = executor.submit(client.complete, map(ask, requests()))
            wait_until(lambda: client.stats.requests == 6 and client.stats.in_flight == 0)
            time.sleep(0.2)  # a client without limits would exceed them by now
            assert (built, client.stats.requests, client.stats.in_flight) == (6, 6, 0)
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            running.result(60)
