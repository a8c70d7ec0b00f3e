"""A headless Chromium, and a Prefect server with its UI, worker and deployments."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Dialog, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"

TIMEOUT = 90_000
"""Milliseconds: a server may wait 60 s for its database before it answers."""

TakeScreenshot = Callable[..., Path]


@dataclass
class PageLog:
    """What a page did.

    Attributes:
        urls: all its requests, in order.
        errors: error messages on its console, and exceptions in its scripts.
        dialogs: texts of `alert` and other dialogs.
    """

    urls: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def external(self) -> list[str]:
        """The URLs of other machines."""
        return [url for url in self.urls if not _is_local(url)]


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"file", "data", "blob", "about"} or parts.hostname == "127.0.0.1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of one module.

    While it runs, Playwright's event loop runs in the main thread, which makes Prefect's client
    behave as in asynchronous code. Therefore it is closed after the module, whose tests only use
    Prefect's command line and HTTP API.
    """
    program = shutil.which("chromium")
    assert program, "chromium is missing: run tests/browser/install.sh"
    # Chromium's sandbox does not work for root; /dev/shm has only 64 MB in a container.
    flags = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=flags)
        yield running
        running.close()


@pytest.fixture
def page_log() -> PageLog:
    """What the test's `page` did."""
    return PageLog()


@pytest.fixture
def page(browser: Browser, page_log: PageLog) -> Iterator[Page]:
    """An empty page in a profile of its own: 1280 x 900, light, English, UTC."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
        locale="en-US",
        timezone_id="UTC",
    )
    context.set_default_timeout(TIMEOUT)
    context.on("request", lambda request: page_log.urls.append(request.url))
    context.on("weberror", lambda error: page_log.errors.append(str(error.error)))
    opened = context.new_page()
    opened.on(
        "console",
        lambda message: page_log.errors.append(message.text) if message.type == "error" else None,
    )

    def dismiss(dialog: Dialog) -> None:
        page_log.dialogs.append(dialog.message)
        dialog.dismiss()

    opened.on("dialog", dismiss)
    yield opened
    context.close()


@pytest.fixture
def screenshot(page: Page) -> TakeScreenshot:
    """Takes a screenshot: `screenshot("name")` writes build/screenshots/name.png."""

    def take(name: str, *, full_page: bool = False) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        page.screenshot(path=path, full_page=full_page, animations="disabled")
        return path

    return take


TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class PrefectUI:
    """A Prefect server with its UI.

    Attributes:
        url: of the UI; the API is below it.
        folder: contains its database, and is the working directory of deployments.
        environment: for commands that use this server.
    """

    url: str
    folder: Path
    environment: dict[str, str] = field(repr=False)

    def api(self, path: str, body: Any = None) -> Any:
        """Call the API, with POST if there is a body; retry while its database is locked.

        SQLite waits up to 60 s for a lock before the server answers 503.
        """
        request = Request(  # noqa: S310
            f"{self.url}/api{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            try:
                with urlopen(request, timeout=75) as response:  # noqa: S310
                    return json.load(response)
            except HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(0.5)
        raise AssertionError(f"{path} is still unavailable")

    def wait_for_run(self, run_id: str, seconds: float = 240) -> dict[str, Any]:
        """Wait until a flow run has ended, and return it with its state."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.api(f"/flow_runs/{run_id}")
            if run["state_type"] in TERMINAL:
                return run
            time.sleep(0.5)
        raise AssertionError(f"the run is still {run['state_name']} after {seconds} s")

    def wait_until_up(self, server: "subprocess.Popen[bytes]", seconds: float = 180) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert server.poll() is None, (self.folder / "server.log").read_text()
            with suppress(URLError, ConnectionError):
                self.api("/health")
                return
            time.sleep(0.3)
        raise AssertionError(f"the server does not answer after {seconds} s")


@contextmanager
def _process(*command: str, ui: PrefectUI, log: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process; its children are killed with it."""
    with (ui.folder / log).open("wb") as log_file:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            env=ui.environment,
            cwd=ui.folder,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with suppress(ProcessLookupError):  # the children have ended, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def _configure(folder: Path) -> PrefectUI:
    """Settings of a server to start on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_API_URL": f"{url}/api",  # the UI's default is port 4200
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONFAULTHANDLER": "1",  # if the server hangs, SIGABRT makes it log where
    }
    return PrefectUI(url, folder, environment)


def _start(ui: PrefectUI, running: ExitStack) -> None:
    """Start the server and a worker, and deploy.

    Raises:
        TimeoutError: the server hung after it had accepted the deployments, as Prefect's once
            did; the message has the stacks of its threads.
    """
    port = str(urlsplit(ui.url).port)
    start = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    server = running.enter_context(_process(*start, ui=ui, log="server.log"))
    ui.wait_until_up(server)
    work = ("prefect", "worker", "start", "--pool", "default", "--type", "process")
    running.enter_context(_process(*work, ui=ui, log="worker.log"))
    with _process("prefect-imageqa", "deploy", ui=ui, log="deploy.log") as deploying:
        try:
            status = deploying.wait(timeout=180)
            ui.api("/deployments/filter", {})
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            os.killpg(server.pid, signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=20)
            raise TimeoutError((ui.folder / "server.log").read_text()) from error
        assert status == 0, (ui.folder / "deploy.log").read_text()


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectUI]:
    """A server with the shipped deployments, and a worker that executes their runs."""
    with ExitStack() as running:
        try:
            ui = _configure(tmp_path_factory.mktemp("prefect"))
            _start(ui, running)
        except TimeoutError as error:
            warnings.warn(f"the Prefect server hung and is restarted: {error}", stacklevel=1)
            running.close()
            ui = _configure(tmp_path_factory.mktemp("prefect"))
            _start(ui, running)
        yield ui


def form_field(form: Page, path: str) -> Locator:
    """A parameter of the form, or a nested field: its label, description and input."""
    element = form.locator("body")
    for name in path.split("/"):
        label = form.locator(
            ":scope > .p-label__header .schema-form-property__label",
            has_text=re.compile(rf"^{re.escape(name)}( \(Optional\))?$"),
        )
        element = element.locator(".schema-form-property").filter(has=label)
    return element


def fill(form: Page, path: str, text: str) -> None:
    """Fill in a field of the form."""
    form_field(form, path).locator("textarea, input").fill(text)


def press(page: Page, button: str, path: str) -> Any:
    """Press a button that posts to an API path; retry while the server's database is locked."""
    for _ in range(5):
        with page.expect_response(
            lambda response: response.request.method == "POST" and response.url.endswith(path)
        ) as response:
            page.get_by_role("button", name=button).click()
        if response.value.status != 503:
            break
    assert response.value.ok, response.value.text()
    return response.value.json()


def artifacts_of(ui: Any, run_id: str) -> dict[str, str]:
    """The ids of a run's artifacts, by the last part of their keys."""
    found = ui.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    return {artifact["key"].rpartition("-")[2]: artifact["id"] for artifact in found}
