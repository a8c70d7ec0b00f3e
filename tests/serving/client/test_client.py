import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from aiohttp import web
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.client import transport
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.replies import ATTEMPTS, MAX_MESSAGE, read_reply
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome

KEY = "sk-secret-0a1b2c"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """A server on a thread of its own that hands every request to `handler`; gives its URL."""
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
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

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


def reply(text: str = "yes", **changed: Any) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"model": "m", "choices": [choice]} | changed)


class Counted:
    """A handler that answers with the user's text, and knows how many it works on at once."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.seconds, self.now, self.peak, self.total = seconds, 0, 0, 0
        self.goes_on = threading.Event()
        self.goes_on.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.total += 1
        self.peak = max(self.peak, self.now)
        try:
            body = await request.json()
            await asyncio.sleep(self.seconds)
            while not self.goes_on.is_set():
                await asyncio.sleep(0.01)
            return reply(body["messages"][-1]["content"])
        finally:
            self.now -= 1


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


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Retries follow at once; the list gets the number of each wait."""
    waits: list[int] = []

    def wait(attempts: int) -> float:
        waits.append(attempts)
        return 0.0

    monkeypatch.setattr(client_module, "_backoff", wait)
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 0.0)
    return waits


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_outcomes_come_in_the_order_of_the_requests() -> None:
    async def slow_first(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["messages"][-1]["content"]
        await asyncio.sleep(0.2 if text == "0" else 0.0)
        return reply(text)

    asked = [str(number) for number in range(30)]
    told: list[int] = []
    with serving(slow_first) as url, ChatClient(endpoint(url), max_in_flight=8) as client:
        outcomes = client.complete(map(ask, asked), lambda position, _: told.append(position))
    assert texts(outcomes) == asked
    assert sorted(told) == list(range(30))
    assert told.index(0) > 0


def test_the_server_never_sees_more_than_max_in_flight_and_sees_as_many() -> None:
    handler = Counted()
    with serving(handler.answer) as url, ChatClient(endpoint(url), max_in_flight=5) as client:
        client.complete(ask(str(number)) for number in range(40))
        assert (client.stats.requests, client.stats.completions) == (40, 40)
        assert client.stats.in_flight == 0
    assert handler.peak == 5


def test_threads_share_the_limit_and_get_their_own_outcomes() -> None:
    handler = Counted()
    asked = [[f"{thread}-{number}" for number in range(15)] for thread in range(4)]
    with (
        serving(handler.answer) as url,
        ChatClient(endpoint(url), max_in_flight=6) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = list(pool.map(lambda many: texts(client.complete(map(ask, many))), asked))
    assert answers == asked
    assert handler.peak == 6


def test_requests_are_made_only_as_slots_come_free() -> None:
    handler = Counted(seconds=0.0)
    handler.goes_on.clear()
    made: list[int] = []

    def requests() -> Iterator[ChatRequest]:
        for number in range(20):
            made.append(number)
            yield ask(str(number))

    with (
        serving(handler.answer) as url,
        ChatClient(endpoint(url), max_in_flight=3) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        outcomes = pool.submit(client.complete, requests())
        wait_until(lambda: handler.now == 3 and len(made) == 6)
        time.sleep(0.2)  # enough to see it go too far
        assert (handler.now, len(made)) == (3, 6)
        handler.goes_on.set()
        assert len(outcomes.result(10)) == 20


@pytest.mark.parametrize(
    ("told", "kind", "attempts", "retryable"),
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
def test_each_failure_is_asked_again_as_often_as_it_may_pass(
    told: str, kind: FailureKind, attempts: int, retryable: bool, stub: Any, no_wait: list[int]
) -> None:
    before = stub.stats()["requests"]
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        failure = only_failure(client.complete([ask(f"STUB {told}")]))
    assert (failure.kind, failure.attempts, failure.retryable) == (kind, attempts, retryable)
    assert stub.stats()["requests"] - before == attempts
    assert no_wait == list(range(1, attempts))
    if told.startswith("status"):
        assert failure.status == int(told.split()[1])
        assert failure.message == f"HTTP {failure.status}: the stub was told to fail"


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_failure_that_passes_is_no_failure(status: int, stub: Any, no_wait: list[int]) -> None:
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        (outcome,) = client.complete([ask(f"STUB once {status} of test_client")])
        assert (client.stats.requests, client.stats.failures) == (2, 0)
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 2
    assert no_wait == [1]


def test_the_real_wait_is_random_grows_and_is_bounded() -> None:
    waits = [max(client_module._backoff(sent) for _ in range(200)) for sent in (1, 3, 50)]
    assert 0.2 < waits[0] <= 0.5 < waits[1] <= 2 < waits[2] <= 20


def test_a_server_that_is_not_there(dead_url: str, no_wait: list[int]) -> None:
    with ChatClient(endpoint(dead_url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert failure.kind is FailureKind.CONNECTION
    assert failure.retryable
    assert failure.attempts == ATTEMPTS[FailureKind.CONNECTION] == len(no_wait) + 1
    assert failure.message.startswith(f"{dead_url}/v1: ")


def test_a_connection_that_never_opens(no_wait: list[int]) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one connection waits to be accepted, and no further one is let in
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with ChatClient(endpoint(url, connect_timeout=0.1)) as client:
            failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.attempts) == (FailureKind.CONNECTION, 4)
    assert len(no_wait) == 3


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
    [(hang, {"read_timeout": 0.2}), (dribble, {"read_timeout": 5, "total_timeout": 0.4})],
    ids=["silent", "dribbling"],
)
def test_a_server_that_does_not_finish(handler: Handler, timeouts: dict[str, Any]) -> None:
    async def well(request: web.Request) -> web.StreamResponse:
        return reply() if request.path == "/health" else await handler(request)

    with serving(well) as url, ChatClient(endpoint(url, **timeouts)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 2
    assert (failure.kind, failure.attempts) == (FailureKind.TIMEOUT, 2)
    assert failure.retryable


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{"message": {}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": null, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": [{"text": "a"}]}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": "few"}',
    ],
)
def test_what_is_no_chat_completion_is_a_bad_reply(body: str) -> None:
    outcome = read_reply(200, body.encode(), 0.5, 2)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.status, outcome.attempts) == (FailureKind.BAD_REPLY, 200, 2)


def test_a_reply_without_text_is_an_empty_completion() -> None:
    body = b'{"choices": [{"message": {"content": null}, "finish_reason": null}], "usage": null}'
    assert read_reply(200, body, 0.5, 1) == Completion("", "", 0, 0, 0.5, "")


def test_a_completion_tells_what_it_took(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        (outcome,) = client.complete([ask("STUB finish length")])
        assert (client.stats.prompt_tokens, client.stats.completion_tokens) == (100, 20)
    assert isinstance(outcome, Completion)
    assert (outcome.finish_reason, outcome.model, outcome.attempts) == ("length", "stub", 1)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 20)
    assert 0 < outcome.latency < 5
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
def test_a_request_that_is_not_json_costs_itself_only(bad: Any, stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        outcomes = client.complete([ask("a"), *[ask(bad)] * 4, ask("b")])
        assert client.stats.requests == 2
    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[-1], Completion)
    assert [getattr(outcome, "kind", None) for outcome in outcomes[1:-1]] == ["bad_request"] * 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "no\\nsuch\\timage"}}', "no such image"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"message": "older vLLM"}', "older vLLM"),
        ("<h1>Bad\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        ("[1]", "[1]"),
        ("", "no message"),
        ("x" * 100_000, "x" * MAX_MESSAGE),
        ('{"error": {"message": "' + "word " * 10_000 + '"}}', ("word " * 10_000)[:MAX_MESSAGE]),
    ],
    ids=["object", "text", "flat", "html", "list", "empty", "long", "long words"],
)
def test_a_servers_error_is_told_in_one_bounded_line(body: str, said: str) -> None:
    outcome = read_reply(400, body.encode(), 0.1, 1)
    assert isinstance(outcome, Failure)
    assert outcome.message == f"HTTP 400: {said}"


def test_a_redirect_is_not_followed_so_that_the_key_does_not_travel() -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization", ""))
        return reply()

    with serving(elsewhere) as other:

        async def redirect(_: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other}/v1/chat/completions")

        with serving(redirect) as url, ChatClient(endpoint(url, api_key=KEY)) as client:
            failure = only_failure(client.complete([ask("hello")]))
            with pytest.raises(EndpointError, match=r"answers HTTP 307, not a list of models"):
                client.check()
    assert (failure.kind, failure.status) == (FailureKind.BAD_REPLY, 307)
    assert seen == []


def test_key_and_further_headers_are_sent() -> None:
    seen: list[dict[str, str]] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        return reply(data=[{"id": "m"}])

    headers = {"X-Tenant": "blue", "X-Number": 7}
    given: dict[str, Any] = {
        "api_key": f" {KEY}\n",
        "extra_headers": headers,
    }
    with serving(look) as url, ChatClient(endpoint(url, **given)) as client:
        client.check()
        client.complete([ask("hello")])
    assert len(seen) == 2
    for got in seen:
        assert got["Authorization"] == f"Bearer {KEY}"
        assert (got["X-Tenant"], got["X-Number"]) == ("blue", "7")


def test_without_a_key_none_is_sent() -> None:
    async def look(request: web.Request) -> web.StreamResponse:
        return reply(request.headers.get("Authorization", "none"))

    with serving(look) as url, ChatClient(endpoint(url)) as client:
        assert texts(client.complete([ask("hello")])) == ["none"]


def test_the_right_key_passes_and_a_wrong_one_is_one_clear_line(keyed_stub: Any) -> None:
    right = endpoint(keyed_stub.url, model="stub", api_key=keyed_stub.api_key)
    with ChatClient(right) as client:
        client.check()
        assert len(texts(client.complete([ask("hello")]))) == 1
    with ChatClient(endpoint(keyed_stub.url, model="stub", api_key=KEY)) as client:
        with pytest.raises(EndpointError) as raised:
            client.check()
        failure = only_failure(client.complete([ask("hello")]))
    assert str(raised.value) == f"{keyed_stub.url}/v1 refuses the API key (HTTP 401)"
    assert (failure.kind, failure.retryable) == (FailureKind.AUTH, False)
    assert KEY not in repr(failure)


def test_an_unknown_model_is_told_with_those_served(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model="gpt-9")) as client:
        with pytest.raises(EndpointError, match=r"does not serve 'gpt-9'; it serves: stub$"):
            client.check()
        assert only_failure(client.complete([ask("hello")])).kind is FailureKind.NOT_FOUND


def test_the_one_model_served_is_taken(stub: Any) -> None:
    with ChatClient(endpoint(stub.url, model=None)) as client:
        assert client.model == "stub"
        assert len(texts(client.complete([ask("hello")]))) == 1


@pytest.mark.parametrize(
    ("served", "said"),
    [(["a", "b"], r"serves 2 models \(a, b\): name one"), ([], "serves no model")],
    ids=["two", "none"],
)
def test_one_of_several_models_must_be_named(served: list[str], said: str) -> None:
    async def models(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": name} for name in served]})

    with (
        serving(models) as url,
        ChatClient(endpoint(url, model=None)) as client,
        pytest.raises(EndpointError, match=said),
    ):
        client.check()


@pytest.mark.parametrize("answer", ["", "<html>", "[]", '{"data": [1]}', '{"data": null}'])
def test_an_address_of_something_else_is_told(answer: str) -> None:
    async def other(_: web.Request) -> web.StreamResponse:
        return web.Response(text=answer)

    with (
        serving(other) as url,
        ChatClient(endpoint(url)) as client,
        pytest.raises(EndpointError, match="not a list of models: is it a vLLM server's address"),
    ):
        client.check()


def test_no_server_is_one_clear_line(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url)) as client, pytest.raises(EndpointError) as raised:
        client.check()
    assert str(raised.value).startswith(f"no server answers at {dead_url}/v1 (")
    assert "\n" not in str(raised.value)


def test_requests_are_spread_over_the_servers() -> None:
    handlers = [Counted(), Counted(), Counted()]
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(handler.answer)) for handler in handlers]
        client = stack.enter_context(ChatClient(endpoint(*urls), max_in_flight=6))
        client.complete(ask(str(number)) for number in range(60))
    assert [handler.peak for handler in handlers] == [2, 2, 2]
    assert all(handler.total >= 15 for handler in handlers)


def test_every_server_is_checked(stub: Any, dead_url: str) -> None:
    with (
        ChatClient(endpoint(stub.url, dead_url, model="stub")) as client,
        pytest.raises(EndpointError, match=dead_url),
    ):
        client.check()


def test_a_server_that_is_gone_leaves_its_work_to_the_others(
    dead_url: str, no_wait: list[int]
) -> None:
    handler = Counted()
    asked = [str(number) for number in range(30)]
    with (
        serving(handler.answer) as url,
        ChatClient(endpoint(dead_url, url), max_in_flight=4) as client,
    ):
        outcomes = client.complete(map(ask, asked))
    assert texts(outcomes) == asked
    assert 1 <= len(no_wait) <= 4


def test_the_only_server_is_asked_even_when_it_was_gone(
    dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_REST_SECONDS", 3600.0)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    with ChatClient(endpoint(dead_url)) as client:
        client.complete([ask("a")])
        assert client.stats.requests == 4
        client.complete([ask("b")])
        assert client.stats.requests == 8


def test_an_error_of_the_callers_own_iterator_reaches_the_caller(stub: Any) -> None:
    def broken() -> Iterator[ChatRequest]:
        yield ask("hello")
        raise LookupError("the caller's own")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        for _ in range(5):  # more often than there are places: none of them is lost
            with pytest.raises(LookupError, match="the caller's own"):
                client.complete(broken())
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_an_error_of_the_callers_own_callback_reaches_the_caller(stub: Any) -> None:
    def broken(position: int, outcome: Outcome) -> None:
        raise LookupError(f"{position} {type(outcome).__name__}")

    with ChatClient(endpoint(stub.url, model="stub"), max_in_flight=1) as client:
        with pytest.raises(LookupError, match="0 Completion"):
            client.complete([ask("hello")] * 5, broken)
        assert len(texts(client.complete([ask("hello")] * 3))) == 3


def test_an_unknown_model_name_does_not_use_up_the_places(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url, model=None), max_in_flight=1) as client:
        for _ in range(5):
            with pytest.raises(EndpointError, match="no server answers"):
                client.complete([ask("hello")])


@pytest.mark.parametrize("count", [1, 30], ids=["in flight", "more than there are places"])
def test_closing_ends_what_is_in_flight(count: int) -> None:
    handler = Counted()
    handler.goes_on.clear()
    with serving(handler.answer) as url, ThreadPoolExecutor(3) as pool:
        with ChatClient(endpoint(url), max_in_flight=2) as client:
            running = [pool.submit(client.complete, [ask("hello")] * count) for _ in range(3)]
            wait_until(lambda: handler.now == 2)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        for future in running:
            with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
                future.result(5)
        handler.goes_on.set()


def test_a_closed_client_says_so(stub: Any) -> None:
    client = ChatClient(endpoint(stub.url, model="stub"))
    with pytest.raises(EndpointError, match="the client is closed"):
        client.complete([ask("hello")])
    with client:
        assert len(client.complete([ask("hello")])) == 1
    for _ in range(200):
        with pytest.raises(EndpointError, match="the client is closed"):
            client.complete([ask("hello")])
    assert not any(thread.name == "chat-client" for thread in threading.enumerate())
