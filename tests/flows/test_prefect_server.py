"""An unusable Prefect server is reported in one line, with the command that fixes it."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prefect
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect_imageqa import image_qa
from prefect_imageqa.flows import prefect_server
from prefect_imageqa.flows.open_store import open_store
from prefect_imageqa.flows.prefect_server import check_server
from prefect_imageqa.serving import temporary_server
from prefect_imageqa.serving.endpoint import load_endpoint
from prefect_imageqa.tasks.errors import ImageQAError, PrefectServerError
from prefect_imageqa.tasks.object_store.store import load_store

StartFake = Callable[..., str]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(prefect_server, "POLL_SECONDS", 0.1)


@pytest.fixture
def start_fake() -> Iterator[StartFake]:
    """Starts a server that answers all requests alike; returns the URL of its API.

    Before that, it answers some requests with the statuses of `busy`.
    """
    with ExitStack() as running:

        def start(status: int, body: str, busy: Sequence[int] = ()) -> str:
            statuses = chain(busy, repeat(status))

            class Answer(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(next(statuses))
                    self.send_header("Retry-After", "0")  # Prefect's client pauses even for nothing
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, *_: Any) -> None:
                    """Log nothing."""

            server = HTTPServer(("127.0.0.1", 0), Answer)
            running.callback(server.server_close)
            running.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            return f"http://user:a-password@127.0.0.1:{server.server_port}/api"

        yield start


def error_of(url: str | None, *, needed: bool = False) -> str:
    """The error that `check_server` raises for a server; it must be one line without a password."""
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(PrefectServerError) as caught,
    ):
        check_server(needed=needed)
    message = str(caught.value)
    assert "\n" not in message
    assert "a-password" not in message
    return message


def test_a_usable_server_passes() -> None:
    check_server(needed=True)


def test_a_run_without_a_server_may_start_a_temporary_one() -> None:
    with temporary_settings({PREFECT_API_URL: None}):
        check_server()


def test_a_run_needs_a_server_if_temporary_ones_are_disabled() -> None:
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: False}):
        assert "`prefect server start`" in error_of(None)


def test_deploying_needs_a_server() -> None:
    message = error_of(None, needed=True)
    assert "`prefect server start`" in message
    assert "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`" in message


@pytest.mark.parametrize(
    "url", ["http://user:a-password@127.0.0.1:9/api", "http://nowhere.invalid/api", "prefect"]
)
def test_no_server_answers(url: str, caplog: pytest.LogCaptureFixture) -> None:
    message = error_of(url)
    assert caplog.records == []  # it is not waited for
    assert message.startswith("no Prefect server answers at ")
    assert "`prefect server start`" in message


@pytest.mark.parametrize("status", [403, 502], ids=["forbidden", "bad gateway"])
def test_a_proxy_in_the_way_is_named(
    status: int, start_fake: StartFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = start_fake(status, "").removesuffix("/api")
    monkeypatch.setenv("http_proxy", proxy)
    message = error_of("http://prefect.corp:4200/api")
    assert "the Prefect server at http://prefect.corp:4200/api" in message
    assert f"through the proxy {proxy.replace('user:a-password@', '')}: " in message
    assert "no_proxy" in message


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, '"2.20.1"', "pip install 'prefect=="),
        (200, "<!doctype html>", "/api"),
        (200, "{}", "/api"),
        (200, '"new"', "/api"),
        (200, "\xff", "/api"),
        (404, "", "PREFECT_API_URL"),
        (401, '{"exception_message": "Unauthorized"}', "PREFECT_API_AUTH_STRING"),
        (500, "", "HTTP 500"),
        (503, "", "HTTP 503"),
    ],
    ids=[
        *("version 2", "web page", "no version", "odd version", "no JSON"),
        *("not found", "password", "broken", "overloaded"),
    ],
)
def test_an_unusable_server_answers(
    status: int, body: str, expected: str, start_fake: StartFake
) -> None:
    assert expected in error_of(start_fake(status, body))


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_waited_for(
    status: int,
    start_fake: StartFake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(prefect_server, "WAIT_SECONDS", 60.0)
    url = start_fake(200, f'"{prefect.__version__}"', busy=[status, status])
    with temporary_settings({PREFECT_API_URL: url}):
        check_server()
    [message] = [record.getMessage() for record in caplog.records]
    expected = f"{url.replace('user:a-password@', '')} does not answer yet: waiting, up to 60 s"
    assert message == f"the Prefect server at {expected}"


def test_a_server_that_stays_silent_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefect_server, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = error_of(f"http://user:a-password@127.0.0.1:{silent.getsockname()[1]}/api")
    assert "does not answer (ReadTimeout): try again later" in message
    assert "does not answer yet: waiting, up to" in caplog.text


def test_another_major_version_is_reported_with_both_versions(start_fake: StartFake) -> None:
    message = error_of(start_fake(200, '"2.20.1"'))
    assert "2.20.1" in message
    assert prefect.__version__ in message


@pytest.mark.parametrize("load", [load_endpoint, load_store], ids=["endpoint", "store"])
def test_an_unknown_block_is_reported_with_the_command_that_registers_its_type(
    load: Callable[[str], object],
) -> None:
    with pytest.raises(ImageQAError) as caught:
        load("never-saved")
    message = str(caught.value)
    assert "'never-saved'" in message
    assert "`prefect block register -m prefect_imageqa`" in message
    assert "\n" not in message


def test_a_block_needs_a_server_that_answers(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PrefectServerError, match="no Prefect server answers at"),
    ):
        open_store(str(tmp_path), "minio")


def test_a_block_waits_for_the_temporary_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(seconds: int) -> None:
        raise ImageQAError(f"it does not start in {seconds} s")

    url, patience = "http://127.0.0.1:9/api", PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    monkeypatch.setattr(temporary_server, "_started", SimpleNamespace(url=url, wait=fail))
    with (
        temporary_settings({PREFECT_API_URL: url, patience: 300}),
        pytest.raises(ImageQAError, match="it does not start in 300 s"),
    ):
        open_store(str(tmp_path), "minio")


def test_a_run_from_python_needs_a_server_that_answers(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PrefectServerError, match="no Prefect server answers at"),
    ):
        image_qa("qas.json", str(tmp_path / "out"), endpoint="http://127.0.0.1:9")
    assert not (tmp_path / "out").exists()
