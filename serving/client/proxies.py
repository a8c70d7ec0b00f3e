"""The HTTP proxy through which a server is asked, as the environment names it."""

import ipaddress
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
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified  # 0.0.0.0
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
