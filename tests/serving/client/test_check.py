"""Checks of the endpoint: is a server there, does it accept the key, does it serve the model?"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from aiohttp import web
from chat import ask, endpoint, logged, noted, only_failure, texts, wait_until
from fake_vllm import FakeVLLM, reply, serving
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.errors import EndpointError, EndpointUnreachableError
from prefect_imageqa.serving.types import FailureKind
from servers import StubServer

SECRET = "sk-secret-0a1b2c"


def serving_models(*names: str) -> AbstractContextManager[str]:
    async def models(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": name} for name in names]})

    return serving(models)


def test_the_only_model_served_is_used(stub: StubServer) -> None:
    with ChatClient(endpoint(stub.url, model=None)) as client:
        assert client.model == "stub"
        assert len(texts(client.complete([ask("hello")]))) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], r"serves 2 models \(a, b\): name one"),
        (["a\x1b[1m\nb", "c"], r"serves 2 models \(a\\x1b\[1m b, c\): name one"),
        (["m"] * 30, r"serves 30 models \(m(, m){19}, \.\.\.\): name one"),
        ([], "serves no model"),
    ],
    ids=["two", "escapes", "many", "none"],
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


def test_a_redirect_is_not_followed_lest_the_key_leak(quick: None) -> None:
    keys: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers.get("Authorization", ""))
        return reply()

    with serving(elsewhere) as other:

        async def redirect(_: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other}/v1/chat/completions")

        with (
            serving(redirect) as url,
            ChatClient(endpoint(url, api_key=SECRET), server_wait=0.0) as client,
        ):
            with pytest.raises(EndpointError, match=r"returned HTTP 307 and no list of models"):
                client.check()
            with pytest.raises(EndpointError, match=r"answers no request \(HTTP 307: "):
                client.complete([ask("hello")])
    assert keys == []


def test_a_wrong_key_is_one_clear_line(keyed_stub: StubServer) -> None:
    right = endpoint(keyed_stub.url, model="stub", api_key=keyed_stub.api_key)
    with ChatClient(right) as client:
        client.check()
        assert len(texts(client.complete([ask("hello")]))) == 1
    with ChatClient(endpoint(keyed_stub.url, model="stub", api_key=SECRET)) as client:
        for call in (client.check, lambda: client.complete([ask("hello")])):
            with pytest.raises(EndpointError) as raised:
                call()
            assert str(raised.value) == f"{keyed_stub.url}/v1 rejects the API key (HTTP 401)"


def test_a_key_that_only_completions_require_ends_all_requests() -> None:
    """So do some gateways: they show the list of models to everyone."""
    with FakeVLLM() as server, ChatClient(endpoint(server.url, api_key=SECRET)) as client:
        client.check()
        server.status = 401
        with pytest.raises(EndpointError) as raised:
            client.complete([ask(str(number)) for number in range(200)])
        assert client.stats.requests < 200
    assert str(raised.value) == f"{server.url} refuses to answer: HTTP 401: simulated failure"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_one_rejected_request_among_others_is_to_blame(status: int) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.statuses = [status]
        failure = only_failure(client.complete([ask("bad")]))
        assert len(texts(client.complete([ask("good")]))) == 1
    assert (failure.status, failure.attempts, server.asked["bad"]) == (status, 1, 1)


def test_an_unknown_model_is_reported_with_those_served(stub: StubServer) -> None:
    with ChatClient(endpoint(stub.url, model="gpt-9")) as client:
        for call in (client.check, lambda: client.complete([ask("hello")])):
            with pytest.raises(EndpointError, match=r"does not serve 'gpt-9'; it serves: stub$"):
                call()


def test_a_model_that_is_no_longer_served_ends_all_requests() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        assert client.check() == "m"
        assert len(texts(client.complete([ask("hello")]))) == 1
        server.models, server.status = ["other"], 404
        with pytest.raises(EndpointError, match="does not serve 'm'; it serves: other"):
            client.complete([ask("hello")] * 20)


def test_an_unreachable_server_is_one_clear_line(dead_url: str) -> None:
    with (
        ChatClient(endpoint(dead_url)) as client,
        pytest.raises(EndpointUnreachableError) as raised,
    ):
        client.check()
    assert str(raised.value).startswith(f"no server answers at {dead_url}/v1 (connection refused)")
    assert "\n" not in str(raised.value)


def test_one_server_of_several_is_enough(stub: StubServer, dead_url: str) -> None:
    with ChatClient(endpoint(dead_url, stub.url, model="stub")) as client:
        assert client.check() == "stub"
        assert len(texts(client.complete([ask("hello")] * 4))) == 4
        assert client.stats.requests == 4  # no request was sent to the other server
        wait_until(noted(client, f"{dead_url} does not answer"))


def test_the_servers_that_answer_must_serve_the_same_model(stub: StubServer) -> None:
    with serving_models("another") as other:
        with (
            ChatClient(endpoint(stub.url, other, model=None)) as client,
            pytest.raises(EndpointError, match=r"serve different models \(another, stub\)"),
        ):
            client.check()
        with (
            ChatClient(endpoint(stub.url, other, model="stub")) as client,
            pytest.raises(EndpointError, match=f"{other} does not serve 'stub'"),
        ):
            client.check()


def test_a_check_can_wait_for_a_server_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_CHECK_SECONDS", 0.05)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.stop()
        with ThreadPoolExecutor(1) as executor:
            model = executor.submit(client.check, 60)
            wait_until(noted(client, f"{server.url} is not up yet: waiting, N s of 60"))
            wait_until(noted(client, "waiting, N s of 60", least=1))
            server.start()
            assert model.result(30) == "m"
        wait_until(lambda: not client.stats.notes)
        assert len(texts(client.complete([ask("hello")]))) == 1
    (warning,) = logged(caplog)
    assert warning.startswith(f"no server answers at {server.url}/v1 (connection refused): ")
    assert warning.endswith("; waiting for it, up to 60 s")


def test_the_wait_of_a_check_ends(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url)) as client:
        began = time.monotonic()
        with pytest.raises(EndpointUnreachableError, match=f"no server answers at {dead_url}/v1"):
            client.check(0.5)
        assert 0.5 <= time.monotonic() - began < 60


def test_a_failed_check_does_not_leak_slots(dead_url: str) -> None:
    with ChatClient(endpoint(dead_url, model=None), max_in_flight=1) as client:
        for _ in range(5):
            with pytest.raises(EndpointUnreachableError, match="no server answers"):
                client.complete([ask("hello")])


def test_a_bad_request_needs_no_second_look(stub: StubServer) -> None:
    before = stub.stats()["requests"]
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        failure = only_failure(client.complete([ask("STUB status 400")]))
    assert failure.kind is FailureKind.BAD_REQUEST
    assert stub.stats()["requests"] - before == 1
