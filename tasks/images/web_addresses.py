"""Which web addresses images may be fetched from: URLs, IP addresses and DNS answers.

A dataset comes from a stranger, and this machine may reach what the stranger cannot: a cloud's
metadata service, the database next door. So only addresses of the public internet are connected
to, by default. The address that was checked is the one that is connected to; a name that is
looked up again is checked again.
"""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ...serving.endpoint import safe_url
from ..records import Kind, RowError

MAX_URL = 8000
"""Characters a URL may have; most servers refuse longer ones."""

_METADATA = {
    ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's, a public address
        "192.0.0.192",  # Oracle Cloud
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
}
"""Metadata services that are not at a link-local address."""

_PRIVATE: list[IPv4Network | IPv6Network] = [
    *map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8")),
    IPv4Network("100.64.0.0/10"),  # carrier-grade NAT
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_TUNNELS = [IPv6Network("2002::/16"), IPv6Network("2001::/32")]
"""6to4 and Teredo carry IPv4 addresses and have gone out of use."""
_NAT64 = IPv6Network("64:ff9b::/96")


class RefusedAddressError(OSError):
    """A host leads only to addresses that are not connected to."""


def web_url(text: str) -> URL:
    """Parse an `http://` or `https://` URL of an image; its fragment is dropped.

    Raises:
        RowError: it is no such URL (bad_row), or one with a user or password (image_refused).
    """
    try:
        url = _parse(text).with_fragment(None)
        usable = url.scheme in {"http", "https"} and url.raw_host and url.port
    except ValueError:
        usable = False
    if not usable or len(text) > MAX_URL:
        raise RowError(Kind.BAD_ROW, f"{shown(text)} is no complete http:// or https:// URL")
    if url.raw_user is not None or url.raw_password is not None:
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{shown(text)} is given with a user or password: images are fetched without",
        )
    return url


def _parse(text: str) -> URL:
    try:
        return URL(text)
    except IndexError as error:  # so yarl fails on brackets without an address
        raise ValueError(str(error)) from None


def redirected(url: URL, location: str) -> URL:
    """Where a redirect leads, if it is followed.

    Raises:
        RowError: it leads to no URL (image_missing), out of the web, from https to http, or to
            a URL with a user or password (image_refused).
    """
    try:
        target = url.join(_parse(location))
        text = str(target)  # only now is the port looked at
    except ValueError:
        raise RowError(Kind.IMAGE_MISSING, f"{shown(url)}: redirects to no URL") from None
    if target.scheme not in {"http", "https"} or (url.scheme, target.scheme) == ("https", "http"):
        way = f"from {url.scheme}:// to {target.scheme[:20]}://"
        raise RowError(Kind.IMAGE_REFUSED, f"{shown(url)}: a redirect {way} is not followed")
    return web_url(text)


def shown(url: URL | str) -> str:
    """A stranger's URL for messages: one short line without user, password and query."""
    text = ascii(safe_url(str(url)))[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."


def check_host(url: URL, allow_private: bool) -> None:
    """Refuse a URL whose host is an IP address that is not connected to.

    Names are left to `CheckedResolver`, which no client asks about an IP address.

    Raises:
        RowError: the address is refused, or in a spelling that readers disagree about
            (image_refused).
    """
    host = (url.raw_host or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        if _is_odd_address(host):
            reason = "its host is an IP address in an odd spelling"
            raise RowError(Kind.IMAGE_REFUSED, f"{shown(url)}: {reason}") from None
        return
    if not may_connect(address, allow_private):
        raise refused(url)


def refused(url: URL) -> RowError:
    """The error of a URL whose host is at an address that is not connected to."""
    return RowError(
        Kind.IMAGE_REFUSED,
        f"{shown(url)}: {url.raw_host} is at a private or reserved address; "
        "images are fetched from the public internet only",
    )


def _is_odd_address(host: str) -> bool:
    """Whether the system would read the host as an IPv4 address: 127.1, 0x7f.1, 2130706433."""
    try:
        socket.inet_aton(host)
    except (OSError, ValueError):
        return False
    return True


def may_connect(address: IPv4Address | IPv6Address, allow_private: bool) -> bool:
    """Whether images may be fetched from an address.

    An IPv6 address that stands for an IPv4 one (mapped, NAT64) counts as that. Link-local addresses
    and the metadata services of clouds, which hand out credentials, are refused even where loopback
    and private networks are allowed.
    """
    if isinstance(address, IPv6Address):
        address = _ipv4_within(address) or IPv6Address(int(address))  # without its zone
    if address in _METADATA or address.is_link_local:
        return False
    if any(address in network for network in _PRIVATE):
        return allow_private
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    tunnelled = any(address in network for network in _TUNNELS)
    return address in _GLOBAL_UNICAST and address.is_global and not tunnelled


def _ipv4_within(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


class CheckedResolver(AbstractResolver):
    """Looks names up, and gives only addresses that may be connected to."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._dns = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look a name up.

        Raises:
            RefusedAddressError: it has addresses, but none of them may be connected to.
            OSError: it could not be found.
        """
        found = await self._dns.resolve(host, port, family)
        usable = [one for one in found if may_connect(ip_address(one["host"]), self._allow_private)]
        if found and not usable:
            raise RefusedAddressError(f"{host} has no public address")
        return usable

    async def close(self) -> None:
        """Nothing is kept open."""
