"""Which model the servers of an endpoint serve."""

import asyncio

from ..errors import EndpointError, EndpointUnreachableError
from .pool import ServerPool
from .servers import Health, Server


async def served_model(pool: ServerPool, model: str | None) -> str:
    """The name of the model to use.

    A server that does not answer counts as down from now on, if another one answers.

    Args:
        pool: the servers.
        model: the name it must have; None if any will do.

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
            f"the servers serve different models ({', '.join(sorted(set(names)))}): "
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
                f"{server.name} serves {len(served)} models ({', '.join(served)}): "
                "name one with `model`"
            )
        return served[0]
    if model not in served:
        raise EndpointError(
            f"{server.name} does not serve {model!r}; it serves: {', '.join(served)}"
        )
    return model
