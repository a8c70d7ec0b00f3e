"""What a limit of the requests in flight is found from."""

from dataclasses import dataclass

from ..metrics import Counters


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a server at some time.

    Attributes:
        now: `time.monotonic()`.
        in_flight: requests it was sent and has not answered, without those that are overtaken.
        completed: requests it has completed since the start.
        latency_sum: seconds that these have taken together.
        was_full: a request has waited because of the limit since the last observation.
        latency: seconds that requests take of late; 0 if that is not known yet.
        counters: its page of metrics; None if it has none.
    """

    now: float
    in_flight: int
    completed: int
    latency_sum: float
    was_full: bool
    latency: float
    counters: Counters | None = None
