"""Nobody is blamed for a failure of the server, and everything is answered when it is back."""

import asyncio
import base64
import socket
import time
from typing import Any

import pytest
from chat import ask, completing, endpoint, logged, noted, only_failure, texts, wait_until
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, pool, sender
from prefect_imageqa.serving.client.servers import Health
from prefect_imageqa.serving.errors import EndpointLostError
from prefect_imageqa.serving.types import FailureKind, Outcome
from raw_server import COMPLETION, drop, listening, send
from servers import StubServer

MARKER = "marker of a poisoned image"


@pytest.fixture(scope="module")
def mortal_stub(start_stub: Any, tmp_path_factory: pytest.TempPathFactory) -> StubServer:
    """A stub that may die, and counts the texts of its requests."""
    log = tmp_path_factory.mktemp("stub") / "requests"
    stub: StubServer = start_stub(
        f"--poison={MARKER}", f"--count-texts={log}", latency=0.1, slots=16
    )
    return stub


def restart(stub: StubServer, client: ChatClient) -> None:
    """Start a stub again that dies, once the client has found it gone."""
    stub.process.wait(30)
    wait_until(noted(client, f"{stub.url} does not answer"))
    stub.start()


def counts_of(stub: StubServer, texts_of_test: list[str]) -> list[int]:
    """How often each of these texts was received, also before a restart."""
    received = stub.stats()["texts"]
    return [received[text] for text in texts_of_test]


def test_a_server_that_is_killed_and_restarted(mortal_stub: StubServer) -> None:
    sent = [f"killed {number}" for number in range(100)]
    with ChatClient(endpoint(mortal_stub.url, model="stub"), max_in_flight=16) as client:
        with completing(client, sent) as outcomes:
            wait_until(lambda: client.stats.completions > 20)
            mortal_stub.process.kill()
            restart(mortal_stub, client)
            assert len(texts(outcomes.result(60))) == 100
        wait_until(lambda: not client.stats.notes)
    counts = counts_of(mortal_stub, sent)
    assert max(counts) <= 2
    assert counts.count(2) <= 16  # only those in flight are asked again


def test_a_request_that_kills_the_server_twice(mortal_stub: StubServer) -> None:
    image = base64.b64encode(b"\x89PNG" + MARKER.encode() + b"more").decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    with ChatClient(endpoint(mortal_stub.url, model="stub")) as client:
        with completing(client, [[part]]) as outcomes:
            for _ in range(2):
                restart(mortal_stub, client)
            failure = only_failure(outcomes.result(30))
        assert len(texts(client.complete([ask("hello")]))) == 1
    assert (failure.kind, failure.attempts) == (FailureKind.CRASH, 2)
    assert mortal_stub.process.poll() is None


def test_a_request_whose_server_answers_500_and_dies(
    mortal_stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does vLLM when its engine has died: for up to 2.5 s, all requests get a 500."""
    assert pool.CRASH_CHECK_SECONDS > 2.5
    monkeypatch.setattr(sender, "CRASH_CHECK_SECONDS", 15.0)
    monkeypatch.setattr(sender, "backoff", lambda _: 0.6)  # then it is dead
    with (
        ChatClient(endpoint(mortal_stub.url, model="stub")) as client,
        completing(client, ["STUB dying 0.4"], max_crashes=1) as outcomes,
    ):
        restart(mortal_stub, client)
        failure = only_failure(outcomes.result(60))
    assert failure.kind is FailureKind.CRASH
    assert mortal_stub.process.poll() is None


def test_no_request_is_blamed_for_the_500_of_a_dying_server(quick: None) -> None:
    sent = [f"row {number}" for number in range(30)]
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=8) as client:
        server.latency = 0.02
        with completing(client, sent) as outcomes:
            wait_until(lambda: client.stats.completions > 5)
            server.status = 500
            wait_until(lambda: max(server.asked.values()) >= 2)
            server.stop()
            wait_until(noted(client, server.url))  # as long as it is not found gone, it may be back
            server.status = 200
            server.start()
            assert texts(outcomes.result(30)) == sent


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_no_request_is_blamed_while_a_server_fails_them_all(status: int, quick: None) -> None:
    """So does a gateway whose `/health` is its own."""
    sent = [f"row {number}" for number in range(20)]
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.status = status
        with completing(client, sent) as outcomes:
            wait_until(noted(client, f"answers no request (HTTP {status}: simulated failure)"))
            server.status = 200
            assert texts(outcomes.result(30)) == sent


def test_a_server_that_is_away_again_and_again_costs_no_attempts(quick: None) -> None:
    sent = [f"row {number}" for number in range(20)]
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=4) as client:
        server.hanging = set(sent)
        with completing(client, sent) as outcomes:
            for _ in range(3):
                wait_until(lambda: len(server.active) == 4 and not client.stats.notes)
                server.status, server.hanging = 503, set()
                wait_until(noted(client, "answers no request"))
                server.status, server.hanging = 200, set(sent)
            wait_until(lambda: len(server.active) == 4)
            server.statuses, server.hanging = [503] * 4, set()
            assert texts(outcomes.result(30)) == sent


@pytest.mark.parametrize(("models", "is_up"), [(200, True), (401, True), (502, False)])
def test_behind_a_gateway_without_health_the_models_are_checked(
    models: int, is_up: bool, quick: None
) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.health, server.models_status, server.status_of = 404, models, {"bad": 502}
        with completing(client, ["bad"]) as outcomes:
            if not is_up:
                wait_until(noted(client, f"{server.url} does not answer: waiting, "))
                server.models_status = 200
            assert only_failure(outcomes.result(30)).kind is FailureKind.DISCONNECTED


def test_no_request_is_blamed_while_a_tunnel_drops_them_all(quick: None) -> None:
    is_up = False

    def tunnel(connection: socket.socket, request: bytes) -> None:
        if is_up:
            send(connection, 200, COMPLETION)
        else:
            drop(connection, request)

    with (
        listening(tunnel) as url,
        ChatClient(endpoint(url), max_in_flight=4) as client,
        completing(client, map(str, range(20))) as outcomes,
    ):
        wait_until(noted(client, f"{url} does not answer: waiting, N s of 900"))
        sent = client.stats.requests
        time.sleep(0.2)
        assert client.stats.requests == sent <= 8
        is_up = True
        assert len(texts(outcomes.result(30))) == 20


def test_a_server_that_was_lost_for_a_moment_was_not_up() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        (state,) = client._pool.servers

        async def lose_it_for_a_moment() -> bool:
            answers = asyncio.create_task(client._pool.answers(state, time.monotonic(), 0.1))
            await asyncio.sleep(0)
            client._pool.lose(state, Health.DOWN, "does not answer")
            while state.health is not Health.UP:
                await asyncio.sleep(0.001)
            return await answers

        assert not client._await(lose_it_for_a_moment())


def test_a_connection_that_times_out(quick: None) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one connection waits to be accepted, and all others time out
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with (
            ChatClient(endpoint(url, connect_timeout=0.1), server_wait=0.3) as client,
            pytest.raises(EndpointLostError, match=r"does not answer \(timed out\)"),
        ):
            client.complete([ask("hello")])


def test_the_wait_for_a_server_ends_with_one_sentence(
    dead_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    problem = f"{dead_url} does not answer (connection refused)"
    with (
        ChatClient(endpoint(dead_url), server_wait=0.8) as client,
        completing(client, map(str, range(200))) as outcomes,
    ):
        wait_until(noted(client, f"{problem}: waiting, N s of 1"))
        with pytest.raises(EndpointLostError) as raised:
            outcomes.result(30)
    assert str(raised.value) == (
        f"{problem}: waited 1 s; when a server is back, run the same command again to resume"
    )
    assert logged(caplog) == [f"{problem}: waiting for it, up to 1 s"]


def test_outcomes_before_the_loss_of_the_server_are_reported(quick: None) -> None:
    reported: list[Outcome] = []
    requests = [ask(str(number)) for number in range(20)]
    with FakeVLLM() as server:
        server.hanging = {"5"}
        with ChatClient(endpoint(server.url), max_in_flight=1, server_wait=0.2) as client:

            def note(_: int, outcome: Outcome) -> None:
                reported.append(outcome)

            def requests_until_the_loss() -> Any:
                for number, request in enumerate(requests):
                    if number == 6:
                        wait_until(lambda: len(reported) == 5)
                        server.stop()
                    yield request

            with pytest.raises(EndpointLostError):
                client.complete(requests_until_the_loss(), note)
    assert texts(reported) == ["0", "1", "2", "3", "4"]


def test_a_server_that_is_back_after_the_wait_is_used_again(quick: None) -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), server_wait=0.1) as client:
        server.stop()
        with pytest.raises(EndpointLostError):
            client.complete([ask("hello")])
        server.start()
        wait_until(lambda: not client.stats.notes)
        assert len(texts(client.complete([ask("hello")]))) == 1
