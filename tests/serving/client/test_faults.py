"""Servers that die, hang, or come back: what the client makes of each."""

import base64
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prefect_imageqa.serving.client import client as client_module
from prefect_imageqa.serving.client import transport
from prefect_imageqa.serving.client.client import ChatClient
from prefect_imageqa.serving.client.replies import is_disconnect
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome

Behaviour = Callable[[socket.socket, bytes], None]


@contextmanager
def listening(behave: Behaviour) -> Iterator[str]:
    """A server that reads one request of a connection and hands it over; gives its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while b"\r\n\r\n" not in data:
                data += self.request.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            while len(body) < length:
                body += self.request.recv(65536)
            behave(self.request, head)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def send(connection: socket.socket, status: int) -> None:
    head = b"HTTP/1.1 %d x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n" % status
    connection.sendall(head + b"{}")


def healthy(behave: Behaviour) -> Behaviour:
    """The same behaviour with a good /health beside it."""

    def answer(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"GET /health"):
            send(connection, 200)
        else:
            behave(connection, head)

    return answer


def drop(_connection: socket.socket, _head: bytes) -> None:
    """Nothing is said, and the connection ends."""


def reset(connection: socket.socket, _head: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def break_off(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


def break_off_head(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def hang(_connection: socket.socket, _head: bytes) -> None:
    time.sleep(5)


def babble(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def ask(text: str) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": text}], {})


def endpoint(url: str, model: str = "stub", **options: Any) -> VLLMEndpoint:
    return VLLMEndpoint(urls=[url], model=model, **options)


def only_failure(outcomes: list[Outcome]) -> Failure:
    (outcome,) = outcomes
    assert isinstance(outcome, Failure), outcome
    return outcome


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 0.0)


# --- cuts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("behave", [drop, reset, break_off, break_off_head])
def test_a_request_that_is_cut_twice_is_given_up(behave: Behaviour, quick: None) -> None:
    with listening(healthy(behave)) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 2
    assert (failure.kind, failure.attempts, failure.cuts) == (FailureKind.CONNECTION, 2, 2)
    assert failure.retryable


@pytest.mark.parametrize(
    ("behave", "kind"),
    [(healthy(hang), FailureKind.TIMEOUT), (babble, FailureKind.CONNECTION)],
    ids=["silent", "not HTTP"],
)
def test_what_is_no_cut(behave: Behaviour, kind: FailureKind, quick: None) -> None:
    with listening(behave) as url, ChatClient(endpoint(url, read_timeout=0.2)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.cuts) == (kind, 0)


def test_a_server_that_was_never_reached_has_cut_nothing(quick: None) -> None:
    with socket.socket() as bound:  # nobody listens on it
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with ChatClient(endpoint(url)) as client:
            failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.attempts, failure.cuts) == (FailureKind.CONNECTION, 4, 0)


def test_a_request_that_was_not_wholly_sent_is_not_cut() -> None:
    unsent = aiohttp.ClientOSError(None, "Can not write request body")
    assert is_disconnect(unsent)
    unsent.__cause__ = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    assert not is_disconnect(unsent)


def test_a_tunnel_to_a_dead_server_does_not_cut_what_it_drops(quick: None) -> None:
    with listening(drop) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 1  # the first could not be known; the others were held back
    assert (failure.kind, failure.attempts, failure.cuts) == (FailureKind.CONNECTION, 4, 1)


def test_a_connection_that_idled_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def keep_open(connection: socket.socket, _head: bytes) -> None:
        opened.append(connection)
        reply = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply)
        time.sleep(2)

    monkeypatch.setattr(transport, "_KEEPALIVE_SECONDS", 0.1)
    with listening(keep_open) as url, ChatClient(endpoint(url)) as client:
        for _ in range(2):
            (outcome,) = client.complete([ask("hello")])
            assert isinstance(outcome, Completion)
            time.sleep(0.3)
    assert len(opened) == 2
    assert transport._KEEPALIVE_SECONDS < 5


def test_what_kills_the_server_kills_it_twice_and_is_known(start_stub: Any, tmp_path: Path) -> None:
    mark = "the mark of the beast"
    stub = start_stub("--respawn=0", f"--poison={mark}", f"--count-texts={tmp_path / 'asked'}")
    image = base64.b64encode(b"\x89PNG" + mark.encode() + b"more").decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    poison = ChatRequest([{"role": "user", "content": [part]}], {})
    with ChatClient(endpoint(stub.url)) as client:
        cuts = 0
        while cuts < 2:
            failure = only_failure(client.complete([poison]))
            assert failure.kind is FailureKind.CONNECTION
            cuts += failure.cuts
            assert client.wait_until_up(20)
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    stats = stub.stats()
    assert (cuts, stats["life"]) == (2, 3)
    assert stats["asked"] == {"": 2, "hello": 1}


# --- 5xx ------------------------------------------------------------------------------------------


def test_what_a_dying_server_answers_blames_no_row(
    start_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = start_stub()
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 0.8)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.01)
    with ChatClient(endpoint(stub.url), max_in_flight=4) as client:
        outcomes = client.complete([ask("STUB dying 0.4"), *[ask("hello")] * 3])
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert {failure.kind for failure in failures} == {FailureKind.CONNECTION}
    assert failures[0] is outcomes[0]
    assert failures[0].cuts == 1


def test_a_dying_server_has_time_to_die() -> None:
    assert client_module._DYING_SECONDS > 2.5


def test_a_row_that_a_healthy_server_cannot_answer_is_blamed(stub: Any, quick: None) -> None:
    with ChatClient(endpoint(stub.url)) as client:
        failure = only_failure(client.complete([ask("STUB status 500")]))
    assert (failure.kind, failure.attempts, failure.cuts) == (FailureKind.SERVER_ERROR, 3, 0)


@pytest.mark.parametrize("health", [500, 503])
def test_a_server_that_says_it_is_ill_is_gone(health: int, quick: None) -> None:
    def ill(connection: socket.socket, head: bytes) -> None:
        send(connection, health if head.startswith(b"GET") else 500)

    with listening(ill) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.cuts) == (FailureKind.CONNECTION, 1)


def test_waiting_for_another_attempt_takes_no_slot(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 0.3)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    told: list[int] = []
    asked = [ask("STUB status 500"), *[ask("hello")] * 10]
    with ChatClient(endpoint(stub.url), max_in_flight=1) as client:
        client.complete(asked, lambda position, _: told.append(position))
    assert told == [*range(1, 11), 0]


def test_those_that_wait_are_bounded(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_DYING_SECONDS", 60.0)
    made = 0

    def requests() -> Iterator[ChatRequest]:
        nonlocal made
        while True:
            made += 1
            yield ask("STUB status 500")

    with ThreadPoolExecutor(1) as pool:
        with ChatClient(endpoint(stub.url), max_in_flight=3) as client:
            running = pool.submit(client.complete, requests())
            time.sleep(0.5)
            assert (made, client.stats.requests, client.stats.in_flight) == (6, 6, 0)
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            running.result(5)


# --- coming back ----------------------------------------------------------------------------------


def test_a_server_that_is_up_is_not_waited_for(stub: Any) -> None:
    with ChatClient(endpoint(stub.url)) as client:
        client.wait_until_up(5)
        began = time.monotonic()
        assert client.wait_until_up(5)
        assert time.monotonic() - began < 0.5


def test_a_server_that_stays_away_is_not_waited_for_longer_than_asked() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with ChatClient(endpoint(url)) as client:
            began = time.monotonic()
            assert not client.wait_until_up(0.5)
            assert 0.4 < time.monotonic() - began < 1.5


def test_threads_wait_for_a_server_until_it_is_back(start_stub: Any) -> None:
    stub = start_stub("--respawn=0.5")
    with ChatClient(endpoint(stub.url)) as client, ThreadPoolExecutor(4) as pool:
        os.kill(stub.stats()["pid"], 9)
        assert all(pool.map(client.wait_until_up, [20] * 4))
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    assert stub.stats()["life"] == 2


def test_one_server_of_several_is_enough(stub: Any) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{bound.getsockname()[1]}"
        both = VLLMEndpoint(urls=[dead, stub.url], model="stub")
        with ChatClient(both) as client:
            assert client.wait_until_up(5)
            assert len(client.complete([ask("hello")] * 4)) == 4
            assert client.stats.requests == 4  # none was tried on the dead one


@pytest.mark.parametrize(("models", "up"), [(200, True), (401, True), (502, False)])
def test_behind_a_gateway_that_hides_its_health_the_models_count(models: int, up: bool) -> None:
    def gateway(connection: socket.socket, head: bytes) -> None:
        send(connection, models if b"/v1/models" in head else 404)

    with listening(gateway) as url, ChatClient(endpoint(url)) as client:
        assert client.wait_until_up(0.5) is up


def test_closing_ends_the_wait() -> None:
    with socket.socket() as bound, ThreadPoolExecutor(1) as pool:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with ChatClient(endpoint(url)) as client:
            waiting = pool.submit(client.wait_until_up, 60)
            time.sleep(0.2)
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            waiting.result(5)


def test_a_server_that_hangs_altogether_is_lost(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_PROBE_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    with listening(hang) as url, ChatClient(endpoint(url, read_timeout=0.2)) as client:
        failed = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 1
    assert (failed.kind, failed.cuts) == (FailureKind.CONNECTION, 1)


def test_a_gateway_whose_server_has_gone_cuts_what_was_with_it(quick: None) -> None:
    asked: list[bytes] = []

    def gateway(connection: socket.socket, head: bytes) -> None:
        asked.append(head.split(b" ", 2)[0])
        send(connection, 502)

    with listening(gateway) as url, ChatClient(endpoint(url)) as client:
        failed = only_failure(client.complete([ChatRequest([], {})]))
    assert (failed.kind, failed.cuts) == (FailureKind.CONNECTION, 1)
    assert asked.count(b"POST") == 1
