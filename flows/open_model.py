"""The model of a run: at a running endpoint, or on a server started for the run."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache

from prefect.runtime import deployment
from pydantic import SecretStr

from ..serving.background_loop import BackgroundLoop
from ..serving.client.client import ChatClient
from ..serving.client.no_server import NoServer
from ..serving.client.stats import ClientStats
from ..serving.endpoint import VLLMEndpoint, is_block_name, load_endpoint
from ..serving.server.checkpoint import checkpoint_digest
from ..serving.server.launch import ServerOptions, local_checkpoint
from ..serving.server.recovery import Recovery
from ..serving.server.server import VLLMServer
from ..tasks.errors import EndpointError, EndpointUnreachableError
from ..tasks.runs.checks import Checks
from ..tasks.runs.parameters import Limits
from .batch_results import NO_RESULT, BatchResults

API_KEY = "PREFECT_IMAGEQA_API_KEY"
"""Environment variable with the API key of endpoints that are given by URL."""


@dataclass(frozen=True)
class RunModel:
    """The model of a run.

    Attributes:
        revision: identifies its weights; empty where unknown.
        results: what it has replied already, in batch files; None where it is asked.
        connect: opens the client and checks its servers, unless that is done.
    """

    client: ChatClient
    revision: str
    results: BatchResults | None = None
    connect: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        """The name it is served under; empty if only its servers know it, and none answers."""
        with suppress(EndpointUnreachableError):
            if self.client.endpoint.model is None:
                self.connect()
            return self.client.model
        return ""


def resolve_endpoint(
    endpoint: str | list[str] | VLLMEndpoint | BatchResults | None, model: str | None
) -> VLLMEndpoint | BatchResults | None:
    """The endpoint of URLs or a block name; None if a server must be started for the model.

    URLs get the API key of the environment, if it has one.

    Raises:
        EndpointError: neither is given, a URL or the key is malformed, or no block has that name.
        ServerError: there is no such checkpoint.
    """
    if isinstance(endpoint, BatchResults):
        return endpoint
    if isinstance(endpoint, str) and not is_block_name(endpoint):
        endpoint = endpoint.split()
    if endpoint:
        block = load_endpoint(endpoint, model)
        return with_key(block) if isinstance(endpoint, list) else block
    if not model:
        raise EndpointError(
            "no model to ask: give the endpoint of a running server, or a model to start a server "
            "for"
        )
    local_checkpoint(model)
    return None


def resolve_judge(checks: Checks) -> VLLMEndpoint | None:
    """The endpoint of the judge; None if the run's own is asked.

    Raises:
        EndpointError: a URL is malformed, no block has that name, or there is only a model.
    """
    endpoint, model = (checks.judge_endpoint or "").strip(), (checks.judge_model or "").strip()
    if not endpoint:
        if model:
            raise EndpointError(f"check judge: model {model!r} needs an endpoint: --judge-endpoint")
        return None
    try:
        found = resolve_endpoint(endpoint, model or None)
    except EndpointError as error:
        raise EndpointError(f"check judge: {error}") from None
    return found if isinstance(found, VLLMEndpoint) else None  # always one: it is a text


def with_key(endpoint: VLLMEndpoint) -> VLLMEndpoint:
    """The endpoint with the API key of the environment.

    Not in a run of a deployment: whoever may start one chooses the URL, and could send himself the
    key of the worker. There, a saved block has both.
    """
    key = os.environ.get(API_KEY, "").strip()
    if not key or deployment.id:
        return endpoint
    try:
        return VLLMEndpoint(urls=endpoint.urls, model=endpoint.model, api_key=SecretStr(key))
    except ValueError:  # not shown: its text is about a header
        raise EndpointError(f"{API_KEY} has a line break or control character") from None


@contextmanager
def open_model(
    endpoint: str | list[str] | VLLMEndpoint | BatchResults | None,
    model: str | None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    loop: BackgroundLoop | None = None,
    watching: Callable[[ClientStats], AbstractContextManager[object]] = nullcontext,
    sharers: int = 1,
) -> Iterator[RunModel]:
    """Connect to the model and check it; without an endpoint, start a server and stop it on exit.

    Args:
        endpoint: the servers; or what they have replied already, then no server is asked.
        model: the name of the model, or what to serve.
        limits: requests in flight, and how long to wait for servers.
        loop: the event loop of the client.
        watching: shows the notes of the client, from before the check on.
        sharers: how many clients send requests to the servers at the same time, this one included.

    Raises:
        EndpointError: neither endpoint nor model is given, or the endpoint cannot be used.
        ServerError: the model's server could not be started.
    """
    block = resolve_endpoint(endpoint, model)
    if isinstance(block, BatchResults):
        with block.reported():
            yield RunModel(NoServer(str(model), NO_RESULT, limits.max_in_flight), "", block)
        return
    server, revision, recovery = None, "", None
    with ExitStack() as stack:
        if block is None:
            model = str(model)
            # With a random key, other users of this machine cannot use the server.
            key = secrets.token_urlsafe()
            server = stack.enter_context(VLLMServer(ServerOptions(model, api_key=key)))
            block = VLLMEndpoint(urls=[server.url], model=server.model_name, api_key=key)
            recovery = Recovery(server, lambda: client.stats.completions)
            if checkpoint := local_checkpoint(model):
                revision = checkpoint_digest(checkpoint)
        client = _client(block, limits, loop, recovery, sharers)
        stack.enter_context(_connected(client, limits, watching))
        try:
            yield RunModel(client, revision)
        except EndpointError:
            if server is not None:
                server.check()  # if it died, this raises the reason with the end of its log
            raise


def judge_model(
    endpoint: VLLMEndpoint,
    limits: Limits,
    loop: BackgroundLoop,
    watching: Callable[[ClientStats], AbstractContextManager[object]],
    stack: ExitStack,
) -> RunModel:
    """A model that is not asked before `connect` is called: its server need not be up until then.

    Args:
        endpoint: the servers.
        limits: as for `open_model`, like `loop` and `watching`.
        loop: the event loop of the client.
        watching: shows the notes of the client.
        stack: closes it.
    """
    client = _client(endpoint, limits, loop)

    @cache
    def problem() -> EndpointUnreachableError | None:
        try:
            stack.enter_context(_connected(client, limits, watching))
        except EndpointUnreachableError as error:
            return error
        except EndpointError as error:
            raise EndpointError(f"check judge: {error}") from None
        return None

    def connect() -> None:
        if (error := problem()) is not None:  # not waited for twice
            raise error

    return RunModel(client, "", connect=connect)


def _client(
    endpoint: VLLMEndpoint,
    limits: Limits,
    loop: BackgroundLoop | None,
    recovery: Recovery | None = None,
    sharers: int = 1,
) -> ChatClient:
    return ChatClient(
        endpoint,
        limits.max_in_flight,
        loop,
        request_timeout=limits.request_timeout,
        server_wait=limits.server_wait,
        recovery=recovery,
        sharers=sharers,
    )


@contextmanager
def _connected(
    client: ChatClient,
    limits: Limits,
    watching: Callable[[ClientStats], AbstractContextManager[object]],
) -> Iterator[None]:
    """Open a client and check its servers; closed on exit."""
    with client, watching(client.stats):
        client.check(limits.server_wait if limits.wait else 0.0)
        yield
