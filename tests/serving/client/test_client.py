"""Requests and their outcomes, with servers that work."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from aiohttp import web
from chat import ask, completing, endpoint, texts, wait_until
from fake_vllm import FakeVLLM, reply, serving
from prefect_imageqa.serving.background_loop import CoroutineGroup
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest, Completion, Outcome
from servers import StubServer

SECRET = "sk-secret-0a1b2c"


def test_outcomes_are_in_the_order_of_the_requests() -> None:
    reported: list[int] = []

    async def slow_first(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["messages"][-1]["content"]
        while text == "0" and not reported:
            await asyncio.sleep(0.01)
        return reply(text)

    sent = [str(number) for number in range(30)]
    with serving(slow_first) as url, ChatClient(endpoint(url), max_in_flight=8) as client:
        outcomes = client.complete(map(ask, sent), lambda position, _: reported.append(position))
    assert texts(outcomes) == sent
    assert sorted(reported) == list(range(30))
    assert reported.index(0) > 0


def test_threads_share_the_limit_and_get_their_own_outcomes() -> None:
    sent = [[f"{thread}-{number}" for number in range(15)] for thread in range(4)]
    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=6) as client,
        ThreadPoolExecutor(4) as executor,
    ):
        server.frozen = True
        outcomes = [executor.submit(client.complete, map(ask, thread)) for thread in sent]
        wait_until(lambda: len(server.active) == 6)
        server.frozen = False
        assert [texts(future.result(60)) for future in outcomes] == sent
        assert (client.stats.requests, client.stats.completions) == (60, 60)
        assert (client.stats.in_flight, client.stats.queued) == (0, 0)
    assert server.peak == 6


def test_requests_are_built_only_as_slots_become_free() -> None:
    built: list[int] = []

    def requests() -> Iterator[str]:
        for number in range(20):
            built.append(number)
            yield str(number)

    with (
        FakeVLLM() as server,
        ChatClient(endpoint(server.url), max_in_flight=3) as client,
    ):
        server.frozen = True
        with completing(client, requests()) as outcomes:
            wait_until(lambda: len(server.active) == 3 and len(built) == 6)
            time.sleep(0.2)  # a client without limits would exceed them by now
            assert (len(server.active), len(built)) == (3, 6)
            server.frozen = False
            assert len(outcomes.result(60)) == 20


def test_a_task_sends_one_request_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """To start one for each costs as much as all else that is done for a request."""
    spawned: list[object] = []
    spawn = CoroutineGroup.spawn

    def count(group: CoroutineGroup, coroutine: Any) -> Any:
        spawned.append(coroutine)
        return spawn(group, coroutine)

    monkeypatch.setattr(CoroutineGroup, "spawn", count)
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.latency = 0.01
        assert len(texts(client.complete(map(ask, map(str, range(200)))))) == 200
    assert len(spawned) < 100


def test_only_a_few_requests_are_sent_before_the_first_reply() -> None:
    """With a strict limit of the rate, all others were wasted."""
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=64) as client:
        server.frozen = True
        with completing(client, map(str, range(64))) as outcomes:
            wait_until(lambda: len(server.active) == 8)
            time.sleep(0.2)
            assert len(server.active) == 8
            server.hanging = {str(number) for number in range(1, 64)}
            server.frozen = False
            wait_until(lambda: len(server.active) == 63)
            server.hanging = set()
            assert len(texts(outcomes.result(60))) == 64


def test_a_completion_has_its_usage_and_latency(stub: StubServer) -> None:
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        began = time.monotonic()
        (outcome,) = client.complete([ask("STUB finish length")])
        assert (client.stats.prompt_tokens, client.stats.completion_tokens) == (100, 20)
        assert began < client.stats.last_completion < time.monotonic()
    assert isinstance(outcome, Completion)
    assert (outcome.finish_reason, outcome.model, outcome.attempts) == ("length", "stub", 1)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 20)
    assert 0 < outcome.latency < 60
    assert outcome.text.startswith("**Question:**")


def test_the_body_is_the_conversation_with_its_options(stub: StubServer) -> None:
    messages = [{"role": "user", "content": "the body of ü"}]
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        client.complete([ChatRequest(messages, {"temperature": 0.5, "min_p": 0.1})])
    assert stub.stats()["bodies"][-1] == {
        "model": "stub",
        "messages": messages,
        "temperature": 0.5,
        "min_p": 0.1,
    }


@pytest.mark.parametrize("bad", ["\ud800", object(), 2**70], ids=["surrogate", "object", "huge"])
def test_a_request_that_cannot_be_encoded_fails_without_affecting_others(
    bad: Any, stub: StubServer
) -> None:
    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        outcomes = client.complete([ask("a"), *[ask(bad)] * 4, ask("b")])
        assert client.stats.requests == 2
    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[-1], Completion)
    assert [getattr(outcome, "kind", None) for outcome in outcomes[1:-1]] == ["bad_request"] * 4


def test_key_and_extra_headers_are_sent() -> None:
    received: list[dict[str, str]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        received.append(dict(request.headers))
        return reply(data=[{"id": "m"}])

    options: dict[str, Any] = {
        "api_key": f" {SECRET}\n",
        "extra_headers": {"X-Tenant": "blue", "X-Number": 7},
    }
    with serving(record) as url:
        with ChatClient(endpoint(url, **options)) as client:
            client.check()
            client.complete([ask("hello")])
        with ChatClient(endpoint(url)) as client:
            client.complete([ask("hello")])
    *with_key, without_key = received
    assert len(with_key) == 2
    for headers in with_key:
        assert headers["Authorization"] == f"Bearer {SECRET}"
        assert (headers["X-Tenant"], headers["X-Number"]) == ("blue", "7")
    assert "Authorization" not in without_key


def test_requests_are_spread_over_the_servers() -> None:
    servers = [FakeVLLM() for _ in range(3)]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server).frozen = True
        urls = [server.url for server in servers]
        client = stack.enter_context(ChatClient(endpoint(*urls), max_in_flight=6))
        outcomes = stack.enter_context(completing(client, map(str, range(60))))
        wait_until(lambda: sum(len(server.active) for server in servers) == 6)
        assert [server.peak for server in servers] == [2, 2, 2]
        for server in servers:
            server.frozen = False
        assert len(texts(outcomes.result(60))) == 60


def test_an_error_in_the_callers_iterator_is_propagated(stub: StubServer) -> None:
    def broken() -> Iterator[ChatRequest]:
        yield ask("hello")
        raise LookupError("from the iterator")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        for _ in range(5):  # more often than there are slots: none of them is leaked
            with pytest.raises(LookupError, match="from the iterator"):
                client.complete(broken())
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_what_was_sent_before_an_error_in_the_callers_iterator_is_reported() -> None:
    reported: list[Outcome] = []

    def broken() -> Iterator[ChatRequest]:
        yield ask("hello")
        raise LookupError

    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.latency = 0.2
        with pytest.raises(LookupError):
            client.complete(broken(), lambda _, outcome: reported.append(outcome))
        assert texts(reported) == ["hello"]


def test_an_error_in_the_callers_callback_is_propagated(stub: StubServer) -> None:
    def broken(position: int, outcome: Outcome) -> None:
        raise LookupError(f"{position} {type(outcome).__name__}")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        with pytest.raises(LookupError, match="0 Completion"):
            client.complete([ask("hello")] * 5, broken)
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_a_closed_client_raises_an_error_and_has_no_thread(stub: StubServer) -> None:
    before = threading.enumerate()
    client = ChatClient(endpoint(stub.url, model="stub"))
    with pytest.raises(EndpointError, match="the client is closed"):
        client.complete([ask("hello")])
    with client:
        assert len(client.complete([ask("hello")])) == 1
    for _ in range(200):
        with pytest.raises(EndpointError, match="the client is closed"):
            client.complete([ask("hello")])
    loops = {thread for thread in threading.enumerate() if thread.name == "background-loop"}
    assert loops <= set(before)
