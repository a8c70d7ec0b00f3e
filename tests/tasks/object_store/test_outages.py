"""A real S3 server that is away for a while: what is done meanwhile is done once it is back."""

import asyncio
import gzip
import os
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fault_proxy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat import wait_until
from fault_proxy import FaultProxy
from prefect_imageqa.tasks.errors import (
    AccessDeniedError,
    DatasetError,
    StoreError,
    StoreUnavailableError,
)
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.loading import tables
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store import patience as waiting
from prefect_imageqa.tasks.object_store import s3 as s3_connection
from prefect_imageqa.tasks.object_store.patience import Patience
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import ImageRef

AWAY_SECONDS = 0.4
"""More than the quick retries take here: these cannot hide the outage."""

OLD, NEW = b"old" * 1000, b"new" * 1000


@pytest.fixture(scope="module")
def proxy(s3: str) -> Iterator[FaultProxy]:
    """One for all tests, because a new connection takes long."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert server.hostname
    assert server.port
    with FaultProxy(server.hostname, server.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy) -> None:
    monkeypatch.setattr(s3_connection, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(waiting, "MAX_PAUSE", 0.2)
    proxy.set_rules([])


@pytest.fixture
def plain(s3: str, tmp_path: Path) -> ObjectStore:
    """The store without a proxy; it has one object."""
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("x", OLD)
    return store


@pytest.fixture
def patience() -> Patience:
    return Patience(60)


@pytest.fixture
def store(plain: ObjectStore, proxy: FaultProxy, patience: Patience) -> ObjectStore:
    """The same store behind the proxy, and patient; the proxy has answered before."""
    store = ObjectStore(uri=plain.uri, endpoint_url=proxy.url).with_patience(patience)
    store.read("x")
    return store


def during_outage(proxy: FaultProxy, patience: Patience, action: Callable[[], Any]) -> Any:
    """Do something while the server is away; it must still be waited for when that is over."""
    with ThreadPoolExecutor(1) as pool:
        with proxy.away():
            doing = pool.submit(action)
            time.sleep(AWAY_SECONDS)
            wait_until(lambda: patience.notes)
            assert not doing.done()
            (note,) = patience.notes
        assert note.startswith(f"S3 at {proxy.url} does not answer (connection ")
        assert note.endswith(" s of 60")
        return doing.result(60)


def put(store: ObjectStore, folder: Path) -> None:
    (folder / "file").write_bytes(NEW)
    store.put("y", folder / "file")
    assert not (folder / "file").exists()


OPERATIONS: dict[str, tuple[Callable[[ObjectStore, Path], Any], Any]] = {
    "read": (lambda store, _: store.read("x"), OLD),
    "write": (lambda store, _: store.write("y", NEW), None),
    "put": (put, None),
    "list": (lambda store, _: store.list(), ["x"]),
    "exists": (lambda store, _: (store.exists("x"), store.exists("z")), (True, False)),
    "remove": (lambda store, _: store.remove("x"), None),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_is_away_is_waited_for(
    operation: str,
    store: ObjectStore,
    plain: ObjectStore,
    proxy: FaultProxy,
    patience: Patience,
    tmp_path: Path,
) -> None:
    act, expected = OPERATIONS[operation]
    assert during_outage(proxy, patience, lambda: act(store, tmp_path)) == expected
    if operation in {"write", "put"}:
        assert plain.read("y") == NEW
    if operation == "remove":
        assert plain.list() == []


def test_without_patience_a_store_that_is_away_is_an_error_at_once(
    store: ObjectStore, proxy: FaultProxy
) -> None:
    hasty = ObjectStore(uri=store.uri, endpoint_url=proxy.url)
    copies: list[ObjectStore] = [
        hasty,
        store.with_patience(Patience()),
        pickle.loads(pickle.dumps(store)),  # noqa: S301
    ]
    with proxy.away():
        for copy in copies:
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="refused") as raised:
                copy.read("x")
            assert time.monotonic() - started < 50
            assert "waited" not in str(raised.value)


def test_a_store_that_is_away_for_too_long_is_an_error(
    store: ObjectStore, proxy: FaultProxy
) -> None:
    hasty = store.with_patience(Patience(0.5))
    with proxy.away():
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"connection refused.*; waited \d+ s$"):
            hasty.write("y", NEW)
        assert 0.5 <= time.monotonic() - started < 50


def test_a_stopped_run_does_not_go_on_waiting(
    store: ObjectStore, proxy: FaultProxy, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 120.0)
    monkeypatch.setattr(waiting, "MAX_PAUSE", 120.0)
    with proxy.away(), ThreadPoolExecutor(4) as pool:
        doing = [pool.submit(store.write, f"y{number}", NEW) for number in range(4)]
        while not patience.notes:
            time.sleep(0.01)
        patience.stop()
        assert {type(future.exception(30)) for future in doing} == {StoreUnavailableError}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"uri": "s3://no-such-bucket/a"}, StoreError),
        ({"access_key_id": "unknown", "secret_access_key": "wrong"}, AccessDeniedError),
        ({"endpoint_url": "http://no-such-host.invalid:9000"}, StoreUnavailableError),
    ],
    ids=["no bucket", "wrong key", "unknown host"],
)
def test_a_mistake_is_not_waited_for(
    changed: dict[str, str], error: type[StoreError], plain: ObjectStore, proxy: FaultProxy
) -> None:
    fields = {"uri": plain.uri, "endpoint_url": proxy.url, **changed}
    store = ObjectStore(**fields).with_patience(Patience(60))
    started = time.monotonic()
    with pytest.raises(error):
        store.read("x")
    assert time.monotonic() - started < 50


LINES = b"".join(b'{"image": "%d.png"}\n' % number for number in range(20_000))


def parquet(folder: Path) -> bytes:
    names = [f"{number}.png" for number in range(20_000)]
    pq.write_table(pa.table({"image": names}), folder / "file", row_group_size=1000)
    return (folder / "file").read_bytes()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_a_dataset_is_read_on_after_an_outage_in_the_middle_of_a_file(
    name: str,
    store: ObjectStore,
    proxy: FaultProxy,
    patience: Patience,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "_S3_BUFFER_BYTES", 4096)
    data = {"gz": gzip.compress(LINES), "parquet": parquet(tmp_path)}
    store.write(name, data.get(name.rpartition(".")[2], LINES))
    dataset = open_dataset(store.uri_of(name), credentials=store.s3_credentials)
    with closing(dataset.rows()) as rows:
        read = [next(rows) for _ in range(100)]
        read += during_outage(proxy, patience, lambda: list(rows))
    assert [row.index for row in read] == list(range(20_000))
    assert [row.record["image"] for row in read] == [f"{index}.png" for index in range(20_000)]


def test_finding_a_dataset_waits_and_gives_up_with_a_dataset_error(
    store: ObjectStore, proxy: FaultProxy, patience: Patience
) -> None:
    store.write("d.jsonl", LINES)
    for uri in (store.uri_of("d.jsonl"), f"{store.uri}/*.jsonl"):
        open_it = lambda uri=uri: open_dataset(uri, credentials=store.s3_credentials)  # noqa: E731
        assert during_outage(proxy, patience, open_it).names == ("image",)
    hasty = store.with_patience(Patience(0.3)).s3_credentials
    with proxy.away(), pytest.raises(DatasetError, match="waited"):
        open_dataset(store.uri_of("d.jsonl"), credentials=hasty)


@pytest.mark.parametrize("method", [ImageReader.read, ImageReader.identify])
def test_images_are_waited_for(
    method: Callable[..., object], store: ObjectStore, proxy: FaultProxy, patience: Patience
) -> None:
    ref = ImageRef(path=store.uri_of("x"))
    with ImageReader(10_000, credentials=store.s3_credentials) as reader:
        expected = method(reader, ref)
        assert during_outage(proxy, patience, lambda: method(reader, ref)) == expected


def test_an_outage_in_the_middle_of_a_reply_is_waited_for(
    store: ObjectStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1 << 20)
    store.write("large", data)
    sent, pieces = threading.Event(), fault_proxy._body

    async def first_piece(*given: Any) -> AsyncIterator[bytes]:
        """Of the first reply, which is cut off after it, and all of the others."""
        async for piece in pieces(*given):
            yield piece
            if len(piece) > 1000 and not sent.is_set():
                sent.set()
                await asyncio.sleep(600)

    monkeypatch.setattr(fault_proxy, "_body", first_piece)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.read, "large")
        assert sent.wait(60)
        with proxy.away():
            time.sleep(AWAY_SECONDS)
            assert not reading.done()
        assert reading.result(60) == data


def test_threads_that_meet_an_outage_all_finish(
    store: ObjectStore,
    plain: ObjectStore,
    proxy: FaultProxy,
    patience: Patience,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = threading.Barrier(17)

    def write(number: int) -> None:
        started.wait()
        store.write(f"many/{number}", b"%d" % number)

    with caplog.at_level("INFO"), ThreadPoolExecutor(16) as pool:
        with proxy.away():
            writing = [pool.submit(write, number) for number in range(16)]
            started.wait()
            time.sleep(AWAY_SECONDS)
            wait_until(lambda: patience.notes)
        for future in writing:
            future.result(60)
    assert {name: plain.read(name) for name in plain.list("many")} == {
        f"many/{number}": b"%d" % number for number in range(16)
    }
    log = [r.getMessage() for r in caplog.records if r.name == "prefect_imageqa.store"]
    assert [line.partition(proxy.url)[2].split()[0] for line in log] == ["does", "answers"]
