"""How patient Prefect's client is with its server."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import SettingsContext, get_settings_context


@contextmanager
def client_settings(*, max_retries: int, timeout: float | None = None) -> Iterator[None]:
    """Bound the retries of each request in the block, and the seconds that one may take.

    Prefect's own `temporary_settings` validates all settings again, which takes 30 ms.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": max_retries})
    api = context.settings.api
    if timeout is not None:
        api = api.model_copy(update={"request_timeout": timeout})
    settings = context.settings.model_copy(update={"client": client, "api": api})
    with SettingsContext(profile=context.profile, settings=settings):
        yield
