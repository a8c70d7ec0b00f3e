"""Prefect's server is away when a run ends: the run ends all the same, and soon."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule
from prefect import task
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_imageqa import ImageQAError
from prefect_imageqa.flows import prefect_outage
from prefect_imageqa.flows.prefect_flow import deployable_flow
from prefect_imageqa.serving.server.process import terminate_on_signals

MAX_SECONDS = 60
"""A run takes about 2 s, more on a busy machine; Prefect on its own would take minutes."""


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy before the Prefect server, through which runs and their events reach it."""
    server = urlsplit(str(PREFECT_API_URL.value()))
    assert server.hostname
    assert server.port
    EventsWorker.drain_all()  # the next one connects to the proxy
    proxy = FaultProxy(server.hostname, server.port)
    with proxy, temporary_settings({PREFECT_API_URL: f"{proxy.url}/api"}):
        yield proxy
        prefect_outage.drop_unsent()


@pytest.fixture
def away(proxy: FaultProxy) -> Iterator[ExitStack]:
    """Enter `proxy.away()` here; closing it brings the server back."""
    with ExitStack() as stack:
        yield stack


def flow_of(body: Callable[[], object]) -> Any:
    """A flow that has a task run, so that there are events to be sent."""

    @task(persist_result=False)
    def noop() -> None: ...

    @deployable_flow(name="outage", flow_run_name="outage", persist_result=False)
    def flow() -> object:
        noop()
        return body()

    return flow


@contextmanager
def soon() -> Iterator[None]:
    """Check that a process could end soon after what is done inside."""
    started = time.monotonic()
    try:
        yield
    finally:
        EventsWorker.drain_all()
        assert time.monotonic() - started < MAX_SECONDS


def back_when_missed(away: ExitStack, caplog: pytest.LogCaptureFixture) -> threading.Thread:
    """Bring the server back as soon as the run has said that it does not answer."""

    def wait() -> None:
        while "does not answer" not in caplog.text:
            time.sleep(0.05)
        away.close()

    return threading.Thread(target=wait, daemon=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_run_whose_server_is_lost_returns_its_result(
    proxy: FaultProxy,
    away: ExitStack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_outage, "FINAL_WAIT_SECONDS", 5.0)

    def body() -> int:
        away.enter_context(proxy.away())
        return 5

    with soon():
        assert flow_of(body)() == 5
    server = f"the Prefect server at {proxy.url}/api"
    assert warnings(caplog) == [
        f"{server} does not answer (ConnectError): waiting, up to 5 s",
        f"{server} does not know how this run ended",
    ]


def test_a_run_whose_server_hangs_returns_its_result(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_outage, "FINAL_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(prefect_outage, "CHECK_SECONDS", 0.5)

    def body() -> int:
        proxy.set_rules([Rule("hang")])
        return 5

    with soon():
        assert flow_of(body)() == 5


def test_a_server_that_comes_back_is_told_how_the_run_ended(
    proxy: FaultProxy,
    away: ExitStack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It does not get the events: WebSockets do not pass the proxy. That must not take long.
    monkeypatch.setattr(prefect_outage, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(prefect_outage, "EXIT_SECONDS", 0.0)

    def body() -> int:
        away.enter_context(proxy.away())
        back_when_missed(away, caplog).start()
        return 5

    with soon(), prefect_outage.bounded_exit():
        state = flow_of(body)(return_state=True)
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
    assert flow_run.state_name == "Completed"
    server = f"the Prefect server at {proxy.url}/api"
    assert warnings(caplog) == [
        f"{server} does not answer (ConnectError): waiting, up to 45 s",
        f"sending what is left to {server}: up to 0 s",
        f"{server} has not received all events and log lines",
    ]


def test_a_run_that_fails_without_its_server_raises_the_reason(
    proxy: FaultProxy, away: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefect_outage, "FINAL_WAIT_SECONDS", 0.0)

    def body() -> None:
        away.enter_context(proxy.away())
        raise ImageQAError("the reason")

    with soon(), pytest.raises(ImageQAError, match="the reason"):
        flow_of(body)()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_run_that_is_stopped_does_not_wait_for_its_server(
    number: signal.Signals,
    error: type[BaseException],
    proxy: FaultProxy,
    away: ExitStack,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def body() -> None:
        away.enter_context(proxy.away())
        signal.raise_signal(number)

    with soon(), terminate_on_signals(), pytest.raises(error):
        flow_of(body)()
    [ended] = warnings(caplog)
    assert ended.endswith("how this run ended: run it again with the same parameters to resume")
