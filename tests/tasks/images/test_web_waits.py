"""A host of web images that is away for a while: it is waited for if it has answered before."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tenacity
from chat import wait_until
from fault_proxy import FaultProxy, Rule
from prefect_imageqa.tasks.images import skipped_hosts
from prefect_imageqa.tasks.images import web as web_images
from prefect_imageqa.tasks.images.skipped_hosts import SkippedHosts
from prefect_imageqa.tasks.images.web import MAX_ATTEMPTS, WebImages
from prefect_imageqa.tasks.object_store import patience as waiting
from prefect_imageqa.tasks.object_store.patience import Patience
from prefect_imageqa.tasks.records import Kind, RowError


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FaultProxy]:
    """A host that has `a.png`."""
    (tmp_path / "a.png").write_bytes(b"image")
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path))
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with FaultProxy("127.0.0.1", server.server_port) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "_BACKOFF", tenacity.wait_none())
    monkeypatch.setattr(waiting, "MAX_PAUSE", 0.1)


@pytest.fixture
def open_client() -> Iterator[Callable[[Patience], WebImages]]:
    clients: list[WebImages] = []

    def start(patience: Patience) -> WebImages:
        clients.append(WebImages(1000, allow_private_hosts=True, patience=patience))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def fails(read: Callable[[str], object], url: str) -> tuple[RowError, float]:
    started = time.monotonic()
    with pytest.raises(RowError) as raised:
        read(url)
    assert raised.value.problem.kind is Kind.CONNECTION
    return raised.value, time.monotonic() - started


def test_a_host_that_has_answered_is_waited_for(
    host: FaultProxy,
    open_client: Callable[[Patience], WebImages],
    caplog: pytest.LogCaptureFixture,
) -> None:
    patience = Patience(60)
    client, url = open_client(patience), f"{host.url}/a.png"
    identity = client.identify(url)
    with caplog.at_level("INFO"), ThreadPoolExecutor(16) as pool:
        with host.away():
            reading = [pool.submit(client.read, url) for _ in range(15)]
            identifying = pool.submit(client.identify, url)
            wait_until(lambda: patience.notes)
            time.sleep(0.2)
            (note,) = patience.notes
            assert not identifying.done()
            assert not any(future.done() for future in reading)
        assert {future.result(60) for future in reading} == {b"image"}
        assert identifying.result(60) == identity
    name = host.url.removeprefix("http://")
    assert note.startswith(f"{name} does not answer (no connection): waiting, ")
    log = [r.getMessage() for r in caplog.records if r.name == "prefect_imageqa.store"]
    assert [line.split()[1] for line in log] == ["does", "answers"]


def test_a_host_that_stays_away_fails_its_rows_and_is_waited_for_once(
    host: FaultProxy, open_client: Callable[[Patience], WebImages]
) -> None:
    client, url = open_client(Patience(0.5)), f"{host.url}/a.png"
    client.read(url)
    with host.away():
        error, seconds = fails(client.read, url)
        assert "waited" in str(error)
        assert seconds >= 0.5
        error, _ = fails(client.read, url)
        assert "was unreachable a moment ago" in str(error)
        client._skipped = SkippedHosts()  # a minute later
        error, _ = fails(client.read, url)
        assert "waited" not in str(error)
    client._skipped = SkippedHosts()
    assert client.read(url) == b"image"


def test_a_silent_host_that_has_answered_is_waited_for(
    host: FaultProxy, open_client: Callable[[Patience], WebImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = Patience(60)
    client, url = open_client(patience), f"{host.url}/a.png"
    client.read(url)
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.5)
    monkeypatch.setattr(web_images, "CONNECT_SECONDS", 0.4)
    host.set_rules([Rule("hang", count=MAX_ATTEMPTS + 1)])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(client.read, url)
        wait_until(lambda: host.faults["hang"] == MAX_ATTEMPTS + 1)
        monkeypatch.setattr(web_images, "TOTAL_SECONDS", 60.0)
        assert reading.result(60) == b"image"
    assert host.faults["hang"] == MAX_ATTEMPTS + 1


def test_a_host_that_never_answered_is_not_waited_for(
    host: FaultProxy, open_client: Callable[[Patience], WebImages]
) -> None:
    client = open_client(Patience(60))
    with host.away():
        error, seconds = fails(client.read, f"{host.url}/a.png")
    assert seconds < 50
    assert "waited" not in str(error)


def test_stopping_ends_the_wait(
    host: FaultProxy, open_client: Callable[[Patience], WebImages]
) -> None:
    patience = Patience(60)
    client, url = open_client(patience), f"{host.url}/a.png"
    client.read(url)
    with host.away(), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(fails, client.read, url)
        while not patience.notes:
            time.sleep(0.01)
        patience.stop()
        _, seconds = reading.result(60)
    assert seconds < 50


def test_the_number_of_skipped_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipped_hosts, "MAX_SKIPPED_HOSTS", 3)
    skipped = SkippedHosts()
    for number in range(10):
        skipped.add(f"host-{number}:80")
        assert skipped.why(f"host-{number}:80") == "unreachable"
        assert len(skipped._until) <= 3
