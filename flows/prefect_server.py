"""Checks of the configured Prefect server: is it up, does its version match, has it a worker?"""

import logging
import re
import time
from json import JSONDecodeError

import prefect
from httpx import HTTPError, HTTPStatusError, InvalidURL, TimeoutException
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    temporary_settings,
)

from ..serving.client.proxies import proxy_of
from ..serving.endpoint import safe_url
from ..serving.temporary_server import is_temporary
from ..tasks.errors import PrefectServerError

TIMEOUT_SECONDS = 10.0
"""How long a server may take to report its version."""

WAIT_SECONDS = 60.0
"""How long to wait for a server that is overloaded or starting."""

POLL_SECONDS = 1.0

TRANSIENT_STATUSES = {429, 502, 503, 504}
"""HTTP statuses of a server that is overloaded or starting."""

SET_URL = "prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"

_LOGGER = logging.getLogger("prefect_imageqa.flows")


class _ServerBusyError(PrefectServerError):
    """The server may answer soon: it times out, or says that it is overloaded or starting."""


def check_server(*, needed: bool = False) -> None:
    """Check that the configured Prefect server answers and has the same major version.

    A busy server is waited for; one that refuses connections is not.

    Args:
        needed: whether a server must be configured. If not, a temporary one is started for a flow
            run, unless Prefect's settings forbid that.

    Raises:
        PrefectServerError: it cannot be used; the message names the command that fixes it.
    """
    url = PREFECT_API_URL.value()
    if not url and (needed or not PREFECT_SERVER_EPHEMERAL_ENABLED.value()):
        raise PrefectServerError(
            f"no Prefect server is configured: `prefect server start`, then `{SET_URL}`"
        )
    if url is None or is_temporary(url):
        return
    retries = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    client = get_client(httpx_settings={"timeout": TIMEOUT_SECONDS}, sync_client=True)
    with retries, client:
        if client.server_type == ServerType.CLOUD:  # works with every version
            return
        try:
            _wait_for_version(client, safe_url(url))
        except PrefectServerError as error:
            if (proxy := proxy_of(url)) is None:
                raise
            raise PrefectServerError(
                f"{error}. It was asked through the proxy {safe_url(proxy)}: if that is not the "
                "way to it, add its host to the environment variable no_proxy"
            ) from None


def _wait_for_version(client: SyncPrefectClient, url: str) -> None:
    deadline: float | None = None
    while True:
        try:
            return _check_version(client, url)
        except _ServerBusyError:
            if deadline is None:
                deadline = time.monotonic() + WAIT_SECONDS
                _LOGGER.warning(
                    "the Prefect server at %s does not answer yet: waiting, up to %.0f s",
                    url,
                    WAIT_SECONDS,
                )
            elif time.monotonic() >= deadline:
                raise
        time.sleep(POLL_SECONDS)


def _check_version(client: SyncPrefectClient, url: str) -> None:
    # The messages of httpx are not used: they may contain the URL with a password.
    try:
        version = client.api_version()
    except HTTPStatusError as error:
        status = error.response.status_code
        kind = _ServerBusyError if status in TRANSIENT_STATUSES else PrefectServerError
        raise kind(_status_message(url, status)) from None
    except TimeoutException as error:
        raise _ServerBusyError(
            f"the Prefect server at {url} does not answer ({type(error).__name__}): try again "
            f"later, or configure another with `{SET_URL}`"
        ) from None
    except (JSONDecodeError, UnicodeDecodeError):
        version = ""
    except (HTTPError, InvalidURL, OSError) as error:
        raise PrefectServerError(
            f"no Prefect server answers at {url} ({type(error).__name__}): `prefect server start`, "
            f"or configure another with `{SET_URL}`"
        ) from None
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.[\w.+-]{1,60}", version):
        raise PrefectServerError(
            f"{url} is not a Prefect API: its URL must end with /api, as in `{SET_URL}`"
        )
    own = prefect.__version__.partition(".")[0]
    if version.partition(".")[0] != own:
        raise PrefectServerError(
            f"the Prefect server at {url} has version {version}, but this is Prefect "
            f"{prefect.__version__}: `pip install 'prefect=={own}.*'` where the server runs, or "
            f"configure another with `{SET_URL}`"
        )


def _status_message(url: str, status: int) -> str:
    if status in (401, 403):
        return (
            f"the Prefect server at {url} rejects the credentials (HTTP {status}): "
            "`prefect config set PREFECT_API_AUTH_STRING=user:password`"
        )
    if status in TRANSIENT_STATUSES:
        return f"the Prefect server at {url} is not available (HTTP {status}): try again later"
    return f"{url} is not a Prefect API (HTTP {status}): `{SET_URL}`"


def has_worker(client: SyncPrefectClient, pool: str) -> bool:
    """Whether a worker polls a work pool; without one, its runs stay Late."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return bool(client.read_workers_for_work_pool(pool, worker_filter=online))
