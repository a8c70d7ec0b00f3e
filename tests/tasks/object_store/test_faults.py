"""What users of an S3 store see when the server, the network or their settings fail them."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
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
from prefect_imageqa.tasks.object_store.store import ObjectStore

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture(scope="module", autouse=True)
def proxy(s3: str) -> Iterator[FaultProxy]:
    """One proxy for all, so that one connection does: making one takes its time."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname
    assert server.port
    with pytest.MonkeyPatch.context() as hurry, FaultProxy(server.hostname, server.port) as proxy:
        hurry.setattr("prefect_imageqa.tasks.object_store.s3._READ_TIMEOUT", 0.5)
        hurry.setattr("prefect_imageqa.tasks.object_store.s3._FIRST_WAIT", 0.01)
        hurry.setattr("prefect_imageqa.tasks.object_store.s3._PATIENCE", 3)
        hurry.setattr("prefect_imageqa.tasks.object_store.s3._SLOWEST", 16 << 20)
        yield proxy


@pytest.fixture
def plain(s3: str, tmp_path: Path) -> ObjectStore:
    """The store without a proxy before it; it has one object."""
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("x", OLD)
    return store


@pytest.fixture
def store(plain: ObjectStore, proxy: FaultProxy) -> ObjectStore:
    proxy.set_rules([])
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


OPERATIONS: dict[str, tuple[Callable[[ObjectStore], Any], Any]] = {
    "read": (lambda store: store.read("x"), OLD),
    "open": (read_opened, OLD),
    "write": (lambda store: store.write("y", NEW), None),
    "put": (put, None),
    "list": (lambda store: store.list(), ["x"]),
    "sizes": (lambda store: store.sizes(), {"x": len(OLD)}),
    "exists": (lambda store: store.exists("x"), True),
    "remove": (lambda store: store.remove("x"), None),
    "check": (lambda store: store.check(), None),
}
FAULTS: dict[str, Rule] = {
    "503 SlowDown": s3_error(503, "SlowDown"),
    "503 of a gateway": Rule("answer", body=b"<html>busy</html>"),
    "429": s3_error(429, "TooManyRequests"),
    "500": s3_error(500, "InternalError"),
    "502 of a gateway": Rule("answer", status=502, body=b"bad gateway"),
    "reset": Rule("reset"),
    "hang": Rule("hang"),
    "cut request": Rule("cut_request"),
    "lost reply": Rule("lose_reply"),
    "cut reply": Rule("cut_reply"),
}
BURST = {"hang": 1, "cut reply": 1}
"""How often in a row a fault may come unnoticed; the others three times."""


CASES = [
    pytest.param(operation, fault, id=f"{operation}-{fault}")
    for operation in OPERATIONS
    for fault in FAULTS
    # What has no body cannot be cut.
    if not (fault == "cut reply" and operation in {"exists", "put", "remove", "write"})
]


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_a_short_burst_passes_unnoticed(
    operation: str, fault: str, store: ObjectStore, proxy: FaultProxy
) -> None:
    act, expected = OPERATIONS[operation]
    proxy.set_rules([replace(FAULTS[fault], count=BURST.get(fault, 3))])
    assert act(store) == expected
    assert proxy.faults.total() == BURST.get(fault, 3)


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_a_lasting_fault_is_told_in_time(
    operation: str, fault: str, store: ObjectStore, plain: ObjectStore, proxy: FaultProxy
) -> None:
    act, _ = OPERATIONS[operation]
    proxy.set_rules([FAULTS[fault]])
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError) as raised:
        act(store)
    assert time.monotonic() - started < 4
    assert proxy.faults.total() <= (2 if fault == "hang" else 12)
    assert "\n" not in str(raised.value)
    assert plain.uri in str(raised.value)
    for name in {"x", "y"} & set(plain.list()):
        assert plain.read(name) in {OLD, NEW}


def test_faults_at_random_change_nothing(
    store: ObjectStore, plain: ObjectStore, proxy: FaultProxy
) -> None:
    faults: list[Fault] = ["answer", "reset", "lose_reply", "cut_reply", "cut_request"]
    proxy.set_rules([Rule(fault, probability=0.03) for fault in faults])
    content = {f"many/{number}": os.urandom(number * 100) for number in range(60)}
    for name, data in content.items():  # one after the other, so that the seed decides
        store.write(name, data)
        assert store.read(name) == data
    assert store.sizes("many") == {name: len(data) for name, data in content.items()}
    assert proxy.faults.total() > 5
    assert {name: plain.read(name) for name in plain.list("many")} == content


def test_a_large_object_that_is_cut_is_never_there(
    store: ObjectStore, plain: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(3 << 20))
    proxy.set_rules([Rule("cut_request", method="PUT")])
    with pytest.raises(StoreUnavailableError):
        store.put("large", file)
    assert file.exists(), "it is still where it was"
    assert plain.list() == ["x"]


def test_a_slow_server_is_waited_for(store: ObjectStore, proxy: FaultProxy) -> None:
    proxy.set_rules([Rule("slow", seconds=0.3)])
    assert store.read("x") == OLD


def test_a_server_that_takes_nothing_is_given_up(s3: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ObjectStore(uri=s3, endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.write("large", bytes(32 << 20))
        assert time.monotonic() - started < 10


def drip(server: socket.socket) -> None:
    """Answer every request with a thousand bytes, one now and then."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)

    with suppress(OSError):
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


def test_a_server_that_gives_a_byte_now_and_then_is_given_up(s3: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        store = ObjectStore(uri=s3, endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.read("x")
        assert time.monotonic() - started < 10


def test_a_fault_while_an_opened_object_is_read_is_told(
    store: ObjectStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"a": list(range(100_000))}), tmp_path / "parquet")
    store.put("parquet", tmp_path / "parquet")
    with store.open("parquet") as file:
        proxy.set_rules([Rule("reset")])
        with pytest.raises(StoreUnavailableError, match="parquet: the S3 endpoint"):
            pq.read_table(file)


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (403, "RequestTimeTooSkewed", AccessDeniedError, "clock is wrong"),
        (403, "QuotaExceeded", StoreError, "full or its quota used up"),
        (507, "XMinioStorageFull", StoreError, "full or its quota used up"),
        (507, "InsufficientStorage", StoreError, "full or its quota used up"),
        (400, "EntityTooLarge", StoreError, "larger than the S3 server takes"),
        (301, "PermanentRedirect", StoreError, "in another region"),
        (307, "TemporaryRedirect", StoreError, "in another region"),
        (400, "AuthorizationHeaderMalformed", StoreError, "in another region"),
        (404, "NoSuchBucket", StoreError, "bucket does not exist"),
        (403, "AccessDenied", AccessDeniedError, "access denied"),
        (403, "InvalidAccessKeyId", AccessDeniedError, "credentials were refused"),
        (403, "SignatureDoesNotMatch", AccessDeniedError, "credentials were refused"),
        (400, "ExpiredToken", AccessDeniedError, "credentials were refused"),
        (418, "Teapot", StoreError, "refused the request"),
    ],
)
def test_what_the_server_refuses_is_told_at_once(
    status: int, code: str, kind: type[StoreError], said: str, store: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.set_rules([s3_error(status, code)])
    uses: list[Callable[[], Any]] = [
        lambda: store.write("y", NEW),
        lambda: store.read("x"),
        lambda: store.list(),
        lambda: store.check(),
    ]
    for use in uses:
        with pytest.raises(kind, match=said) as raised:
            use()
        assert type(raised.value) is kind
        assert "\n" not in str(raised.value)
    assert proxy.faults.total() <= 3 * len(uses)


@pytest.mark.parametrize(
    "answer",
    [
        Rule("answer", status=404, body=b"<html>no such page</html>"),
        Rule("answer", status=200, body=b"<html>hello</html>"),
        Rule("answer", status=200, body=b"{}"),
        Rule("answer", status=200),
    ],
    ids=["404", "HTML", "JSON", "nothing"],
)
def test_a_server_that_is_no_s3_is_told(
    answer: Rule, store: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.set_rules([answer])
    with pytest.raises(StoreError) as raised:
        store.check()
    assert not isinstance(raised.value, ObjectMissingError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid:9000"], ids=["refused", "DNS"]
)
def test_an_endpoint_that_is_not_there_is_told(endpoint: str, s3: str) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be reached; check the endpoint URL"):
        ObjectStore(uri=s3, endpoint_url=endpoint).read("x")
