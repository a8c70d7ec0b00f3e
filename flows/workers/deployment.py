"""The deployment of workers on Prefect's server, and requests that may not hold up a run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from shlex import quote

from httpx import HTTPError, HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from ...serving.endpoint import safe_url
from ...serving.temporary_server import is_temporary
from ...tasks.errors import PrefectServerError
from ..prefect_server import SET_URL, TRANSIENT_STATUSES

DEPLOYMENT = "image-qa-worker/worker"
"""The shipped deployment of workers."""

REQUEST_SECONDS = 10.0
"""How long Prefect's server may take to answer."""

NO_ANSWER = (HTTPError, OSError, PrefectException, ValueError)
"""What a request raises that fails and may succeed later."""


@contextmanager
def open_client() -> Iterator[SyncPrefectClient]:
    """Open a client of the Prefect server that the workers have, too.

    Raises:
        PrefectServerError: there is only a temporary one.
    """
    if is_temporary(PREFECT_API_URL.value()):
        raise PrefectServerError(
            "the workers of a work pool need a Prefect server that they can reach, not the "
            f"temporary one of this run: `prefect server start`, then `{SET_URL}`"
        )
    with one_attempt():
        client = get_client(sync_client=True)
    with client:
        yield client


def find_pool(client: SyncPrefectClient, deployment: str) -> str | None:
    """The work pool of a deployment; None if a process serves it.

    Raises:
        PrefectServerError: there is no such deployment, the server does not answer, or the pool is
            paused.
    """
    if deployment.count("/") != 1:
        raise PrefectServerError(
            f"{deployment!r} names no deployment of workers: write it as {DEPLOYMENT}"
        )
    try:
        with named_errors(deployment):
            pool = client.read_deployment_by_name(deployment).work_pool_name
        is_paused = pool is not None and client.read_work_pool(pool).is_paused
    except NO_ANSWER as error:
        raise PrefectServerError(
            f"{server()} does not say where {deployment!r} runs ({type(error).__name__}): run "
            "again when it does"
        ) from None
    if pool and is_paused:
        raise PrefectServerError(
            f"the work pool {pool!r} is paused: `prefect work-pool resume {quote(pool)}`"
        )
    return pool


@contextmanager
def named_errors(deployment: str) -> Iterator[None]:
    """Turn errors that stay into a line that says what to do.

    Raises:
        PrefectServerError: there is no such deployment, or it does not take what it is given.
    """
    try:
        yield
    except ObjectNotFound:
        raise PrefectServerError(
            f"{server()} has no deployment {deployment!r}: `prefect-imageqa deploy` creates "
            f"{DEPLOYMENT}"
        ) from None
    except HTTPStatusError as error:
        status = error.response.status_code
        if status in TRANSIENT_STATUSES or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        raise PrefectServerError(
            f"{server()} rejects a flow run of {deployment!r} (HTTP {status}): is it a deployment "
            "of workers, and of this version? `prefect-imageqa deploy` updates it"
        ) from None


def one_attempt() -> AbstractContextManager[object]:
    """Keep requests inside short, and do not repeat them: there is other work to do."""
    return temporary_settings(
        {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: REQUEST_SECONDS}
    )


def server() -> str:
    """Prefect's server, in messages."""
    return f"the Prefect server at {safe_url(str(PREFECT_API_URL.value()))}"
