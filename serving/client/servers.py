"""`Server` and `Request`: a server of an endpoint, what it is working on, whether it is up."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..types import Completion, Failure, FailureKind, Outcome
from .auto_limit import AutoLimit
from .outcomes import Outcomes
from .rate_limit import RateLimit
from .request_budget import RequestBudget
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
class Request:
    """A request, its history, and its present attempt. Times are those of `time.monotonic`.

    Attributes:
        outcomes: where its outcome is reported.
        position: under which.
        max_crashes: losses of the server, while it works on the request, after which it fails.
        memory: the budget in which it counts.
        body: the request as JSON.
        max_tokens: how many tokens it asks for at most, if it says so.
        scored: the text that it scores, if that is what it does.
        unsendable: why it cannot be sent at all.
        is_held: whether it counts in the budget.
        started: when it was first sent.
        attempts: how many times it was sent.
        crashes: how many times its server was lost while it worked on it.
        failures: how many times it failed while the server was alive, by kind.
        error: the server and the time of its last 5xx, which may announce a crash.
        sent: when it was sent last.
        rank: how many requests its server will have completed when it has completed all those
            that it had at that time.
        has_slot: whether it counts for the limit of requests in flight.
        cancelled: why the attempt was cancelled; None while it was not.
        task: waits for the reply.
    """

    outcomes: Outcomes
    position: int
    max_crashes: int
    memory: RequestBudget
    body: bytes = b""
    max_tokens: int | None = None
    scored: str = ""
    unsendable: Failure | None = None
    is_held: bool = True
    started: float = 0.0
    attempts: int = 0
    crashes: int = 0
    failures: dict[FailureKind, int] = field(default_factory=dict)
    error: "tuple[Server, float] | None" = None
    sent: float = 0.0
    rank: int = 0
    has_slot: bool = False
    cancelled: FailureKind | None = None
    task: "asyncio.Task[Any] | None" = None

    def hold(self, body: bytes) -> None:
        """Take the body, which counts in the budget."""
        self.body = body
        self.memory.grow(len(body))

    def leave_memory(self) -> None:
        """No longer count in the budget; from the second call on, this does nothing."""
        if self.is_held:
            self.is_held = False
            self.memory.release(len(self.body))

    def end(self, outcome: Outcome) -> None:
        """Report the outcome."""
        self.leave_memory()
        self.outcomes.add(self.position, outcome)

    def fail(self, error: BaseException) -> None:
        """Report an error, for which the caller's other requests are not sent any more."""
        self.leave_memory()
        self.outcomes.fail(error)

    def cancel(self, kind: FailureKind) -> None:
        """End the attempt; its outcome is a failure of that kind."""
        if self.cancelled is None and self.task is not None:
            self.cancelled = kind
            self.task.cancel()

    def count_failure(self, kind: FailureKind) -> int:
        """Count a failure; returns how many of that kind there are now."""
        self.failures[kind] = count = self.failures.get(kind, 0) + 1
        return count


@dataclass(slots=True, eq=False)
class Server:
    """One server. Times are those of `time.monotonic`.

    Attributes:
        transport: its connections.
        rate_limit: how fast it may get requests.
        health: whether it gets requests.
        reason: why not.
        since: since when it is not, or was not for the last time.
        back: when that ended.
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
    back: float = 0.0
    leaving: bool = False
    attempts: set[Request] = field(default_factory=set)
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

    def begin(self, request: Request, task: "asyncio.Task[Any]") -> None:
        """A request for which the server was acquired is sent by a task."""
        request.sent, request.task = time.monotonic(), task
        request.rank = self.completed + self.load
        request.has_slot, request.cancelled = True, None
        if not self.attempts and not self.is_late:
            self.last_alive = max(self.last_alive, request.sent)  # it was idle until now
        self.attempts.add(request)

    def end(self, request: Request, outcome: Outcome) -> None:
        """Note what the outcome of a request tells about the server."""
        now = time.monotonic()
        latency = now - request.sent
        if isinstance(outcome, Completion):
            self.completed += 1
            self.last_alive = self.last_completion = now
            self.activity, self.stalls, self.is_late = "", 0, False
            self.latency_sum += latency
            self._latencies.append(latency)
            self.latency += (latency - self.latency) * (_SMOOTHING if self.latency else 1)
            self.rate_limit.accepted()
            return
        self.is_late = outcome.kind is FailureKind.TIMEOUT
        if outcome.kind is FailureKind.RATE_LIMITED:
            self.rate_limit.rejected(now, request.sent, outcome.retry_after)
        else:
            self.rate_limit.accepted()
            if self.auto_limit and self._is_overloaded(outcome, latency):
                self.auto_limit.timed_out(now, request.sent)

    def _is_overloaded(self, failure: Failure, seconds: float) -> bool:
        """Whether a gateway gave up a request that has not taken much longer than others do."""
        given_up = self.is_late and bool(failure.status)
        return given_up and seconds < _SLOW * (self.latency or seconds)

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
        return now - max(self.last_completion, min(request.sent for request in self.attempts))

    def cancel_all(self, kind: FailureKind) -> None:
        """Cancel all requests it is working on."""
        for request in self.attempts:
            request.cancel(kind)
