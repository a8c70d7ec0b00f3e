"""The client with servers that die, hang or recover."""

import asyncio
import base64
import os
import signal
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
from prefect_imageqa.serving.client.responses import is_disconnect
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import ChatRequest, Completion, Failure, FailureKind, Outcome

Behaviour = Callable[[socket.socket, bytes], None]


@contextmanager
def listening(behave: Behaviour) -> Iterator[str]:
    """A server that reads one request per connection and calls `behave`; yields its URL."""

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
    """The same behaviour, except that /health answers 200."""

    def answer(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"GET /health"):
            send(connection, 200)
        else:
            behave(connection, head)

    return answer


def drop(_connection: socket.socket, _head: bytes) -> None:
    """Close the connection without a reply."""


def reset(connection: socket.socket, _head: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def truncate_body(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


def truncate_head(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def hang(_connection: socket.socket, _head: bytes) -> None:
    time.sleep(60)


def speak_ssh(connection: socket.socket, _head: bytes) -> None:
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
    """Makes retries immediate."""
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    monkeypatch.setattr(client_module, "_CRASH_CHECK_DELAY", 0.0)


@pytest.fixture
def unused_url() -> Iterator[str]:
    """A URL on which nothing listens, reserved for the test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)


# --- disconnects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("behave", [drop, reset, truncate_body, truncate_head])
def test_a_request_fails_after_two_disconnects(behave: Behaviour, quick: None) -> None:
    with listening(healthy(behave)) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 2
    assert (failure.kind, failure.attempts, failure.disconnects) == (FailureKind.CONNECTION, 2, 2)
    assert failure.retryable


def test_a_reply_that_is_not_http_is_no_disconnect(quick: None) -> None:
    with listening(speak_ssh) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.disconnects) == (FailureKind.CONNECTION, 0)


def test_a_connection_lost_before_the_request_was_sent_is_no_disconnect() -> None:
    unsent = aiohttp.ClientOSError(None, "Can not write request body")
    assert is_disconnect(unsent)
    unsent.__cause__ = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
    assert not is_disconnect(unsent)


def test_requests_dropped_by_a_tunnel_to_a_dead_server_are_no_disconnects(quick: None) -> None:
    with listening(drop) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
        # The first drop looks like a disconnect; after that, the client checks before it sends.
        assert client.stats.requests == 1
    assert (failure.kind, failure.attempts, failure.disconnects) == (FailureKind.CONNECTION, 4, 1)


def test_an_idle_connection_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM closes idle connections after 5 s.
    assert transport._KEEPALIVE_SECONDS < 5
    opened = []

    def keep_open(connection: socket.socket, _head: bytes) -> None:
        opened.append(connection)
        reply = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply)
        time.sleep(60)

    monkeypatch.setattr(transport, "_KEEPALIVE_SECONDS", 0.05)
    with listening(keep_open) as url, ChatClient(endpoint(url)) as client:
        assert isinstance(client.complete([ask("hello")])[0], Completion)
        time.sleep(0.2)
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    assert len(opened) == 2


def test_a_request_that_crashes_the_server_is_recognised_by_two_disconnects(
    start_stub: Any, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_SECONDS", 0.1)
    marker = "marker of a poisoned image"
    stub = start_stub("--respawn=0", f"--poison={marker}", f"--count-texts={tmp_path / 'requests'}")
    image = base64.b64encode(b"\x89PNG" + marker.encode() + b"more").decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    poison = ChatRequest([{"role": "user", "content": [part]}], {})
    with ChatClient(endpoint(stub.url)) as client:
        disconnects = 0
        while disconnects < 2:
            failure = only_failure(client.complete([poison]))
            assert failure.kind is FailureKind.CONNECTION
            disconnects += failure.disconnects
            assert client.wait_until_up(60)
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    stats = stub.stats()
    assert (disconnects, stats["starts"]) == (2, 3)
    assert stats["texts"] == {"": 2, "hello": 1}


# --- 5xx ------------------------------------------------------------------------------------------


def test_no_row_is_blamed_for_the_500_of_a_dying_server(
    start_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client_module._CRASH_CHECK_DELAY > 2.5  # the time that vLLM may take to exit
    stub = start_stub()
    # The stub must have exited when its health is checked, even on a busy machine.
    monkeypatch.setattr(client_module, "_CRASH_CHECK_DELAY", 1.5)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.01)
    with ChatClient(endpoint(stub.url), max_in_flight=4) as client:
        outcomes = client.complete([ask("STUB dying 0.1"), *[ask("hello")] * 3])
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert {failure.kind for failure in failures} == {FailureKind.CONNECTION}
    assert failures[0] is outcomes[0]
    assert failures[0].disconnects == 1


@pytest.mark.parametrize("health", [500, 503])
def test_a_500_of_a_server_that_reports_to_be_unhealthy_is_a_disconnect(
    health: int, quick: None
) -> None:
    def unhealthy(connection: socket.socket, head: bytes) -> None:
        send(connection, health if head.startswith(b"GET") else 500)

    with listening(unhealthy) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("hello")]))
    assert (failure.kind, failure.disconnects) == (FailureKind.CONNECTION, 1)


def test_a_request_holds_no_slot_while_it_waits_for_its_retry(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[int] = []

    async def wait_for_the_others(*_: object) -> bool:
        async with asyncio.timeout(60):
            while len(reported) < 10:
                await asyncio.sleep(0.01)
        return False

    monkeypatch.setattr(ChatClient, "_has_crashed", wait_for_the_others)
    monkeypatch.setattr(client_module, "_backoff", lambda _: 0.0)
    requests = [ask("STUB status 500"), *[ask("hello")] * 10]
    with ChatClient(endpoint(stub.url), max_in_flight=1) as client:
        client.complete(requests, lambda position, _: reported.append(position))
    assert reported == [*range(1, 11), 0]


def test_the_number_of_waiting_requests_is_bounded(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_CRASH_CHECK_DELAY", 600.0)
    built = 0

    def requests() -> Iterator[ChatRequest]:
        nonlocal built
        while True:
            built += 1
            yield ask("STUB status 500")

    with ThreadPoolExecutor(1) as pool:
        with ChatClient(endpoint(stub.url), max_in_flight=3) as client:
            running = pool.submit(client.complete, requests())
            wait_until(lambda: client.stats.requests == 6 and client.stats.in_flight == 0)
            time.sleep(0.2)  # a client without limits would exceed them by now
            assert (built, client.stats.requests, client.stats.in_flight) == (6, 6, 0)
        with pytest.raises(EndpointError, match=r"the client (was|is) closed"):
            running.result(60)


# --- recovery -------------------------------------------------------------------------------------


def test_there_is_no_wait_for_a_server_that_is_up(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_SECONDS", 1e9)
    with ChatClient(endpoint(stub.url)) as client:
        assert client.wait_until_up(60)


def test_the_wait_for_a_server_that_stays_down_has_a_timeout(unused_url: str) -> None:
    with ChatClient(endpoint(unused_url)) as client:
        began = time.monotonic()
        assert not client.wait_until_up(0.5)
        assert 0.4 < time.monotonic() - began < 30


def test_threads_wait_until_a_server_is_up_again(
    start_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_POLL_SECONDS", 0.1)
    stub = start_stub("--respawn=0.2")
    with ChatClient(endpoint(stub.url)) as client, ThreadPoolExecutor(4) as pool:
        os.kill(stub.stats()["pid"], signal.SIGKILL)
        assert all(pool.map(client.wait_until_up, [60] * 4))
        assert isinstance(client.complete([ask("hello")])[0], Completion)
    assert stub.stats()["starts"] == 2


def test_one_server_of_several_is_enough(stub: Any, unused_url: str) -> None:
    both = VLLMEndpoint(urls=[unused_url, stub.url], model="stub")
    with ChatClient(both) as client:
        assert client.wait_until_up(60)
        assert len(client.complete([ask("hello")] * 4)) == 4
        assert client.stats.requests == 4  # no request was sent to the dead server


@pytest.mark.parametrize(("models", "up"), [(200, True), (401, True), (502, False)])
def test_behind_a_gateway_without_health_the_models_are_checked(models: int, up: bool) -> None:
    probes: list[bytes] = []

    def gateway(connection: socket.socket, head: bytes) -> None:
        probes.append(head.split()[1])
        send(connection, models if b"/v1/models" in head else 404)

    with listening(gateway) as url, ChatClient(endpoint(url)) as client:
        assert client.wait_until_up(60 if up else 0.5) is up
    assert probes[:2] == [b"/health", b"/v1/models"]


def test_closing_ends_the_wait(unused_url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        with ChatClient(endpoint(unused_url)) as client:
            waiting = pool.submit(client.wait_until_up, 600)
            wait_until(lambda: client._group and client._group._tasks)
        with pytest.raises(EndpointError, match="closed before the server answered"):
            waiting.result(60)


def test_a_server_that_hangs_completely_is_down(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_PROBE_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    with listening(hang) as url, ChatClient(endpoint(url, read_timeout=0.2)) as client:
        failed = only_failure(client.complete([ask("hello")]))
        assert client.stats.requests == 1
    assert (failed.kind, failed.disconnects) == (FailureKind.CONNECTION, 1)


def test_a_gateways_502_for_a_dead_server_is_a_disconnect(quick: None) -> None:
    methods: list[bytes] = []

    def gateway(connection: socket.socket, head: bytes) -> None:
        methods.append(head.split(b" ", 2)[0])
        send(connection, 502)

    with listening(gateway) as url, ChatClient(endpoint(url)) as client:
        failed = only_failure(client.complete([ChatRequest([], {})]))
    assert (failed.kind, failed.disconnects) == (FailureKind.CONNECTION, 1)
    assert methods.count(b"POST") == 1
