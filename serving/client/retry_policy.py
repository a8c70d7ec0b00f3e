"""Which requests are sent again, and how often.

A failure of the server costs a request no attempt: the request waits until a server is back. Only
failures while the server answers other requests count. Kinds follow from the HTTP status in
`responses`.
"""

import random

from ..types import FailureKind

MAX_ATTEMPTS = {
    FailureKind.DISCONNECTED: 4,
    FailureKind.UNAVAILABLE: 4,
    # vLLM always answers certain bad images with 500: try a few times, then blame the row.
    FailureKind.SERVER_ERROR: 3,
    FailureKind.BAD_REPLY: 3,
    FailureKind.TIMEOUT: 2,  # each takes minutes
}
"""Attempts per failure kind, while the server answers others; others are permanent at once."""

MAX_CRASHES = 2
"""Losses of the server after which the requests in flight are not retried: one may be the cause."""

_MAX_BACKOFF_SECONDS = 5.0


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures; random, so that retries do not arrive all at once."""
    longest = min(0.25 * 2.0 ** (failures - 1), _MAX_BACKOFF_SECONDS)
    return random.uniform(0.5, 1) * longest  # noqa: S311
