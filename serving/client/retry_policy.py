"""Which requests are sent again, and how often.

Kinds follow from the HTTP status in `responses`: a rate limit (429) is UNAVAILABLE, like 503.
"""

from typing import TypeGuard

from ..types import Failure, FailureKind, Outcome

MAX_ATTEMPTS = {
    FailureKind.CONNECTION: 4,
    FailureKind.UNAVAILABLE: 5,
    # vLLM always answers certain bad images with 500: try a few times, then blame the row.
    FailureKind.SERVER_ERROR: 3,
    FailureKind.TIMEOUT: 2,  # each may take minutes
}
"""Attempts per failure kind; a kind that is not listed is permanent and is never retried."""


MAX_DISCONNECTS = 2
"""Disconnects after which a request is not retried: it may be what crashes the server."""


def should_retry(outcome: Outcome) -> TypeGuard[Failure]:
    """Whether to send the request again."""
    return (
        isinstance(outcome, Failure)
        and outcome.attempts < MAX_ATTEMPTS.get(outcome.kind, 1)
        and outcome.disconnects < MAX_DISCONNECTS
    )
