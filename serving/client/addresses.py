"""The addresses of a host: a name with several of them stands for several servers."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult


class PinnedResolver(AbstractResolver):
    """Resolves every name to one address, so that a session reaches only that server.

    URL, `Host` header and TLS certificate keep the name.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The pinned address."""
        del family
        version = ipaddress.ip_address(self._address).version
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=socket.AF_INET if version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""


async def addresses_of(url: str) -> Sequence[str] | None:
    """The addresses of a URL's host, in a stable order; None if the name cannot be resolved now.

    A host with IPv4 and IPv6 addresses is the same server twice: only IPv4 counts then.
    """
    parts = urlsplit(url)
    try:
        found: list[Any] = await asyncio.get_running_loop().getaddrinfo(
            str(parts.hostname), parts.port or parts.scheme, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):  # the latter for names such as "a..b"
        return None
    by_family = {
        family: sorted({str(address[0]) for kind, _, _, _, address in found if kind == family})
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    return by_family[socket.AF_INET] or by_family[socket.AF_INET6]
