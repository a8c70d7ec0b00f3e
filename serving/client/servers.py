"""`Server`: one server of an endpoint, what it is working on, and whether it is up."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ..types import Completion, Failure, FailureKind, Outcome
from .auto_limit import AutoLimit
from .rate_limit import RateLimit
from .transport import Transport

_LATENCIES = 256
"""Number of newest latencies from which the usual one is computed."""

_MIN_LATENCIES = 20
"""Fewer do not tell what is usual."""

_SLOW = 4.0
"""A request that takes this many times as long as others is slow itself, not its server."""

_SMOOTHING = 1 / 16
"""Weight of the newest request in the mean latency."""


class Health(StrEnum):
    """Whether a server gets requests."""

    UP = "up"
    DOWN = "down"
    """It cannot be reached, or answers no request."""
    STALLED = "stalled"
    """It accepts requests and answers none."""
    DRAINING = "draining"
    """It gets no more requests, and is restarted when those it has are answered."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A request that a server is working on.

    Attributes:
        sent: `time.monotonic()` when it was sent.
        overtaken_at: once the server has completed this many requests, many that were sent later
            have been answered before this one.
        size: bytes of its body.
        scope: the time limit of the HTTP call; see `cancel`.
        on_overtaken: called when it no longer has a slot.
        cancelled: why it was cancelled; None while it was not.
        has_slot: whether it counts for the limit of requests in flight.
    """

    sent: float
    overtaken_at: int
    size: int
    scope: asyncio.Timeout
    on_overtaken: Callable[[], None]
    cancelled: FailureKind | None = None
    has_slot: bool = True

    def cancel(self, kind: FailureKind) -> None:
        """End the HTTP call; its outcome is a failure of that kind."""
        if self.cancelled is None:
            self.cancelled = kind
            self.scope.reschedule(asyncio.get_running_loop().time())


@dataclass(slots=True, eq=False)
class Server:
    """One server. Times are those of `time.monotonic`.

    Attributes:
        transport: its connections.
        rate_limit: how fast it may get requests.
        health: whether it gets requests.
        reason: why not.
        since: since when it is not, or was not for the last time.
        leaving: its name no longer resolves to its address: it gets no more requests.
        attempts: requests it is working on.
        load: their number, including those about to be sent.
        in_use: the same, without those that are overtaken.
        auto_limit: how many it may have; None if only their number over all servers is limited.
        was_full: a request has waited because of that limit since it was last adapted.
        latency: seconds that requests take of late, on average; 0 if that is not known yet.
        completed: number of completions.
        latency_sum: seconds that these have taken together.
        last_alive: when it last showed that it works: by a completion, or when it was looked at.
        last_completion: when it last completed a request.
        stalls: how often it was found stalled since then.
        is_late: the request that ended last had no answer in time, perhaps because of a gateway:
            that it has no requests then does not mean that it was idle.
        activity: what it does while it completes nothing, as far as is known.
        looking: the running examination of a quiet or failing server, if there is one.
    """

    transport: Transport
    rate_limit: RateLimit = field(default_factory=RateLimit)
    health: Health = Health.UP
    reason: str = ""
    since: float = 0.0
    leaving: bool = False
    attempts: set[Attempt] = field(default_factory=set)
    load: int = 0
    in_use: int = 0
    auto_limit: AutoLimit | None = None
    was_full: bool = False
    latency: float = 0.0
    completed: int = 0
    latency_sum: float = 0.0
    last_alive: float = 0.0
    last_completion: float = 0.0
    stalls: int = 0
    is_late: bool = False
    activity: str = ""
    looking: "asyncio.Task[bool] | None" = None
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    @property
    def name(self) -> str:
        """Its URL, without secrets."""
        return self.transport.name

    def can_take(self, now: float) -> bool:
        """Whether another request may be sent to it now."""
        is_ready = (
            self.health is Health.UP
            and not self.leaving
            and self.load < self.rate_limit.max_load
            and self.rate_limit.delay(now) <= 0
        )
        if is_ready and self.auto_limit and self.in_use >= self.auto_limit.value:
            self.was_full = True
            return False
        return is_ready

    def cost(self, usual: float) -> float:
        """About how long the server takes for what it has and one more request.

        Args:
            usual: the latency of a server that has not shown its own yet.
        """
        return (self.load + 1) * (self.latency or usual)

    async def send(
        self,
        body: bytes,
        attempt: Attempt,
        started: float,
        number: int,
        max_tokens: int | None = None,
    ) -> Outcome:
        """Send a request once, and note what the outcome tells about the server."""
        if not self.attempts and not self.is_late:
            self.last_alive = max(self.last_alive, attempt.sent)  # it was idle until now
        self.attempts.add(attempt)
        try:
            async with attempt.scope:
                outcome = await self.transport.send(body, started, number, max_tokens)
        except TimeoutError:
            outcome = Failure(
                attempt.cancelled or FailureKind.TIMEOUT,
                f"{self.name}: no reply for {time.monotonic() - attempt.sent:.0f} s",
                attempts=number,
            )
        finally:
            self.attempts.discard(attempt)
        self._note(outcome, attempt)
        return outcome

    def _note(self, outcome: Outcome, attempt: Attempt) -> None:
        now = time.monotonic()
        if isinstance(outcome, Completion):
            self.completed += 1
            self.last_alive = self.last_completion = now
            self.activity, self.stalls = "", 0
            latency = now - attempt.sent
            self.latency_sum += latency
            self._latencies.append(latency)
            self.latency += (latency - self.latency) * (_SMOOTHING if self.latency else 1)
        self.is_late = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMEOUT
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.RATE_LIMITED:
            self.rate_limit.rejected(now, attempt.sent, outcome.retry_after)
        else:
            self.rate_limit.accepted()
            if self._is_overloaded(outcome, now - attempt.sent) and self.auto_limit:
                self.auto_limit.timed_out(now, attempt.sent)

    def _is_overloaded(self, outcome: Outcome, seconds: float) -> bool:
        """Whether a gateway gave up a request that has not taken much longer than others do."""
        if not isinstance(outcome, Failure) or outcome.kind is not FailureKind.TIMEOUT:
            return False
        return bool(outcome.status) and seconds < _SLOW * (self.latency or seconds)

    def was_up_since(self, then: float) -> bool:
        """Whether it has been up since that time, without a break."""
        return self.health is Health.UP and self.since <= then

    def usual_latency(self) -> float:
        """Seconds that 95 % of the newest requests took at most; 0 if that is not known yet."""
        if len(self._latencies) < _MIN_LATENCIES:
            return 0.0
        return sorted(self._latencies)[int(0.95 * (len(self._latencies) - 1))]

    def silence(self, now: float) -> float:
        """Seconds since it last completed a request, or got one while it was idle."""
        if not self.attempts:
            return 0.0
        return now - max(self.last_completion, min(attempt.sent for attempt in self.attempts))

    def cancel_all(self, kind: FailureKind) -> None:
        """Cancel all requests it is working on."""
        for attempt in self.attempts:
            attempt.cancel(kind)
