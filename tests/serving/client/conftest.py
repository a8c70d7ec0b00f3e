"""Settings of the client that make its tests quick."""

import socket
from collections.abc import Iterator

import pytest
from prefect_imageqa.serving.client import pool, sender, watchdog


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shortens retries; gives the number of failures before each one."""
    failures: list[int] = []

    def backoff(count: int) -> float:
        failures.append(count)
        return 0.0

    monkeypatch.setattr(sender, "backoff", backoff)
    monkeypatch.setattr(sender, "CRASH_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(sender, "_CUT_CHECK_SECONDS", 0.05)
    return failures


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a quiet server after 0.2 s, and gives up a test request after 0.2 s."""
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "_NOTES_SECONDS", 0.02)
    for module in (pool, sender, watchdog):
        monkeypatch.setattr(module, "TEST_SECONDS", 0.2)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, watchful: None) -> None:
    """Waits long for the reply to a test request: a server that answers them is never stalled."""
    monkeypatch.setattr(watchdog, "TEST_SECONDS", 60.0)


@pytest.fixture
def dead_url() -> Iterator[str]:
    """A URL on which nothing listens, reserved for the test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _show_notes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "_NOTES_SECONDS", 0.02)
