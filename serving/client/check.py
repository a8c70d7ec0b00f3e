"""Which model the servers of an endpoint serve."""

import asyncio

from ..errors import EndpointError, EndpointUnreachableError
from ..printable import printable
from .pool import ServerPool
from .servers import Health, Server

_MAX_LISTED = 20
_MAX_NAME = 100


async def served_model(pool: ServerPool, model: str | None) -> str:
    """The name of the model to use.

    A server that does not answer counts as down from now on, if another one answers. With a
    `model`, it must be that one.

    Raises:
        EndpointUnreachableError: no server answers.
        EndpointError: a server rejects the key, or does not serve the model.
    """

    async def ask(server: Server) -> str | EndpointUnreachableError:
        try:
            return _choose(server, await server.transport.served_models(), model)
        except EndpointUnreachableError as error:
            return error

    servers = list(pool.servers)
    answers = await asyncio.gather(*map(ask, servers))
    names = [answer for answer in answers if isinstance(answer, str)]
    errors = [answer for answer in answers if isinstance(answer, EndpointUnreachableError)]
    if not names:
        raise errors[0]
    if len(set(names)) > 1:
        raise EndpointError(
            f"the servers serve different models ({_listed(sorted(set(names)))}): "
            "name one with `model`"
        )
    for server, answer in zip(servers, answers, strict=True):
        if not isinstance(answer, str):
            pool.lose(server, Health.DOWN, "does not answer")
    return names[0]


def _choose(server: Server, served: list[str], model: str | None) -> str:
    if not served:
        raise EndpointError(f"{server.name} serves no model: start it with a model")
    if model is None:
        if len(served) != 1:
            raise EndpointError(
                f"{server.name} serves {len(served)} models ({_listed(served)}): "
                "name one with `model`"
            )
        return served[0]
    if model not in served:
        raise EndpointError(f"{server.name} does not serve {model!r}; it serves: {_listed(served)}")
    return model


def _listed(names: list[str]) -> str:
    """The names of models for a message: some of them, if a gateway has hundreds."""
    listed = ", ".join(printable(name, _MAX_NAME) for name in names[:_MAX_LISTED])
    return f"{listed}, ..." if len(names) > _MAX_LISTED else listed
