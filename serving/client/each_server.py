"""A few requests sent to every server, to see how it treats them. Runs on the client's loop."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from ..types import Failure, FailureKind, Outcome
from .pool import ServerPool
from .transport import Transport


async def ask_each_server(
    pool: ServerPool, bodies: Sequence[bytes], seconds: float
) -> Mapping[str, Sequence[Outcome]]:
    """Send all requests at once to each server that is up; none is repeated, and none is counted.

    If none is up, all are asked: their failures say so.

    Args:
        pool: the servers.
        bodies: the requests as JSON, each for a few tokens.
        seconds: how long to wait for the replies.

    Returns:
        The outcomes of each server by its name, in the order of the requests.
    """
    transports = [server.transport for server in pool.up or pool.servers]
    asked = [_ask_all(transport, bodies, seconds) for transport in transports]
    outcomes = await asyncio.gather(*asked)
    return {each.name: found for each, found in zip(transports, outcomes, strict=True)}


async def _ask_all(
    transport: Transport, bodies: Sequence[bytes], seconds: float
) -> Sequence[Outcome]:
    return await asyncio.gather(*(_ask(transport, body, seconds) for body in bodies))


async def _ask(transport: Transport, body: bytes, seconds: float) -> Outcome:
    try:
        async with asyncio.timeout(seconds):
            return await transport.send(body, time.monotonic(), 1)
    except TimeoutError:
        return Failure(FailureKind.TIMEOUT, f"no reply within {seconds:g} s")
