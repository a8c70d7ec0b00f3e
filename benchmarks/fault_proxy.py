"""A loopback HTTP proxy that breaks things on purpose, to put before an S3 or vLLM server.

Bytes pass unchanged, the Host header too: S3 clients sign the host they connect to, and servers
check the signature against what arrives. Only a request that a rule picks meets a fault:

    slow_down = s3_error(503, "SlowDown", method="PUT", count=2)
    with FaultProxy("127.0.0.1", 9000, [slow_down, Rule("hang", path="/parts/", first=3)]) as proxy:
        use(proxy.url)
    assert proxy.faults["answer"] == 2

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
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

Fault = Literal["answer", "reset", "hang", "slow", "cut_request", "lose_reply", "cut_reply"]
"""What a request meets.

answer: the rule's own reply; the server never sees the request.
reset: a connection reset, likewise.
hang: silence until the client gives up, likewise.
slow: the reply, some seconds later.
cut_request: the server gets half the body, both sides a closed connection.
lose_reply: the server does what is asked, the client sees a reset.
cut_reply: the client gets half the reply's body, then a closed connection.
"""

_HEAD_LIMIT = 1 << 16
_PIECE = 1 << 16


@dataclass(frozen=True)
class Rule:
    """Which requests meet which fault.

    Attributes:
        fault: what happens to them.
        method: only requests of this HTTP method; empty for all.
        path: only where this regular expression is found in path and query.
        first: the first matching request that meets the fault, counted from 1.
        count: how many matching requests meet it, one after the other; none for all.
        probability: how likely each of these meets it.
        status: HTTP status of an `answer`.
        body: body of an `answer`.
        headers: further headers of an `answer`.
        seconds: how long `slow` waits.
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

    def answer(self) -> bytes:
        """The reply as it goes over the wire."""
        headers = (("Content-Length", str(len(self.body))), *self.headers)
        lines = [f"HTTP/1.1 {self.status} Fault", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "\r\n"]).encode() + self.body


def s3_error(status: int, code: str, **which: Any) -> Rule:
    """A rule that answers like an S3 server: `s3_error(503, "SlowDown", count=3)`."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}.</Message></Error>"
    xml = (("Content-Type", "application/xml"),)
    return replace(Rule("answer", **which), status=status, body=body.encode(), headers=xml)


class FaultProxy:
    """Runs on a background thread while it is entered.

    Attributes:
        url: where the proxy listens; set once it is entered.
        requests: number of requests seen, by method.
        faults: number of faults, by their name.
        bytes_sent: bytes of replies' bodies that were passed on whole.
    """

    url: str

    def __init__(
        self, target_host: str, target_port: int, rules: Sequence[Rule] = (), seed: int = 0
    ) -> None:
        self._target = target_host, target_port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[Any]] = set()
        self.set_rules(rules)

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Replace the rules; all counts start anew."""
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
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=_HEAD_LIMIT)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _converse(self, client: StreamReader, to_client: StreamWriter) -> None:
        """Serve one client connection with one connection to the server."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        to_server: StreamWriter | None = None
        try:
            server, to_server = await asyncio.open_connection(*self._target, limit=_HEAD_LIMIT)
            while await self._exchange(client, to_client, server, to_server):
                pass
        except (OSError, IncompleteReadError, LimitOverrunError):
            pass  # one side went away; the other is told below
        except asyncio.CancelledError:
            pass  # the proxy is left
        finally:
            self._connections.discard(task)
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.close()

    async def _exchange(
        self,
        client: StreamReader,
        to_client: StreamWriter,
        server: StreamReader,
        to_server: StreamWriter,
    ) -> bool:
        """Pass one request and its reply on; returns whether the connection may live on."""
        head = await client.readuntil(b"\r\n\r\n")
        if re.search(rb"(?im)^expect: *100-continue", head):
            to_client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([piece async for piece in _body(client, head)])
        method, target = head.decode("latin-1").split(" ", 2)[:2]
        self.requests[method] += 1
        rule = self._pick(method, target)
        fault = rule.fault if rule else None
        if rule and fault == "answer":
            to_client.write(_reply(rule, method))
            await to_client.drain()
            return True
        if fault == "hang":
            await client.read()  # until the client gives up
        if fault in {"hang", "reset"}:
            return _reset(to_client)
        to_server.write(head + (body[: len(body) // 2] if fault == "cut_request" else body))
        await to_server.drain()
        if fault == "cut_request":
            return False
        if rule and fault == "slow":
            await asyncio.sleep(rule.seconds)
        reply = await _final_head(server)
        if fault == "lose_reply":
            return _reset(to_client)
        pieces = _body(server, reply, method)
        if fault == "cut_reply":
            whole = b"".join([piece async for piece in pieces])
            to_client.write(reply + whole[: len(whole) // 2])
            await to_client.drain()
            return False
        to_client.write(reply)
        async for piece in pieces:
            to_client.write(piece)
            self.bytes_sent += len(piece)
            await to_client.drain()
        await to_client.drain()
        return not re.search(rb"(?im)^connection: *close", head + reply)

    def _pick(self, method: str, target: str) -> Rule | None:
        """The first rule that applies to a request; each counts the requests that match it."""
        picked: Rule | None = None
        for rule, path, seen in self._rules:
            if rule.method not in {"", method} or not path.search(target):
                continue
            seen["matching"] += 1
            late = rule.count is not None and seen["matching"] >= rule.first + rule.count
            if picked or late or seen["matching"] < rule.first:
                continue
            if self._random.random() < rule.probability:
                picked = rule
                self.faults[rule.fault] += 1
        return picked


def _reply(rule: Rule, method: str) -> bytes:
    answer = rule.answer()
    return answer[: answer.index(b"\r\n\r\n") + 4] if method == "HEAD" else answer


def _reset(writer: StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _final_head(server: StreamReader) -> bytes:
    """The head of the server's reply, without a "100 Continue" before it."""
    while (head := await server.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].startswith(b"1"):
        pass
    return head


async def _body(reader: StreamReader, head: bytes, method: str = "") -> AsyncIterator[bytes]:
    """The body after a head, byte for byte; `method` is the request's, for a reply."""
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
            piece = await reader.read(min(left, _PIECE))
            if not piece:
                raise IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
    elif method:  # a reply that ends with its connection
        while piece := await reader.read(_PIECE):
            yield piece
