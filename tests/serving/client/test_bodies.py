"""Bodies of replies beyond any use: endless ones, and small ones that decompress to large ones."""

import gzip
import json
import socket
import zlib
from contextlib import suppress

import pytest
from aiohttp import web
from chat import ask, endpoint, only_failure, texts
from fake_vllm import reply, serving
from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client.bodies import reply_limit
from prefect_imageqa.serving.errors import EndpointError
from prefect_imageqa.serving.types import FailureKind
from raw_server import healthy, listening

BOMB = gzip.compress(bytes(64 << 20), compresslevel=1)
"""64 MiB of zeros in 0.3."""


def endless(connection: socket.socket, _request: bytes) -> None:
    """Send a body without an end, until the client closes the connection."""
    with suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b'{"choices": [')
        while True:
            connection.sendall(b"1, " * 20_000)


def announced(connection: socket.socket, _request: bytes) -> None:
    """Announce a body of 300 MB, and send none of it."""
    connection.sendall(b"HTTP/1.1 500 x\r\nContent-Length: 300000000\r\n\r\n")
    with suppress(OSError):
        connection.recv(1)  # until the client closes it


def bomb(connection: socket.socket, _request: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n"
    with suppress(OSError):
        connection.sendall(head.encode() + BOMB)


@pytest.mark.parametrize("behave", [endless, announced, bomb])
def test_a_reply_is_read_up_to_a_limit(behave: object, quick: list[int]) -> None:
    with listening(healthy(behave)) as url, ChatClient(endpoint(url)) as client:  # type: ignore[arg-type]
        failure = only_failure(client.complete([ask("bad")]))
    assert (failure.kind, failure.attempts) == (FailureKind.BAD_REPLY, 3)
    assert failure.message == f"{url}: its reply is larger than the 4 MiB that it may have"


def test_the_limit_follows_from_the_tokens_that_were_asked_for() -> None:
    assert reply_limit(16) < reply_limit(1 << 13) < reply_limit(None)
    assert reply_limit(10**12) == 64 << 20
    assert reply_limit(-1) == reply_limit(0) == 4 << 20


def test_a_list_of_models_without_end_is_one_clear_line() -> None:
    with (
        listening(endless) as url,
        ChatClient(endpoint(url)) as client,
        pytest.raises(EndpointError) as raised,
    ):
        client.check()
    assert str(raised.value) == (
        f"{url}/v1/models: its reply is larger than the 4 MiB that it may have"
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_server_that_compresses_although_asked_not_to(encoding: str, quick: list[int]) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Accept-Encoding"])
        plain = reply("yes").body
        assert isinstance(plain, bytes)
        return web.Response(body=compress(plain), headers={"Content-Encoding": encoding})

    with serving(answer) as url, ChatClient(endpoint(url)) as client:
        assert texts(client.complete([ask("hello")])) == ["yes"]
    assert asked == ["identity"]


@pytest.mark.parametrize(
    ("encoding", "body", "message"),
    [
        ("br", b"abc", "is compressed, although it was asked not to"),
        ("gzip", b"abc", "cannot be decompressed"),
        ("gzip", gzip.compress(json.dumps({}).encode())[:-9], "compressed reply is cut off"),
    ],
    ids=["other", "broken", "cut"],
)
def test_a_reply_that_cannot_be_decompressed(
    encoding: str, body: bytes, message: str, quick: list[int]
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET" or b'"Hello"' in await request.read():
            return reply()
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    with serving(answer) as url, ChatClient(endpoint(url)) as client:
        failure = only_failure(client.complete([ask("bad")]))
    assert failure.kind is FailureKind.BAD_REPLY
    assert message in failure.message
