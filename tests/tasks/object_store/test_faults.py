"""What users of an S3 store see when the server, the network or their settings fail."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import Fault, FaultProxy, Rule, s3_error
from prefect_imageqa.tasks.errors import (
    AccessDeniedError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from prefect_imageqa.tasks.object_store import s3 as s3_connection
from prefect_imageqa.tasks.object_store import store as store_module
from prefect_imageqa.tasks.object_store.store import ObjectStore

OLD, NEW = b"old" * 1000, b"new" * 2000

MAX_SECONDS = 50
"""Guard for calls that take about a second; less than `read_timeout`."""


@pytest.fixture(scope="module", autouse=True)
def _short_backoff() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_connection, "_FIRST_BACKOFF", 0.001)
        yield


@pytest.fixture(scope="module")
def proxies(s3: str) -> Iterator[Callable[[float], FaultProxy]]:
    """One proxy per read timeout, because connections are cached by URL and keep their timeouts.

    They are shared by all tests, because a new connection takes long.
    """
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname
    assert server.port
    host, port = server.hostname, server.port
    with ExitStack() as running:

        @cache
        def start(read_timeout: float) -> FaultProxy:
            return running.enter_context(FaultProxy(host, port))

        yield start


@pytest.fixture
def read_timeout() -> float:
    """Long, so that a busy machine does not look like a silent server; hang tests override it."""
    return 60.0


@pytest.fixture
def proxy(
    proxies: Callable[[float], FaultProxy], read_timeout: float, monkeypatch: pytest.MonkeyPatch
) -> FaultProxy:
    monkeypatch.setattr(s3_connection, "_READ_TIMEOUT", read_timeout)
    proxy = proxies(read_timeout)
    proxy.set_rules([])
    return proxy


@pytest.fixture
def plain(s3: str, tmp_path: Path) -> ObjectStore:
    """The store without a proxy; it has one object."""
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("x", OLD)
    return store


@pytest.fixture
def store(plain: ObjectStore, proxy: FaultProxy) -> ObjectStore:
    """The same store behind the proxy."""
    return ObjectStore(uri=plain.uri, endpoint_url=proxy.url)


def put(store: ObjectStore) -> None:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(NEW)
    try:
        store.put("y", Path(file.name))
    finally:
        Path(file.name).unlink(missing_ok=True)


def read_opened(store: ObjectStore) -> bytes:
    with store.open("x") as file:
        return file.read()


# `list` is `sizes`, and `check` calls these.
OPERATIONS: dict[str, tuple[Callable[[ObjectStore], Any], Any]] = {
    "read": (lambda store: store.read("x"), OLD),
    "open": (read_opened, OLD),
    "write": (lambda store: store.write("y", NEW), None),
    "put": (put, None),
    "sizes": (lambda store: store.sizes(), {"x": len(OLD)}),
    "exists": (lambda store: store.exists("x"), True),
    "remove": (lambda store: store.remove("x"), None),
}
FAULTS: dict[str, Rule] = {
    "503 SlowDown": s3_error(503, "SlowDown"),
    "503 from a gateway": Rule("respond", body=b"<html>busy</html>"),
    "429": s3_error(429, "TooManyRequests"),
    "500": s3_error(500, "InternalError"),
    "502 from a gateway": Rule("respond", status=502, body=b"bad gateway"),
    "reset": Rule("reset"),
    "hang": Rule("hang"),
    "truncated request": Rule("truncate_request"),
    "dropped reply": Rule("drop_reply"),
    "truncated reply": Rule("truncate_reply"),
}
BURST = {"hang": 1, "truncated reply": 1}
"""How many consecutive faults a retry must survive; three for the others."""

NO_REPLY_BODY = {"exists", "put", "remove", "write"}
HANGING = {"read", "write", "sizes"}
"""One operation per direction of data: a hang costs two timeouts, and all share the retries."""


def cases(hang_timeout: float) -> list[Any]:
    return [
        pytest.param(
            operation,
            fault,
            hang_timeout if fault == "hang" else 60.0,
            id=f"{operation}-{fault}",
        )
        for operation in OPERATIONS
        for fault in FAULTS
        if not (fault == "truncated reply" and operation in NO_REPLY_BODY)
        if not (fault == "hang" and operation not in HANGING)
    ]


# After the hang the retry must succeed within the timeout, also on a busy machine.
@pytest.mark.parametrize(("operation", "fault", "read_timeout"), cases(hang_timeout=3.0))
def test_a_short_burst_of_faults_goes_unnoticed(
    operation: str, fault: str, store: ObjectStore, proxy: FaultProxy
) -> None:
    act, expected = OPERATIONS[operation]
    proxy.set_rules([replace(FAULTS[fault], count=BURST.get(fault, 3))])
    assert act(store) == expected
    assert proxy.faults.total() == BURST.get(fault, 3)


@pytest.mark.parametrize(("operation", "fault", "read_timeout"), cases(hang_timeout=0.3))
def test_a_permanent_fault_is_reported_soon(
    operation: str, fault: str, store: ObjectStore, plain: ObjectStore, proxy: FaultProxy
) -> None:
    act, _ = OPERATIONS[operation]
    proxy.set_rules([FAULTS[fault]])
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError) as raised:
        act(store)
    assert time.monotonic() - started < MAX_SECONDS
    assert proxy.faults.total() <= (2 if fault == "hang" else 12)
    assert "\n" not in str(raised.value)
    assert plain.uri in str(raised.value)
    for name in {"x", "y"} & set(plain.list()):
        assert plain.read(name) in {OLD, NEW}


def test_random_faults_lose_no_data(
    store: ObjectStore, plain: ObjectStore, proxy: FaultProxy
) -> None:
    faults: list[Fault] = ["respond", "reset", "drop_reply", "truncate_reply", "truncate_request"]
    proxy.set_rules([Rule(fault, probability=0.03) for fault in faults])
    content = {f"many/{number}": os.urandom(number * 100) for number in range(60)}
    for name, data in content.items():  # sequentially, so that the faults depend on the seed only
        store.write(name, data)
        assert store.read(name) == data
    assert store.sizes("many") == {name: len(data) for name, data in content.items()}
    assert proxy.faults.total() > 5
    assert {name: plain.read(name) for name in plain.list("many")} == content


def test_a_truncated_upload_creates_no_object(
    store: ObjectStore, plain: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(3 << 20))
    proxy.set_rules([Rule("truncate_request", method="PUT")])
    with pytest.raises(StoreUnavailableError):
        store.put("large", file)
    assert file.exists(), "the local file is not deleted"
    assert plain.list() == ["x"]


def test_a_file_uploaded_in_pieces_appears_whole_or_not_at_all(
    store: ObjectStore,
    plain: ObjectStore,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "_UPLOAD_BYTES", 5 << 20)
    file, content = tmp_path / "large", os.urandom(12 << 20)
    file.write_bytes(content)
    third = r"large\?.*partNumber=3"
    proxy.set_rules([Rule("truncate_request", method="PUT", path=third)])
    with pytest.raises(StoreUnavailableError):
        store.put("large", file)
    assert proxy.faults["truncate_request"]
    assert plain.list() == ["x"]
    proxy.set_rules([Rule("reset", method="PUT", path=third, count=1)])
    store.put("large", file)
    assert proxy.faults["reset"]
    assert plain.read("large") == content
    assert not file.exists()


def test_a_slow_reply_is_awaited(store: ObjectStore, proxy: FaultProxy) -> None:
    proxy.set_rules([Rule("slow", seconds=0.3)])
    assert store.read("x") == OLD


@pytest.fixture
def _short_call_timeout(monkeypatch: pytest.MonkeyPatch, read_timeout: float) -> None:
    """A call that ends before the read timeout was ended by this one."""
    monkeypatch.setattr(s3_connection, "_READ_TIMEOUT", read_timeout)
    monkeypatch.setattr(s3_connection, "_CALL_TIMEOUT", 1.0)
    monkeypatch.setattr(s3_connection, "_MIN_BYTES_PER_SECOND", 1 << 30)


@pytest.mark.usefixtures("_short_call_timeout")
def test_a_server_that_accepts_no_bytes_times_out(s3: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ObjectStore(uri=s3, endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.write("large", bytes(32 << 20))  # more than the buffers of the connection
        assert time.monotonic() - started < MAX_SECONDS


def trickle(server: socket.socket) -> None:
    """Respond to every request with a thousand bytes, one at a time."""

    def respond(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)

    with suppress(OSError):
        while True:
            threading.Thread(target=respond, args=(server.accept()[0],), daemon=True).start()


@pytest.mark.usefixtures("_short_call_timeout")
def test_a_server_that_trickles_bytes_times_out(s3: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=trickle, args=(server,), daemon=True).start()
        store = ObjectStore(uri=s3, endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.read("x")
        assert time.monotonic() - started < MAX_SECONDS


def test_a_fault_while_reading_an_open_object_is_a_store_error(
    store: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"a": list(range(100_000))}), tmp_path / "parquet")
    store.put("parquet", tmp_path / "parquet")
    with store.open("parquet") as file:
        proxy.set_rules([Rule("reset")])
        with pytest.raises(StoreUnavailableError, match="parquet: the S3 endpoint"):
            pq.read_table(file)


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (403, "RequestTimeTooSkewed", AccessDeniedError, "clock is wrong"),
        (403, "QuotaExceeded", StoreError, "full or over its quota"),
        (507, "XMinioStorageFull", StoreError, "full or over its quota"),
        (507, "InsufficientStorage", StoreError, "full or over its quota"),
        (400, "EntityTooLarge", StoreError, "exceeds the S3 server's size limit"),
        (301, "PermanentRedirect", StoreError, "in another region"),
        (307, "TemporaryRedirect", StoreError, "in another region"),
        (400, "AuthorizationHeaderMalformed", StoreError, "in another region"),
        (404, "NoSuchBucket", StoreError, "bucket does not exist"),
        (403, "AccessDenied", AccessDeniedError, "access denied"),
        (403, "InvalidAccessKeyId", AccessDeniedError, "credentials were rejected"),
        (403, "SignatureDoesNotMatch", AccessDeniedError, "credentials were rejected"),
        (400, "ExpiredToken", AccessDeniedError, "credentials were rejected"),
        (418, "Teapot", StoreError, "rejected the request"),
    ],
)
def test_an_s3_error_is_reported_without_retries(
    status: int,
    code: str,
    error: type[StoreError],
    message: str,
    store: ObjectStore,
    proxy: FaultProxy,
) -> None:
    proxy.set_rules([s3_error(status, code)])
    calls: list[Callable[[], Any]] = [
        lambda: store.write("y", NEW),
        lambda: store.read("x"),
        lambda: store.list(),
        lambda: store.check(),
    ]
    for call in calls:
        with pytest.raises(error, match=message) as raised:
            call()
        assert type(raised.value) is error
        assert "\n" not in str(raised.value)
    assert proxy.faults.total() <= 3 * len(calls)


@pytest.mark.parametrize(
    "reply",
    [
        Rule("respond", status=404, body=b"<html>no such page</html>"),
        Rule("respond", status=200, body=b"<html>hello</html>"),
        Rule("respond", status=200, body=b"{}"),
        Rule("respond", status=200),
    ],
    ids=["404", "HTML", "JSON", "empty"],
)
def test_a_server_that_does_not_speak_s3_is_reported(
    reply: Rule, store: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.set_rules([reply])
    with pytest.raises(StoreError) as raised:
        store.check()
    assert not isinstance(raised.value, ObjectMissingError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        ("http://no-such-host.invalid:9000", "unknown host name"),
    ],
)
def test_an_unreachable_endpoint_is_reported(endpoint: str, reason: str, s3: str) -> None:
    message = rf"cannot be reached \({reason}\); check the endpoint URL and the network"
    with pytest.raises(StoreUnavailableError, match=message):
        ObjectStore(uri=s3, endpoint_url=endpoint).read("x")
