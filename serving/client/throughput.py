"""Looks for the number of requests in flight with which a server completes the most per second."""

import math
from dataclasses import dataclass

from ..metrics import Counters

_MIN_SECONDS = 0.5
_MIN_COMPLETIONS = 16
_MIN_SHARED_COMPLETIONS = 4
"""A rate is measured over this time at least, and so many requests: as many as are in flight, too.
Of clients that share a server, each completes a part of them.
"""

_ELASTICITY = 0.3
"""A step pays if the rate changes by more than this share of the change of the limit: twice as many
requests must give 30 % more. Measured rates scatter by some percent."""

_SHARED_ELASTICITY = 0.65
"""The same for a client that shares the server: it completes more even if all slots are in use, at
the expense of the others. Of two clients, the one that alone doubles its share of a full server
completes a third more; a share that rises by 25 % gives 11 %."""

_UP, _DOWN = 1.25, 0.8
_DOUBLE = 2.0
"""Factors of a step. At first the limit is doubled as long as that pays."""

_MAX_STEP = 128
"""Requests by which a limit is raised at once, at most. Each opens a connection, and many servers
queue no more than 128 of them."""

_MAX_SLOWDOWN = 5.0
"""A limit is not raised beyond the one at which requests take this many times as long as with the
best limit so far: the rest of their time is a queue, and gateways drop what waits for long."""

_FORGET = 1.001
"""That shortest time grows by this factor with each measurement, lest it was that of another load.
"""

_REST = 6
"""Measurements between two steps that try whether another limit is better by now."""

_CHANGED = 0.3
"""The next step is tried at once if the rate has changed by more than this share by itself."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a server at some time.

    Attributes:
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


def max_step(sharers: int) -> int:
    """Requests by which a limit is raised at once, at most, if so many clients share a server."""
    return max(1, _MAX_STEP // sharers)


class ThroughputSearch:
    """Raises and lowers a limit step by step, and keeps each step that pays (hill climbing).

    Args:
        least: the smallest limit.
        most: the largest limit.
        sharers: how many clients that share the server search, this one included.
    """

    def __init__(self, least: int, most: int, sharers: int = 1) -> None:
        self._least, self._most = least, most
        self._completions = max(_MIN_COMPLETIONS // sharers, _MIN_SHARED_COMPLETIONS)
        self._elasticity = _ELASTICITY if sharers == 1 else _SHARED_ELASTICITY
        self._max_step = max_step(sharers)
        self._factor = _DOUBLE
        self._rate = 0.0
        self._rest = 0
        self._shortest = math.inf
        self.restart()

    def restart(self) -> None:
        """Forget the measurement and the step that is being tried."""
        self._before: tuple[int, float] | None = None
        self._pause()

    def stop_doubling(self) -> None:
        """From now on, take small steps."""
        self._factor, self._rest = _UP, _REST
        self.restart()

    def _pause(self) -> None:
        """Measure anew, when requests sent with the present limit are answered."""
        self._changed: float | None = None
        self._start: Observation | None = None

    def next(self, limit: int, seen: Observation) -> int:
        """The limit from now on, given the present one and what was observed."""
        now = seen.now
        if not seen.was_full or not seen.latency:
            self._pause()  # the limit is not what holds the requests back
            return limit
        if self._changed is None:
            self._changed = now
        if self._start is None:
            if now - self._changed >= seen.latency:
                self._start = seen
            return limit
        completed = seen.completed - self._start.completed
        if now - self._start.now < _MIN_SECONDS or completed < max(self._completions, limit):
            return limit
        # By Little's law. To count completions per second errs where they come in waves.
        seconds = max(seen.latency_sum - self._start.latency_sum, 1e-6)
        decided = self._decide(limit, limit * completed / seconds)
        self._start = seen
        if decided != limit:
            self._pause()
        return decided

    def _decide(self, limit: int, rate: float) -> int:
        """The limit, given the rate that was measured with the present one."""
        self._shortest = min(limit / rate, self._shortest * _FORGET)
        if self._before is not None:
            return self._judge(limit, rate, *self._before)
        if self._rate and abs(rate / self._rate - 1) > _CHANGED:
            self._factor = _UP if rate > self._rate else _DOWN
            self._rest = 0
        self._rate = rate
        if self._rest > 0:
            self._rest -= 1
            return limit
        return self._step(limit, rate)

    def _judge(self, limit: int, rate: float, limit_before: int, rate_before: float) -> int:
        """Keep a step that pays and take another one; otherwise go back."""
        expected, gained = limit / limit_before - 1, rate / rate_before - 1
        if gained > self._elasticity * expected:
            self._rate = rate
            return self._step(limit, rate)
        if self._factor == _DOUBLE:
            self._factor = _UP  # something between may pay
            return self._step(limit_before, rate_before)
        self._before, self._rate = None, rate_before
        self._rest = _REST
        self._factor = _DOWN if self._factor == _UP else _UP
        return limit_before

    def _step(self, limit: int, rate: float) -> int:
        """Try another limit."""
        tried = round(limit * self._factor)
        if tried == limit:
            tried += 1 if self._factor > 1 else -1
        not_slow = max(limit, int(_MAX_SLOWDOWN * self._shortest * rate))
        tried = max(self._least, min(tried, limit + self._max_step, not_slow, self._most))
        if tried == limit:  # at a bound
            self._before, self._rest = None, _REST
            self._factor = _DOWN if self._factor > 1 else _UP
            return limit
        self._before = limit, rate
        return tried
