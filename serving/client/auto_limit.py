"""How many requests a server gets at a time, if nobody has said: as many as keep it busy."""

from collections import deque
from typing import Literal

from ..metrics import Counters
from .throughput import Observation, ThroughputSearch, max_step

MaxInFlight = int | Literal["auto"]
"""Limit of the requests in flight over all servers; "auto" finds a limit for each of them."""

FIRST_LIMIT = 32
"""Requests in flight to a server of which nothing is known yet."""

MIN_LIMIT = 2
MAX_LIMIT = 8192
"""Bounds of the limit. The largest GPUs run 1,024 requests an engine; a server may have eight."""

_QUEUE_SHARE = 8
"""The engine's queue should hold one request for so many that run: when one ends, the next is there
at once, and none waits for long."""

_FULL_CACHE = 0.95
"""With this share of its KV cache in use, an engine has no room for more requests."""

_FIRST_GROWTH = 0.125
"""Growth of a limit by one observation, as a share of it. It is doubled each time that the next
observation shows no queue either, up to 1."""

_MIN_QUEUED_SECONDS, _MAX_QUEUED_SECONDS = 1.0, 5.0
"""The limit shrinks when there has been a queue for as long as requests take, within these bounds:
what arrives at the same time waits for a moment, even if there is room."""

_PREEMPTED = 0.1
"""Share of the requests in flight that are too many when the engine had to take back memory from
some that it ran."""

_FIRST_OBSERVATIONS = 20
"""So many are made in quick succession."""

_UNSEEN_SHARE = 4
_MAX_UNSEEN = 4
"""If more than a quarter of the requests in flight are not on the server's page, it does not speak
of them, or they have not reached the engine yet: at this many observations in a row, throughput
decides."""


def first_limit(sharers: int) -> int:
    """The limit at first, if so many clients share a server."""
    return max(1, FIRST_LIMIT // sharers)


class AutoLimit:
    """Limit of the requests in flight to one server: a function of what was observed.

    vLLM's page of metrics tells how many requests run and how many wait: the limit grows as long as
    none waits, and shrinks to what runs and a short queue. With other servers, it grows as long as
    that makes more requests complete per second.

    Args:
        sharers: how many clients that share the server have such a limit, this one included.

    Attributes:
        value: the limit.
    """

    def __init__(self, sharers: int = 1) -> None:
        self.value = first_limit(sharers)
        self._sharers = sharers
        self._max_step = max_step(sharers)
        self._least = max(1, MIN_LIMIT // sharers)
        self._search = ThroughputSearch(self._least, MAX_LIMIT, sharers)
        self._growth = 1.0
        self._queues: deque[tuple[float, int]] = deque()
        self._preemptions: int | None = None
        self._unseen = self._observed = 0
        self._lowered = 0.0
        self._grows = False

    @property
    def is_settled(self) -> bool:
        """Whether the limit does not grow now, so that the server's page is needed less often."""
        return self._observed > _FIRST_OBSERVATIONS and not self._grows

    def observe(self, seen: Observation) -> None:
        """Adapt the limit to what was observed."""
        before, self._observed = self.value, self._observed + 1
        self.value = self._next(seen)
        self._grows = self.value > before

    def _next(self, seen: Observation) -> int:
        page = seen.counters
        if page is None:
            return self._search.next(self.value, seen)
        is_shown = seen.in_flight - page.running - page.waiting <= max(
            MIN_LIMIT, seen.in_flight // _UNSEEN_SHARE
        )
        self._unseen = 0 if is_shown else self._unseen + 1
        if is_shown:
            self._search.stop_doubling()  # also if the page cannot be read once in a while
            return self._follow(seen, page)
        return self._search.next(self.value, seen) if self._unseen > _MAX_UNSEEN else self.value

    def timed_out(self, now: float, sent: float) -> None:
        """A gateway gave up a request because others kept it waiting."""
        if sent >= self._lowered:  # the present limit is to blame
            self._lowered = now
            self.value = max(self._least, self.value // 2)
            self._growth = _FIRST_GROWTH
            self._search.stop_doubling()

    def _follow(self, seen: Observation, page: Counters) -> int:
        """The limit by what runs and waits in the engine."""
        queue = max(MIN_LIMIT, page.running // _QUEUE_SHARE)
        waiting = self._lasting_queue(seen, page.waiting)
        was_preempted = self._preemptions is not None and page.preemptions > self._preemptions
        self._preemptions = page.preemptions
        if was_preempted or waiting > 2 * queue:
            self._growth = _FIRST_GROWTH
            self._queues.clear()
            # Others may use the server as well: each gives up its share of the queue.
            share = min(seen.in_flight / max(page.running + page.waiting, 1), 1.0)
            # Counted from those in flight: there are more than the limit until some are answered.
            excess = (waiting - queue) * share if waiting > 2 * queue else 0.0
            if was_preempted:
                excess = max(excess, seen.in_flight * _PREEMPTED)
            return max(self._least, min(self.value, int(seen.in_flight - excess)))
        if page.waiting or not seen.was_full or page.cache_usage > _FULL_CACHE:
            if page.waiting:
                self._growth = _FIRST_GROWTH
            return self.value
        if self._may_hide_requests(seen, page):
            self._growth = _FIRST_GROWTH
        grown = int(self.value * (1 + self._growth)) + 1
        self._growth = min(2 * self._growth, 1.0)
        return min(grown, self.value + self._max_step, MAX_LIMIT)

    def _may_hide_requests(self, seen: Observation, page: Counters) -> bool:
        """Whether a page shows fewer requests than all sharers have, if they have equally many.

        Either the others have fewer, or some are on their way. With one client, `_next` knows.
        """
        expected = seen.in_flight * self._sharers
        return expected - page.running - page.waiting > max(MIN_LIMIT, expected // _UNSEEN_SHARE)

    def _lasting_queue(self, seen: Observation, waiting: int) -> int:
        """How many requests have waited all the time, for as long as requests take."""
        usual = seen.latency or _MAX_QUEUED_SECONDS
        since = seen.now - max(_MIN_QUEUED_SECONDS, min(usual, _MAX_QUEUED_SECONDS))
        self._queues.append((seen.now, waiting))
        while len(self._queues) > 1 and self._queues[1][0] <= since:
            self._queues.popleft()
        is_long = self._queues[0][0] <= since
        return min(count for _, count in self._queues) if is_long else 0
