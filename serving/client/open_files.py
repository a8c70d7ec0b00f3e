"""How many connections a process may have: each is an open file."""

import resource
from contextlib import suppress

_OTHER_FILES = 256
_MAX_FILES = 65_536
"""Open files that are left for everything but connections, and limit of them that is asked for."""


def max_connections() -> int:
    """How many connections this process may have, after raising its limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_MAX_FILES if hard == resource.RLIM_INFINITY else hard, _MAX_FILES)
    if soft == resource.RLIM_INFINITY:
        soft = _MAX_FILES
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(soft - _OTHER_FILES, soft // 2)
