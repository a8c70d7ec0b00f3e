"""The HTTP proxy through which a server is asked, as the environment names it."""

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from ..endpoint import http_url


def proxy_of(url: str) -> str | None:
    """The URL of the proxy for a server, which may contain a password; None to ask it directly.

    `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` are read as by most programs. A proxy
    cannot reach a server on this machine, so it is never asked for one.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    return proxy if http_url(proxy) else None  # SOCKS is not supported


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)  # 0.0.0.0


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, in any form that a system connects to."""
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        return getattr(address, "ipv4_mapped", None) or address
    with suppress(OSError, ValueError):
        return ipaddress.IPv4Address(socket.inet_aton(name))  # 127.1
    return None
