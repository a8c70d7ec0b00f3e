"""Servers that break HTTP: they close, reset or truncate connections."""

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fake_vllm import TEST_TEXT

Behaviour = Callable[[socket.socket, bytes], None]
"""What a server does with a connection, given the request on it."""

COMPLETION = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'


@contextmanager
def listening(behave: Behaviour) -> Iterator[str]:
    """A server that reads one request per connection and calls `behave`; yields its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if request := _read_request(self.request):
                behave(self.request, request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _read_request(connection: socket.socket) -> bytes:
    """Head and body of a request; empty if it was cut off."""
    data, missing = b"", 1
    while missing > 0:
        if not (more := connection.recv(65536)):
            return b""
        data += more
        head, end, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        missing = length - len(body) if end else 1
    return data


def send(connection: socket.socket, status: int, body: bytes = b"{}") -> None:
    """Send a complete reply."""
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body)


def healthy(behave: Behaviour) -> Behaviour:
    """The same behaviour, but `/health` is 200 and the client's test requests are answered."""

    def answer(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET"):
            send(connection, 200)
        elif f'"{TEST_TEXT}"'.encode() in request:
            send(connection, 200, COMPLETION)
        else:
            behave(connection, request)

    return answer


def drop(_connection: socket.socket, _request: bytes) -> None:
    """Close the connection without a reply."""


def reset(connection: socket.socket, _request: bytes) -> None:
    """Reset the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def truncate_body(connection: socket.socket, _request: bytes) -> None:
    """Close the connection in the middle of the reply's body."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")


def truncate_head(connection: socket.socket, _request: bytes) -> None:
    """Close the connection in the middle of the reply's head."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def speak_ssh(connection: socket.socket, _request: bytes) -> None:
    """Reply in another protocol than HTTP."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
