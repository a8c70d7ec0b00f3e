"""Keeps requests to servers on this machine away from a proxy."""

import os

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_NAMES = ("localhost", "127.0.0.1", "::1")


def bypass_proxies() -> None:
    """Add the names of this machine to `no_proxy`, if the environment names a proxy.

    A proxy cannot reach Prefect's temporary server, a vLLM server or an object store on this
    machine; the clients of some would still ask it. What the user excepted stays excepted, and
    child processes inherit the result.
    """
    if not any(value and name.lower() in _PROXIES for name, value in os.environ.items()):
        return
    both = ("no_proxy", "NO_PROXY")
    # Programs read one or the other: a second one of ours would hide the user's.
    for variable in [name for name in both if os.environ.get(name)] or both:
        hosts = [host.strip() for host in os.environ.get(variable, "").split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[variable] = ",".join([*hosts, *(n for n in _NAMES if n not in hosts)])
