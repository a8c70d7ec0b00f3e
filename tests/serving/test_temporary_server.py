"""A temporary Prefect server: started only if none is configured, and never left behind."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prefect_imageqa.serving import temporary_server
from prefect_imageqa.serving.errors import ImageQAError
from prefect_imageqa.serving.temporary_server import (
    TemporaryServer,
    is_temporary,
    last_error,
    may_be_configured,
)

ServersOf = Callable[[int], set[int]]

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"

OWNER = """
import time
from prefect_imageqa.serving.temporary_server import TemporaryServer
server = TemporaryServer()
server.wait()
print(server.url, flush=True)
time.sleep(300)
"""

FLOW = """
from prefect_imageqa.serving.temporary_server import start_early, wait_until_up
start_early()
wait_until_up()
from prefect import flow, task
from prefect.blocks.system import Secret
Secret(value="mine").save("mine")
assert Secret.load("mine").get() == "mine"
double = task(lambda number: 2 * number, name="double")
flow(lambda: [run.result() for run in double.map(range(7))], name="all")()
"""

CREATED_BY_PREFECT = """
active = "ephemeral"
[profiles.ephemeral]
PREFECT_SERVER_EPHEMERAL_ENABLED = "true"
[profiles.local]
PREFECT_API_URL = "http://127.0.0.1:4200/api"
"""


def unconfigure(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in a folder, with Prefect's folder `home` in it, in which nothing is configured."""
    for name in [name for name in os.environ if name.upper().startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    (folder / "home").mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    unconfigure(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that two servers have created at once."""
    folder = tmp_path_factory.mktemp("created")
    with pytest.MonkeyPatch.context() as patch:
        unconfigure(patch, folder)
        servers = [TemporaryServer() for _ in range(2)]
        try:
            for server in servers:
                server.wait()
        finally:
            for server in servers:
                server.stop()
    return folder / "home" / "prefect.db"


@pytest.fixture
def with_database(unset: Path, created: Path) -> Path:
    """As `unset`, with a database, which takes a server most of its start to create."""
    shutil.copytree(created.parent, unset / "home", dirs_exist_ok=True)
    return unset


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("", "", id="nothing"),
        pytest.param("home/profiles.toml", CREATED_BY_PREFECT, id="Prefect's own profiles"),
        pytest.param(
            "home/profiles.toml",
            'active = "mine"\n[profiles.mine]\nPREFECT_SERVER_ANALYTICS_ENABLED = "true"',
            id="another setting",
        ),
        pytest.param(
            "home/profiles.toml",
            'active = "mine"\n[profiles.mine]\n'
            'PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS = "300"',
            id="patience with one",
        ),
        pytest.param(".env", "AWS_REGION=eu-1", id="other programs' .env"),
        pytest.param("pyproject.toml", '[project]\nname = "x"', id="other project file"),
    ],
)
def test_a_server_is_started_if_none_is_configured(unset: Path, file: str, text: str) -> None:
    if file:
        (unset / file).write_text(text)
    assert not may_be_configured()


def test_a_pipe_is_not_waited_for(unset: Path) -> None:
    os.mkfifo(unset / ".env")
    assert not may_be_configured()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param(
            "home/profiles.toml", CREATED_BY_PREFECT.replace("ephemeral", "local", 1), id="profile"
        ),
        pytest.param(
            "home/profiles.toml", CREATED_BY_PREFECT.replace("true", "false"), id="forbidden"
        ),
        pytest.param("home/profiles.toml", "active = ", id="broken profiles"),
        pytest.param("home/profiles.toml", "profiles = 3", id="odd profiles"),
        pytest.param(".env", "prefect_api_url=http://server/api", id=".env"),
        pytest.param("prefect.toml", "[api]\nurl = 'http://server/api'", id="prefect.toml"),
        pytest.param("pyproject.toml", "[tool.prefect.api]\nurl = 'http://s/api'", id="pyproject"),
    ],
)
def test_none_is_started_if_a_file_may_configure_one(unset: Path, file: str, text: str) -> None:
    (unset / file).write_text(text)
    assert may_be_configured()


@pytest.mark.parametrize(
    "name",
    [
        "PREFECT_API_URL",
        "prefect_api_url",
        "PREFECT_API_KEY",
        "PREFECT_PROFILE",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    ],
)
def test_none_is_started_if_the_environment_may_configure_one(
    unset: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert may_be_configured()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed owner leaves its server")
def test_the_server_ends_with_an_owner_that_is_killed(
    with_database: Path, temporary_servers: ServersOf
) -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        address = urlsplit(owner.stdout.readline().strip())
        (server,) = temporary_servers(owner.pid)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while temporary_servers(owner.pid):
        assert time.monotonic() < deadline, f"process {server} is still there"
        time.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port))


def test_the_server_records_every_task_run_and_saved_block_before_it_ends(
    with_database: Path,
) -> None:
    """It records 50 states at once: here, those of a short run. Other types of blocks it leaves."""
    subprocess.run([sys.executable, "-c", FLOW], check=True, timeout=240)
    with closing(sqlite3.connect(with_database / "home" / "prefect.db")) as database:
        states = "SELECT state_name, count(*) FROM task_run GROUP BY state_name"
        assert database.execute(states).fetchall() == [("Completed", 7)]
        assert database.execute("SELECT slug FROM block_type").fetchall() == [("secret",)]


def test_a_server_that_does_not_start_is_explained_in_a_line(
    unset: Path, monkeypatch: pytest.MonkeyPatch, temporary_servers: ServersOf
) -> None:
    monkeypatch.setenv(DATABASE, "sqlite+aiosqlite:////no/such/folder/prefect.db")
    server = TemporaryServer()
    with pytest.raises(ImageQAError, match=r"exit code 3.*unable to open database file") as caught:
        server.wait()
    assert "\n" not in str(caught.value)
    server.stop()
    assert not temporary_servers(os.getpid())


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        pytest.param("", "it says nothing", id="nothing"),
        pytest.param("killed\n\n", "killed", id="no error"),
        pytest.param(
            "Traceback:\na.URLError: bad 'postgresql://me:pass/word@db/x'\n  more",
            "a.URLError: bad 'db/x'",
            id="secret",
        ),
    ],
)
def test_the_log_of_a_server_is_summed_up_without_secrets(log: str, expected: str) -> None:
    assert last_error(log) == expected


def test_servers_may_create_one_database_at_once(created: Path) -> None:
    with closing(sqlite3.connect(created)) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchall() == [(0,)]


def test_a_server_that_is_not_needed_is_stopped_at_once(
    unset: Path, temporary_servers: ServersOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_server, "STOP_SECONDS", 60.0)
    server = TemporaryServer()
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 40
    assert not temporary_servers(os.getpid())


def test_only_a_configured_server_is_not_temporary() -> None:
    assert is_temporary(None)
    assert not is_temporary("http://127.0.0.1:4200/api")
