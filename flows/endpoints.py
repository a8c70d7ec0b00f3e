"""The client a run asks: over a running endpoint, or a server started for the run."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from prefect import get_run_logger
from prefect.logging.loggers import LoggingAdapter

from ..serving.background import BackgroundLoop
from ..serving.client.client import ChatClient
from ..serving.endpoint import VLLMEndpoint, load_endpoint, safe_url
from ..serving.server.checkpoint import checkpoint_digest
from ..serving.server.launch import ServerOptions, local_checkpoint
from ..serving.server.recovery import Recovery
from ..serving.server.server import VLLMServer
from ..tasks.errors import EndpointError

RECONNECT_SECONDS = 45.0
"""How long a server that others run is waited for when it has gone."""


class Recover(Protocol):
    """Returns when the model can be asked again; called when its server has gone.

    `expected` says that the caller looks for the request that kills the server.

    Raises:
        EndpointError: the server of others did not come back.
        ServerError: the run's own server died too often.
    """

    def __call__(self, *, expected: bool = False) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class RunModel:
    """The model of a run.

    Attributes:
        client: asks it.
        revision: tells its versions apart, where that is known; else empty.
        recover: waits for its server, or starts it again.
    """

    client: ChatClient
    revision: str
    recover: Recover


def resolve_endpoint(
    endpoint: str | list[str] | VLLMEndpoint | None, model: str | None
) -> VLLMEndpoint | None:
    """The endpoint that is named; None where a server is to be started for the model.

    Raises:
        EndpointError: neither is named, a URL is malformed, or no block has that name.
        ServerError: there is no such checkpoint.
    """
    if isinstance(endpoint, str) and "://" in endpoint:
        endpoint = endpoint.split()
    if endpoint:
        return load_endpoint(endpoint, model)
    if not model:
        raise EndpointError(
            "there is nothing to ask: give the endpoint of a running server, "
            "or a model to start one for"
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
    """The model to ask, checked; its server is started where the run has none, and stopped after.

    Raises:
        EndpointError: neither endpoint nor model, or the endpoint cannot be used.
        ServerError: the model's server could not be started.
    """
    revision, server = "", None
    block = resolve_endpoint(endpoint, model)
    with ExitStack() as stack:
        if block is None:
            model = str(model)
            stack.enter_context(_serving_told_by(get_run_logger()))
            # A key of its own, so that nobody else on this machine uses the run's server.
            key = secrets.token_urlsafe()
            server = stack.enter_context(VLLMServer(ServerOptions(model, api_key=key)))
            block = VLLMEndpoint(urls=[server.url], model=server.model_name, api_key=key)
            if checkpoint := local_checkpoint(model):
                revision = checkpoint_digest(checkpoint)
        client = stack.enter_context(ChatClient(block, max_in_flight, loop))
        client.check()
        recover: Recover = _Return(client)
        if server is not None:
            recover = Recovery(server, lambda: client.stats.completions).recover
        try:
            yield RunModel(client, revision, recover)
        except EndpointError:
            if server is not None:
                server.check()  # a server of our own that died says why, with the end of its log
            raise


@dataclass(frozen=True)
class _Return:
    """Waits for servers that others run: all a run can do about them."""

    client: ChatClient

    def __call__(self, *, expected: bool = False) -> None:  # noqa: ARG002
        if not self.client.wait_until_up(RECONNECT_SECONDS):
            urls = ", ".join(map(safe_url, self.client.endpoint.urls))
            raise EndpointError(
                f"{urls}: no server has answered for {RECONNECT_SECONDS:.0f} s; when one is back, "
                "the same command goes on from here"
            )


class _Forward(logging.Handler):
    """Hands records of one logger to another."""

    def __init__(self, target: "logging.Logger | LoggingAdapter") -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        self._target.log(record.levelno, record.getMessage())


@contextmanager
def _serving_told_by(target: "logging.Logger | LoggingAdapter") -> Iterator[None]:
    """Show a server's start-up, which takes minutes for large models, in the run's log."""
    logger, forward = logging.getLogger("prefect_imageqa.serving"), _Forward(target)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(forward)
    try:
        yield
    finally:
        logger.removeHandler(forward)
        logger.setLevel(level)
        logger.propagate = propagate
