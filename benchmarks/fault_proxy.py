"""A loopback HTTP proxy for fault injection, to place in front of an S3 or vLLM server.

Bytes pass unchanged, including the Host header: S3 clients sign the host they connect to, and
servers check the signature against what arrives. Only requests that match a rule fail:

    slow_down = s3_error(503, "SlowDown", method="PUT", count=2)
    with FaultProxy("127.0.0.1", 9000, [slow_down, Rule("hang", path="/parts/", first=3)]) as proxy:
        use(proxy.url)
    assert proxy.faults["respond"] == 2

With probabilities below one, the same seed and the same order of requests give the same faults.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader, StreamWriter
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

Fault = Literal[
    "respond", "reset", "hang", "slow", "truncate_request", "drop_reply", "truncate_reply"
]
"""What happens to a request.

respond: the client gets the rule's own reply; the server never sees the request.
reset: the connection is reset; the server never sees the request.
hang: silence until the client gives up; the server never sees the request.
slow: the reply is delayed by some seconds.
truncate_request: the server gets half the body, then both connections are closed.
drop_reply: the server handles the request, but the client's connection is reset.
truncate_reply: the client gets half of the reply's body, then the connection is closed.
"""

_HEAD_LIMIT = 1 << 16
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Rule:
    """Which requests fail, and how.

    Attributes:
        fault: what happens to them.
        method: only requests with this HTTP method; empty for all.
        path: only requests whose path and query match this regular expression.
        first: the first matching request that fails, counted from 1.
        count: how many consecutive matching requests fail; None for all.
        probability: how likely each of these is to fail.
        status: HTTP status for `respond`.
        body: body for `respond`.
        headers: further headers for `respond`.
        seconds: delay for `slow`.
    """

    fault: Fault
    method: str = ""
    path: str = ""
    first: int = 1
    count: int | None = None
    probability: float = 1.0
    status: int = 503
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 1.0

    def reply(self) -> bytes:
        """The reply as raw bytes."""
        headers = (("Content-Length", str(len(self.body))), *self.headers)
        lines = [f"HTTP/1.1 {self.status} Fault", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "\r\n"]).encode() + self.body


def s3_error(status: int, code: str, **which: Any) -> Rule:
    """A rule that responds with an S3 error: `s3_error(503, "SlowDown", count=3)`."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}.</Message></Error>"
    xml = (("Content-Type", "application/xml"),)
    return replace(Rule("respond", **which), status=status, body=body.encode(), headers=xml)


class FaultProxy:
    """A proxy on a background thread, running while used as a context manager.

    Attributes:
        url: where the proxy listens; set on entry.
        requests: number of requests received, by method.
        faults: number of faults injected, by name.
        bytes_sent: bytes of reply bodies that were forwarded without a fault.
    """

    url: str

    def __init__(
        self, target_host: str, target_port: int, rules: Sequence[Rule] = (), seed: int = 0
    ) -> None:
        self._target = target_host, target_port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._port = 0
        self._connections: set[asyncio.Task[Any]] = set()
        self.set_rules(rules)

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Replace the rules and reset all counts."""
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bytes_sent = 0
        self._rules = [(rule, re.compile(rule.path), Counter[str]()) for rule in rules]

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        await self._listen()
        started.set()
        await self._stop.wait()
        await self._leave()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections meanwhile, as if no server ran; those that are open are closed."""
        self._do(self._leave())
        try:
            yield
        finally:
            self._do(self._listen())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._handle_client, "127.0.0.1", self._port, limit=_HEAD_LIMIT
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def _leave(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _handle_client(self, client: StreamReader, to_client: StreamWriter) -> None:
        """Serve one client connection, using one connection to the server."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        to_server: StreamWriter | None = None
        try:
            server, to_server = await asyncio.open_connection(*self._target, limit=_HEAD_LIMIT)
            while await self._forward(client, to_client, server, to_server):
                pass
        except (OSError, IncompleteReadError, LimitOverrunError):
            pass  # one side disconnected; the other is closed below
        except asyncio.CancelledError:
            pass  # the proxy is shutting down
        finally:
            self._connections.discard(task)
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.close()

    async def _forward(
        self,
        client: StreamReader,
        to_client: StreamWriter,
        server: StreamReader,
        to_server: StreamWriter,
    ) -> bool:
        """Forward one request and its reply; return whether the connection can be reused."""
        head = await client.readuntil(b"\r\n\r\n")
        if re.search(rb"(?im)^expect: *100-continue", head):
            to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([chunk async for chunk in _body(client, head)])
        method, target = head.decode("latin-1").split(" ", 2)[:2]
        self.requests[method] += 1
        rule = self._pick(method, target)
        fault = rule.fault if rule else None
        if rule and fault == "respond":
            to_client.write(_reply(rule, method))
            await to_client.drain()
            return True
        if fault == "hang":
            await client.read()  # until the client gives up
        if fault in {"hang", "reset"}:
            return _reset(to_client)
        to_server.write(head + (body[: len(body) // 2] if fault == "truncate_request" else body))
        await to_server.drain()
        if fault == "truncate_request":
            return False
        if rule and fault == "slow":
            await asyncio.sleep(rule.seconds)
        reply = await _final_head(server)
        if fault == "drop_reply":
            return _reset(to_client)
        chunks = _body(server, reply, method)
        if fault == "truncate_reply":
            content = b"".join([chunk async for chunk in chunks])
            to_client.write(reply + content[: len(content) // 2])
            await to_client.drain()
            return False
        to_client.write(reply)
        async for chunk in chunks:
            to_client.write(chunk)
            self.bytes_sent += len(chunk)
            await to_client.drain()
        await to_client.drain()
        return not re.search(rb"(?im)^connection: *close", head + reply)

    def _pick(self, method: str, target: str) -> Rule | None:
        """The first rule that applies to a request. Every rule counts the requests it matches."""
        picked: Rule | None = None
        for rule, path, seen in self._rules:
            if rule.method not in {"", method} or not path.search(target):
                continue
            seen["matching"] += 1
            exhausted = rule.count is not None and seen["matching"] >= rule.first + rule.count
            if picked or exhausted or seen["matching"] < rule.first:
                continue
            if self._random.random() < rule.probability:
                picked = rule
                self.faults[rule.fault] += 1
        return picked


def _reply(rule: Rule, method: str) -> bytes:
    reply = rule.reply()
    return reply[: reply.index(b"\r\n\r\n") + 4] if method == "HEAD" else reply


def _reset(writer: StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _final_head(server: StreamReader) -> bytes:
    """The head of the server's reply, skipping any "100 Continue"."""
    while (head := await server.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].startswith(b"1"):
        pass
    return head


async def _body(reader: StreamReader, head: bytes, method: str = "") -> AsyncIterator[bytes]:
    """The raw body that follows a head; for a reply, `method` is that of its request."""
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    chunked = re.search(rb"(?im)^transfer-encoding: *chunked", head)
    if method == "HEAD" or re.match(rb"HTTP/1.\d (204|304)", head):
        return
    if chunked:
        size = 1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
    elif length:
        left = int(length[1])
        while left:
            chunk = await reader.read(min(left, _CHUNK))
            if not chunk:
                raise IncompleteReadError(b"", left)
            left -= len(chunk)
            yield chunk
    elif method:  # a reply that ends with its connection
        while chunk := await reader.read(_CHUNK):
            yield chunk
