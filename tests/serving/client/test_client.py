import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from aiohttp import web
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.client import transport
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.retry_policy import MAX_ATTEMPTS
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome

KEY = "sk-secret-0a1b2c"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """A server on its own thread that passes every request to `handler`; yields its URL."""
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop() -> None:
        await runner.cleanup()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    url = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def reply(text: str = "yes", **fields: Any) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"model": "m", "choices": [choice]} | fields)


class CountingServer:
    """Replies with the user's text, counts concurrent requests, and can hold its replies back."""

    def __init__(self, *, holding: bool = False) -> None:
        self.active, self.peak = 0, 0
        self.released = threading.Event()
        if not holding:
            self.released.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            body = await request.json()
            while not self.released.is_set():
                await asyncio.sleep(0.01)
            return reply(body["messages"][-1]["content"])
        finally:
            self.active -= 1


def ask(text: str) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": text}], {"max_tokens": 16})


def endpoint(*urls: str, model: str | None = "m", **options: Any) -> VLLMEndpoint:
    return VLLMEndpoint(urls=list(urls), model=model, **options)


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]


def only_failure(outcomes: list[Outcome]) -> Failure:
    (outcome,) = outcomes
    assert isinstance(outcome, Failure), outcome
    return outcome


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)


@pytest.fixture
def backoffs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes retries immediate; yields the attempts before each back-off."""
    calls: list[int] = []

    def backoff(attempts: int) -> float:
        calls.append(attempts)
        return 0.0

    monkeypatch.setattr(client_module, "_backoff", backoff)
    monkeypatch.setattr(client_module, "_CRASH_CHECK_DELAY", 0.0)
    return calls


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


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
    server = CountingServer(holding=True)
    sent = [[f"{thread}-{number}" for number in range(15)] for thread in range(4)]
    with (
        serving(server.answer) as url,
        ChatClient(endpoint(url), max_in_flight=6) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        outcomes = [pool.submit(client.complete, map(ask, thread)) for thread in sent]
        wait_until(lambda: server.active == 6)
        server.released.set()
        assert [texts(future.result(60)) for future in outcomes] == sent
        assert (client.stats.requests, client.stats.completions) == (60, 60)
        assert client.stats.in_flight == 0
    assert server.peak == 6


def test_requests_are_built_only_as_slots_become_free() -> None:
    server = CountingServer(holding=True)
    built: list[int] = []

    def requests() -> Iterator[ChatRequest]:
        for number in range(20):
            built.append(number)
            yield ask(str(number))

    with (
        serving(server.answer) as url,
        ChatClient(endpoint(url), max_in_flight=3) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        outcomes = pool.submit(client.complete, requests())
        wait_until(lambda: server.active == 3 and len(built) == 6)
        time.sleep(0.2)  # a client without limits would exceed them by now
        assert (server.active, len(built)) == (3, 6)
        server.released.set()
        assert len(outcomes.result(60)) == 20


@pytest.mark.parametrize(
    ("command", "kind", "attempts", "retryable"),
    [
        ("status 400", FailureKind.BAD_REQUEST, 1, False),
        ("status 401", FailureKind.AUTH, 1, False),
        ("status 404", FailureKind.NOT_FOUND, 1, False),
        ("status 422", FailureKind.BAD_REQUEST, 1, False),
        ("status 429", FailureKind.UNAVAILABLE, 5, True),
        ("status 503", FailureKind.UNAVAILABLE, 5, True),
        ("status 500", FailureKind.SERVER_ERROR, 3, True),
        ("status 502", FailureKind.UNAVAILABLE, 5, True),
        ("status 504", FailureKind.TIMEOUT, 2, True),
        ("status 520", FailureKind.UNAVAILABLE, 5, True),
        ("raw not JSON", FailureKind.BAD_REPLY, 1, False),
    ],
)
def test_each_kind_of_failure_has_its_number_of_attempts(
    command: str, kind: FailureKind, attempts: int, retryable: bool, stub: Any, backoffs: list[int]
) -> None:
    before = stub.stats()["requests"]
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        failure = only_failure(client.complete([ask(f"STUB {command}")]))
    assert (failure.kind, failure.attempts, failure.retryable) == (kind, attempts, retryable)
    assert failure.disconnects == 0
    assert stub.stats()["requests"] - before == attempts
    assert backoffs == list(range(1, attempts))
    if command.startswith("status"):
        assert failure.status == int(command.split()[1])
        assert failure.message == f"HTTP {failure.status}: simulated failure"


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_retry_after_a_transient_failure_succeeds(
    status: int, stub: Any, backoffs: list[int]
) -> None:
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        (outcome,) = client.complete([ask(f"STUB once {status} of test_client")])
        assert (client.stats.requests, client.stats.failures) == (2, 0)
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 2
    assert backoffs == [1]


def test_the_backoff_is_random_grows_and_is_bounded() -> None:
    longest = [max(client_module._backoff(sent) for _ in range(200)) for sent in (1, 3, 50)]
    assert 0.2 < longest[0] <= 0.5 < longest[1] <= 2 < longest[2] <= 20


def test_a_server_that_is_down(dead_url: str, backoffs: list[int]) -> None:
    with ChatClient(endpoint(dead_url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.disconnects) == (FailureKind.CONNECTION, 0)
    assert failure.retryable
    assert failure.attempts == MAX_ATTEMPTS[FailureKind.CONNECTION] == len(backoffs) + 1
    assert failure.message.startswith(f"{dead_url}/v1: ")


def test_a_connection_that_times_out(backoffs: list[int]) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one connection waits to be accepted, and all others time out
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with ChatClient(endpoint(url, connect_timeout=0.1)) as client:
            failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.attempts) == (FailureKind.CONNECTION, 4)
    assert len(backoffs) == 3


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    return reply()


async def dribble(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(600):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


@pytest.mark.parametrize(
    ("handler", "timeouts"),
    [(hang, {"read_timeout": 0.2}), (dribble, {"read_timeout": 60, "total_timeout": 0.4})],
    ids=["silent", "dribbling"],
)
def test_a_reply_that_times_out(
    handler: Handler, timeouts: dict[str, Any], backoffs: list[int]
) -> None:
    async def healthy(request: web.Request) -> web.StreamResponse:
        return reply() if request.path == "/health" else await handler(request)

    with serving(healthy) as url, ChatClient(endpoint(url, **timeouts)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 2
    assert (failure.kind, failure.attempts) == (FailureKind.TIMEOUT, 2)
    assert (failure.disconnects, failure.retryable) == (0, True)


def test_a_completion_has_its_usage_and_latency(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        (outcome,) = client.complete([ask("STUB finish length")])
        assert (client.stats.prompt_tokens, client.stats.completion_tokens) == (100, 20)
    assert isinstance(outcome, Completion)
    assert (outcome.finish_reason, outcome.model, outcome.attempts) == ("length", "stub", 1)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 20)
    assert 0 < outcome.latency < 60
    assert outcome.text.startswith("**Question:**")


def test_the_body_is_the_conversation_with_its_options(stub: Any) -> None:
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
    bad: Any, stub: Any
) -> None:
    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        outcomes = client.complete([ask("a"), *[ask(bad)] * 4, ask("b")])
        assert client.stats.requests == 2
    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[-1], Completion)
    assert [getattr(outcome, "kind", None) for outcome in outcomes[1:-1]] == ["bad_request"] * 4


def test_a_redirect_is_not_followed_lest_the_key_leak() -> None:
    keys: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers.get("Authorization", ""))
        return reply()

    with serving(elsewhere) as other:

        async def redirect(_: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other}/v1/chat/completions")

        with serving(redirect) as url, ChatClient(endpoint(url, api_key=KEY)) as client:
            failure = only_failure(client.complete([ask("hello")]))
            with pytest.raises(EndpointError, match=r"returned HTTP 307 and no list of models"):
                client.check()
    assert (failure.kind, failure.status) == (FailureKind.BAD_REPLY, 307)
    assert keys == []


def test_key_and_extra_headers_are_sent() -> None:
    received: list[dict[str, str]] = []

    async def record(request: web.Request) -> web.StreamResponse:
        received.append(dict(request.headers))
        return reply(data=[{"id": "m"}])

    options: dict[str, Any] = {
        "api_key": f" {KEY}\n",
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
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert (headers["X-Tenant"], headers["X-Number"]) == ("blue", "7")
    assert "Authorization" not in without_key


def test_the_right_key_works_and_a_wrong_one_is_one_clear_line(keyed_stub: Any) -> None:
    right = endpoint(keyed_stub.url, model="stub", api_key=keyed_stub.api_key)
    with ChatClient(right) as client:
        client.check()
        assert len(texts(client.complete([ask("hello")]))) == 1
    with ChatClient(endpoint(keyed_stub.url, model="stub", api_key=KEY)) as client:
        with pytest.raises(EndpointError) as raised:
            client.check()
        failure = only_failure(client.complete([ask("hello")]))
    assert str(raised.value) == f"{keyed_stub.url}/v1 rejects the API key (HTTP 401)"
    assert (failure.kind, failure.retryable) == (FailureKind.AUTH, False)
    assert KEY not in repr(failure)


def test_an_unknown_model_is_reported_with_those_served(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model="gpt-9")) as client:
        with pytest.raises(EndpointError, match=r"does not serve 'gpt-9'; it serves: stub$"):
            client.check()
        assert only_failure(client.complete([ask("hello")])).kind is FailureKind.NOT_FOUND


def test_the_only_model_served_is_used(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model=None)) as client:
        assert client.model == "stub"
        assert len(texts(client.complete([ask("hello")]))) == 1


def serving_models(*names: str) -> AbstractContextManager[str]:
    async def models(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": name} for name in names]})

    return serving(models)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "b"], r"serves 2 models \(a, b\): name one"), ([], "serves no model")],
    ids=["two", "none"],
)
def test_one_of_several_models_must_be_named(names: list[str], message: str) -> None:
    with (
        serving_models(*names) as url,
        ChatClient(endpoint(url, model=None)) as client,
        pytest.raises(EndpointError, match=message),
    ):
        client.check()


def test_a_server_other_than_vllm_is_recognised() -> None:
    bodies = ["", "<html>", "[]", '{"data": [1]}', '{"data": null}']
    pending = list(bodies)

    async def other(_: web.Request) -> web.StreamResponse:
        return web.Response(text=pending.pop())

    with serving(other) as url, ChatClient(endpoint(url)) as client:
        for _ in bodies:
            with pytest.raises(EndpointError, match="no list of models: is this the address of"):
                client.check()
    assert not pending


def test_an_unreachable_server_is_one_clear_line(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url)) as client, pytest.raises(EndpointError) as raised:
        client.check()
    assert str(raised.value).startswith(f"no server answers at {dead_url}/v1 (")
    assert "\n" not in str(raised.value)


def test_requests_are_spread_over_the_servers() -> None:
    servers = [CountingServer(holding=True) for _ in range(3)]
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(server.answer)) for server in servers]
        client = stack.enter_context(ChatClient(endpoint(*urls), max_in_flight=6))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        outcomes = pool.submit(client.complete, [ask("hello")] * 60)
        wait_until(lambda: sum(server.active for server in servers) == 6)
        for server in servers:
            server.released.set()
        assert len(texts(outcomes.result(60))) == 60
    assert [server.peak for server in servers] == [2, 2, 2]


def test_every_server_is_checked(stub: Any, dead_url: str) -> None:
    with (
        ChatClient(endpoint(stub.url, dead_url, model="stub")) as client,
        pytest.raises(EndpointError, match=dead_url),
    ):
        client.check()
    with (
        serving_models("another") as other,
        ChatClient(endpoint(stub.url, other, model=None)) as client,
        pytest.raises(EndpointError, match=f"{other}/v1 does not serve 'stub'"),
    ):
        client.check()


def test_requests_to_a_server_that_is_down_go_to_the_others(
    dead_url: str, backoffs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_COOLDOWN_SECONDS", 3600.0)
    server = CountingServer()
    sent = [str(number) for number in range(30)]
    with (
        serving(server.answer) as url,
        ChatClient(endpoint(dead_url, url), max_in_flight=4) as client,
    ):
        outcomes = client.complete(map(ask, sent))
    assert texts(outcomes) == sent
    assert 1 <= len(backoffs) <= 4


def test_the_only_server_gets_requests_even_in_its_cooldown(
    dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_COOLDOWN_SECONDS", 3600.0)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    with ChatClient(endpoint(dead_url)) as client:
        client.complete([ask("a")])
        assert client.stats.requests == 4
        client.complete([ask("b")])
        assert client.stats.requests == 8


def test_an_error_in_the_callers_iterator_is_propagated(stub: Any) -> None:
    def broken() -> Iterator[ChatRequest]:
        yield ask("hello")
        raise LookupError("from the iterator")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        for _ in range(5):  # more often than there are slots: none of them is leaked
            with pytest.raises(LookupError, match="from the iterator"):
                client.complete(broken())
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_an_error_in_the_callers_callback_is_propagated(stub: Any) -> None:
    def broken(position: int, outcome: Outcome) -> None:
        raise LookupError(f"{position} {type(outcome).__name__}")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        with pytest.raises(LookupError, match="0 Completion"):
            client.complete([ask("hello")] * 5, broken)
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_a_failed_check_does_not_leak_slots(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url, model=None), max_in_flight=1) as client:
        for _ in range(5):
            with pytest.raises(EndpointError, match="no server answers"):
                client.complete([ask("hello")])


@pytest.mark.parametrize("count", [1, 30], ids=["in flight", "more than there are slots"])
def test_closing_cancels_requests_in_flight(count: int) -> None:
    server = CountingServer(holding=True)
    with serving(server.answer) as url, ThreadPoolExecutor(3) as pool:
        with ChatClient(endpoint(url), max_in_flight=2) as client:
            running = [pool.submit(client.complete, [ask("hello")] * count) for _ in range(3)]
            wait_until(lambda: server.active == 2)
        for future in running:
            with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
                future.result(60)
        server.released.set()


def test_a_closed_client_raises_an_error_and_has_no_thread(stub: Any) -> None:
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
