"""The server that Prefect starts for a moment: the user's settings stay."""

import pytest
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import (
    PREFECT_API_BLOCKS_REGISTER_ON_START,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE,
    Settings,
)
from prefect_imageqa.serving.ephemeral_server import ephemeral_settings

ANALYTICS = "PREFECT_SERVER_ANALYTICS_ENABLED"
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
SECONDS = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"


@pytest.mark.parametrize(
    ("given", "analytics", "seconds"),
    [({}, False, 120), ({ANALYTICS: "true"}, True, 120), ({SECONDS: "500"}, False, 500)],
    ids=["nothing set", "telemetry", "patience"],
)
def test_what_is_not_set_suits_a_first_start(
    given: dict[str, str], analytics: bool, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (ANALYTICS, SECONDS, HEARTBEAT, "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    users = SettingsContext(profile=get_settings_context().profile, settings=Settings())
    with users, ephemeral_settings():
        # The thread that sends heartbeats holds up the end of a run by up to a second.
        assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() is None
        assert PREFECT_SERVER_ANALYTICS_ENABLED.value() is analytics
        # To find all types of blocks takes long.
        assert not PREFECT_API_BLOCKS_REGISTER_ON_START.value()
        assert not PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION.value()
        assert PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE.value() == 50
        assert seconds == PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()


@pytest.mark.parametrize(
    ("url", "seconds"), [("", "60"), ("http://127.0.0.1:4200/api", "180")], ids=["own", "server's"]
)
def test_heartbeats_are_sent_if_somebody_may_watch_them(
    url: str, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        monkeypatch.delenv(HEARTBEAT, raising=False)
    else:
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        monkeypatch.setenv(HEARTBEAT, seconds)
    users = SettingsContext(profile=get_settings_context().profile, settings=Settings())
    with users, ephemeral_settings():
        assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == int(seconds)
