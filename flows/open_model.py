"""The model of a run: at a running endpoint, or on a server started for the run."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from prefect import get_run_logger
from prefect.logging.loggers import LoggingAdapter

from ..serving.background_loop import BackgroundLoop
from ..serving.client.client import ChatClient
from ..serving.endpoint import VLLMEndpoint, load_endpoint, safe_url
from ..serving.server.checkpoint import checkpoint_digest
from ..serving.server.launch import ServerOptions, local_checkpoint
from ..serving.server.recovery import Recovery
from ..serving.server.server import VLLMServer
from ..tasks.errors import EndpointError

RECONNECT_SECONDS = 45.0
"""How long to wait for a lost server that the run has not started itself."""


class Recover(Protocol):
    """Called when the server is lost; returns when it answers again.

    `expected` means that the caller is searching for the request that crashes the server.

    Raises:
        EndpointError: an external server did not come back.
        ServerError: the run's own server died too often.
    """

    def __call__(self, *, expected: bool = False) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class RunModel:
    """The model of a run.

    Attributes:
        client: sends it requests.
        revision: identifies its weights; empty where unknown.
        recover: waits for its server, or restarts it.
    """

    client: ChatClient
    revision: str
    recover: Recover


def resolve_endpoint(
    endpoint: str | list[str] | VLLMEndpoint | None, model: str | None
) -> VLLMEndpoint | None:
    """The endpoint of URLs or a block name; None if a server must be started for the model.

    Raises:
        EndpointError: neither is given, a URL is malformed, or no block has that name.
        ServerError: there is no such checkpoint.
    """
    if isinstance(endpoint, str) and "://" in endpoint:
        endpoint = endpoint.split()
    if endpoint:
        return load_endpoint(endpoint, model)
    if not model:
        raise EndpointError(
            "no model to ask: give the endpoint of a running server, or a model to start a server "
            "for"
        )
    local_checkpoint(model)
    return None


@contextmanager
def open_model(
    endpoint: str | list[str] | VLLMEndpoint | None,
    model: str | None,
    max_in_flight: int,
    loop: BackgroundLoop | None = None,
) -> Iterator[RunModel]:
    """Connect to the model and check it; without an endpoint, start a server and stop it on exit.

    Raises:
        EndpointError: neither endpoint nor model is given, or the endpoint cannot be used.
        ServerError: the model's server could not be started.
    """
    revision, server = "", None
    block = resolve_endpoint(endpoint, model)
    with ExitStack() as stack:
        if block is None:
            model = str(model)
            stack.enter_context(_forward_server_log(get_run_logger()))
            # With a random key, other users of this machine cannot use the server.
            key = secrets.token_urlsafe()
            server = stack.enter_context(VLLMServer(ServerOptions(model, api_key=key)))
            block = VLLMEndpoint(urls=[server.url], model=server.model_name, api_key=key)
            if checkpoint := local_checkpoint(model):
                revision = checkpoint_digest(checkpoint)
        client = stack.enter_context(ChatClient(block, max_in_flight, loop))
        client.check()
        recover: Recover = _WaitForEndpoint(client)
        if server is not None:
            recover = Recovery(server, lambda: client.stats.completions).recover
        try:
            yield RunModel(client, revision, recover)
        except EndpointError:
            if server is not None:
                server.check()  # if it died, this raises the reason with the end of its log
            raise


@dataclass(frozen=True)
class _WaitForEndpoint:
    """Waits for external servers: a run cannot restart them."""

    client: ChatClient

    def __call__(self, *, expected: bool = False) -> None:  # noqa: ARG002
        if not self.client.wait_until_up(RECONNECT_SECONDS):
            urls = ", ".join(map(safe_url, self.client.endpoint.urls))
            raise EndpointError(
                f"{urls}: no server has answered for {RECONNECT_SECONDS:.0f} s; when one is back, "
                "run the same command again to resume"
            )


class _ForwardingHandler(logging.Handler):
    """Passes the records of one logger to another."""

    def __init__(self, target: "logging.Logger | LoggingAdapter") -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.log(record.levelno, record.getMessage())


@contextmanager
def _forward_server_log(target: "logging.Logger | LoggingAdapter") -> Iterator[None]:
    """Show a server's start-up, which takes minutes for large models, in the run's log."""
    logger, handler = logging.getLogger("prefect_imageqa.serving"), _ForwardingHandler(target)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
