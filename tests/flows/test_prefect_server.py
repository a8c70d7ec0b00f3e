"""A Prefect server that is not as it should be: one line, with the command that mends it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    temporary_settings,
)
from prefect_imageqa import image_qa
from prefect_imageqa.flows.prefect_server import check_server
from prefect_imageqa.flows.run import open_store
from prefect_imageqa.serving.endpoint import load_endpoint
from prefect_imageqa.tasks.errors import ImageQAError, PrefectServerError
from prefect_imageqa.tasks.object_store.store import load_store

StartFake = Callable[[int, str], str]


@pytest.fixture
def start_fake() -> Iterator[StartFake]:
    """Starts something that gives every request one answer; gives the URL of its API."""
    with ExitStack() as running:

        def start(status: int, body: str) -> str:
            class Answer(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, *_: Any) -> None:
                    """Stay quiet."""

            server = HTTPServer(("127.0.0.1", 0), Answer)
            running.callback(server.server_close)
            running.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://user:a-password@127.0.0.1:{server.server_port}/api"

        yield start


def complaint(url: str | None, *, needed: bool = False) -> str:
    """What `check_server` says of a server; it must be one line without a password."""
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(PrefectServerError) as caught,
    ):
        check_server(needed=needed)
    told = str(caught.value)
    assert "\n" not in told
    assert "a-password" not in told
    return told


def test_the_tests_own_server_is_as_it_should_be() -> None:
    check_server(needed=True)


def test_a_run_without_a_server_starts_one_of_its_own() -> None:
    with temporary_settings({PREFECT_API_URL: None}):
        check_server()


def test_a_run_that_may_not_start_one_needs_a_server() -> None:
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: False}):
        assert "`prefect server start`" in complaint(None)


def test_deploying_needs_a_server() -> None:
    told = complaint(None, needed=True)
    assert "`prefect server start`" in told
    assert "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`" in told


@pytest.mark.parametrize(
    "url", ["http://user:a-password@127.0.0.1:9/api", "http://nowhere.invalid/api", "prefect"]
)
def test_nobody_answers(url: str) -> None:
    told = complaint(url)
    assert told.startswith("no Prefect server answers at ")
    assert "`prefect server start`" in told


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
def test_something_else_answers(
    status: int, body: str, expected: str, start_fake: StartFake
) -> None:
    assert expected in complaint(start_fake(status, body))


def test_another_major_version_is_told_with_both_versions(start_fake: StartFake) -> None:
    told = complaint(start_fake(200, '"2.20.1"'))
    assert "2.20.1" in told
    assert prefect.__version__ in told


@pytest.mark.parametrize("load", [load_endpoint, load_store], ids=["endpoint", "store"])
def test_an_unknown_block_is_told_with_the_command_that_lists_its_type(
    load: Callable[[str], object],
) -> None:
    with pytest.raises(ImageQAError) as caught:
        load("nobody-saved-this")
    told = str(caught.value)
    assert "'nobody-saved-this'" in told
    assert "`prefect block register -m prefect_imageqa`" in told
    assert "\n" not in told


def test_a_block_is_not_looked_for_where_no_server_answers(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PrefectServerError, match="no Prefect server answers at"),
    ):
        open_store(str(tmp_path), "minio")


def test_a_run_from_python_needs_a_server_that_answers(tmp_path: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PrefectServerError, match="no Prefect server answers at"),
    ):
        image_qa("qas.json", str(tmp_path / "out"), endpoint="http://127.0.0.1:9")
    assert not (tmp_path / "out").exists()
