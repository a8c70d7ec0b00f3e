"""Which web addresses images may be fetched from: URLs, IP addresses and DNS answers.

This prevents server-side request forgery: a dataset is untrusted, and this machine may reach what
its author cannot, such as a cloud's metadata service or an internal database. So by default only
public internet addresses are allowed. The connection goes to exactly the address that was checked;
when a name is resolved again, the result is checked again.
"""

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from ...serving.endpoint import safe_url
from ..records import Kind, RowError

MAX_URL = 8000
"""Characters; most servers reject longer URLs."""

_METADATA = {
    ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure, a public address
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
"""6to4 and Teredo embed IPv4 addresses and are obsolete."""
_NAT64 = IPv6Network("64:ff9b::/96")


class RefusedAddressError(OSError):
    """A host resolves only to addresses that are not allowed."""


def parse_image_url(text: str) -> URL:
    """Parse an `http://` or `https://` URL of an image; its fragment is dropped.

    Raises:
        RowError: it is not such a URL (bad_row), or it has a user or password (image_refused).
    """
    try:
        url = _parse(text).with_fragment(None)
        usable = url.scheme in {"http", "https"} and url.raw_host and url.port
    except ValueError:
        usable = False
    if not usable or len(text) > MAX_URL:
        message = f"{display_url(text)} is not a complete http:// or https:// URL"
        raise RowError(Kind.BAD_ROW, message)
    if url.raw_user is not None or url.raw_password is not None:
        raise RowError(
            Kind.IMAGE_REFUSED,
            f"{display_url(text)} has a user or password: images are fetched without credentials",
        )
    return url


def _parse(text: str) -> URL:
    try:
        return URL(text)
    except IndexError as error:  # yarl raises it for brackets without an address
        raise ValueError(str(error)) from None


def redirect_target(url: URL, location: str) -> URL:
    """The URL that a redirect leads to.

    Raises:
        RowError: its target is not a URL (image_missing), or it is not followed because it leads
            to another scheme, from https to http, or to a URL with a user or password
            (image_refused).
    """
    try:
        target = url.join(_parse(location))
        text = str(target)  # this is where yarl validates the port
    except ValueError:
        message = f"{display_url(url)}: redirects to an invalid URL"
        raise RowError(Kind.IMAGE_MISSING, message) from None
    if target.scheme not in {"http", "https"} or (url.scheme, target.scheme) == ("https", "http"):
        schemes = f"from {url.scheme}:// to {target.scheme[:20]}://"
        message = f"{display_url(url)}: a redirect {schemes} is not followed"
        raise RowError(Kind.IMAGE_REFUSED, message)
    return parse_image_url(text)


def display_url(url: URL | str) -> str:
    """An untrusted URL for messages: one short line without user, password and query."""
    text = ascii(safe_url(str(url)))[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."


def check_host(url: URL, allow_private: bool) -> None:
    """Refuse a URL whose host is an IP address that is not allowed.

    Names are left to `CheckedResolver`, which HTTP clients do not call for IP addresses.

    Raises:
        RowError: the address is not allowed, or in a notation that parsers disagree about
            (image_refused).
    """
    host = (url.raw_host or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        if _is_nonstandard_ipv4(host):
            reason = "its host is an IP address in a non-standard notation"
            raise RowError(Kind.IMAGE_REFUSED, f"{display_url(url)}: {reason}") from None
        return
    if not is_allowed_address(address, allow_private):
        raise address_refused(url)


def address_refused(url: URL) -> RowError:
    """The error for a URL whose host is at an address that is not allowed."""
    return RowError(
        Kind.IMAGE_REFUSED,
        f"{display_url(url)}: {url.raw_host} is at a private or reserved address; "
        "images are fetched from the public internet only",
    )


def _is_nonstandard_ipv4(host: str) -> bool:
    """Whether the system would parse it as an IPv4 address: 127.1, 0x7f.1, 2130706433."""
    try:
        socket.inet_aton(host)
    except (OSError, ValueError):
        return False
    return True


def is_allowed_address(address: IPv4Address | IPv6Address, allow_private: bool) -> bool:
    """Whether images may be fetched from an address.

    An IPv6 address that embeds an IPv4 one (mapped, NAT64) is treated as that. Link-local addresses
    and cloud metadata services, which hand out credentials, are refused even if loopback and
    private networks are allowed.
    """
    if isinstance(address, IPv6Address):
        address = _ipv4_within(address) or IPv6Address(int(address))  # drops its zone
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
    """Resolves names, and returns only addresses that are allowed."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._dns = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a name.

        Raises:
            RefusedAddressError: it has addresses, but none of them is allowed.
            OSError: it could not be resolved.
        """
        found = await self._dns.resolve(host, port, family)
        allowed = [
            result
            for result in found
            if is_allowed_address(ip_address(result["host"]), self._allow_private)
        ]
        if found and not allowed:
            raise RefusedAddressError(f"{host} has no public address")
        return allowed

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
