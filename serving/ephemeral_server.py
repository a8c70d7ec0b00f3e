"""Settings for the server that Prefect starts for a moment, if none is configured."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

STARTUP_SECONDS = 120
"""The first start, on an empty database, takes about 20 seconds: as long as Prefect allows."""


@contextmanager
def ephemeral_settings() -> Iterator[None]:
    """Prefect's settings where an ephemeral server may be started; the user's own stay."""
    setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    seconds = max(setting.value(), STARTUP_SECONDS)
    # Its telemetry logs a traceback when the database is busy at the start.
    defaults = {PREFECT_SERVER_ANALYTICS_ENABLED: False}
    with temporary_settings({setting: seconds}, set_defaults=defaults):
        yield
