"""The client a run asks: over a running endpoint, or a server started for the run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..serving.checkpoint import checkpoint_digest
from ..serving.client import ChatClient
from ..serving.endpoint import VLLMEndpoint, load_endpoint
from ..serving.errors import EndpointError
from ..serving.launch import ServerOptions
from ..serving.server import VLLMServer


@contextmanager
def asked_model(
    endpoint: str | list[str] | VLLMEndpoint | None, model: str | None, max_in_flight: int
) -> Iterator[tuple[ChatClient, str]]:
    """A checked client, and the model's revision where it is known (else empty).

    Raises:
        EndpointError: neither endpoint nor model, or the endpoint cannot be used.
        ServerError: the model's server could not be started.
    """
    revision = ""
    with ExitStack() as stack:
        if endpoint:
            block = load_endpoint(endpoint, model)
        elif model:
            server = stack.enter_context(VLLMServer(ServerOptions(model)))
            block = VLLMEndpoint(urls=[server.url], model=server.model_name)
            if Path(model).is_dir():
                revision = checkpoint_digest(Path(model))
        else:
            raise EndpointError(
                "there is nothing to ask: give the endpoint of a running server, "
                "or a model to start one for"
            )
        client = stack.enter_context(ChatClient(block, max_in_flight))
        client.check()
        yield client, revision
