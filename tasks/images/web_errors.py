"""What the errors of requests for web images mean: pure functions, no network."""

import aiohttp
from yarl import URL

from ...serving.client.responses import reason
from ..records import Kind, RowError
from .web_addresses import RefusedAddressError, address_refused, display_url


class TransientError(RowError):
    """A failure that a retry may fix.

    Attributes:
        wait: seconds that the server asks to wait first.
        unreachable: host and port, if connecting failed or nothing was answered; else empty.
        is_slow: whether the host answers, but takes too long to send the image: a retry would take
            as long.
    """

    def __init__(self, kind: Kind, message: str, wait: float = 0, unreachable: str = "") -> None:
        super().__init__(kind, message)
        self.wait = wait
        self.unreachable = unreachable
        self.is_slow = False


def request_error(
    url: URL,
    error: aiohttp.ClientError | OSError | ValueError,
    limit: float,
    *,
    answered: bool,
) -> RowError:
    """Turn an error of a request into one of its row.

    Args:
        url: the URL requested.
        error: what the HTTP client has raised.
        limit: seconds that the request could take.
        answered: whether the host has started to answer, or had no time to.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return RowError(Kind.CONNECTION, f"{display_url(url)}: its certificate is not trusted")
    if isinstance(error, ValueError):  # from aiohttp, or from encoding the host name
        return RowError(Kind.BAD_ROW, f"{display_url(url)} is not a URL that can be requested")
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, RefusedAddressError):
            return address_refused(url)
        message = f"{display_url(url)}: {reason(error)}"
        return TransientError(Kind.CONNECTION, message, unreachable=host_port(url))
    if isinstance(error, TimeoutError):
        unreachable = "" if answered else host_port(url)  # a slow image is not a dead host
        message = f"{display_url(url)}: no image within {limit:g} s"
        return TransientError(Kind.TIMEOUT, message, unreachable=unreachable)
    return TransientError(Kind.CONNECTION, f"{display_url(url)}: {reason(error)}")


def host_port(url: URL) -> str:
    """Host and port of a URL."""
    return f"{url.raw_host}:{url.port}"
