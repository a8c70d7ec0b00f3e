"""A client's counters."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ClientStats:
    """A client's counters; any thread may read them.

    Attributes:
        requests: requests sent, retries included.
        queued: requests that wait for a slot, or to be retried because no server is available.
        in_flight: requests sent and not yet answered, without those that are overtaken.
        overtaken: requests in flight that many later ones have overtaken: they may never be
            answered, and no longer count for the limit of requests in flight.
        overtaken_bytes: their size.
        completions: requests that were answered.
        failures: requests that failed for good.
        prompt_tokens: tokens the model read.
        completion_tokens: tokens the model generated.
        last_completion: `time.monotonic()` of the last one; 0 before.
        notes: what a user should know now, one sentence each: what the client waits for and how
            long at most, which servers are down, what is unusually slow. Replaced, never changed.
    """

    requests: int = 0
    queued: int = 0
    in_flight: int = 0
    overtaken: int = 0
    overtaken_bytes: int = 0
    completions: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_completion: float = 0.0
    notes: Sequence[str] = field(default=())
