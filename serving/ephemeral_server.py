"""Settings for a temporary server of Prefect, which runs if none is configured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.settings import (
    PREFECT_API_BLOCKS_REGISTER_ON_START,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE,
    temporary_settings,
)

from .temporary_server import STARTUP_SECONDS, is_temporary, wait_until_up

SERVER_DEFAULTS: dict[Any, Any] = {
    # Its telemetry logs a traceback when the database is busy at the start.
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
    # Only a UI lists types of blocks of which none is saved, and it takes long to find them all.
    PREFECT_API_BLOCKS_REGISTER_ON_START: False,
    PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION: False,
    # It records 50 states of task runs at once, or what there is after 5 seconds, and the rest when
    # it ends. Recorded one by one, a task run costs three times as much.
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE: 50,
}
"""Settings of the server; the user's own stay."""


@contextmanager
def ephemeral_settings() -> Iterator[None]:
    """Prefect's settings where no server is configured; the user's own stay.

    Raises:
        ImageQAError: the server that was started early does not start.
    """
    if not is_temporary(PREFECT_API_URL.value()):
        yield
        return
    setting = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    seconds = max(setting.value(), STARTUP_SECONDS)
    defaults = {
        **SERVER_DEFAULTS,
        # Nobody watches them, and the thread that sends them holds up the end by up to a second.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings({setting: seconds}, set_defaults=defaults):
        wait_until_up(seconds)
        yield
