"""Settings for a temporary server of Prefect, which runs if none is configured."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from .temporary_server import STARTUP_SECONDS, is_temporary


@contextmanager
def ephemeral_settings() -> Iterator[None]:
    """Prefect's settings where no server is configured; the user's own stay."""
    if not is_temporary(PREFECT_API_URL.value()):
        yield
        return
    setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    seconds = max(setting.value(), STARTUP_SECONDS)
    defaults = {
        # Its telemetry logs a traceback when the database is busy at the start.
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        # Nobody watches them, and the thread that sends them holds up the end by up to a second.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings({setting: seconds}, set_defaults=defaults):
        yield
