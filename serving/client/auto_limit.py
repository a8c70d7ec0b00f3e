"""How many requests a server gets at a time, if nobody has said: as many as keep it busy."""

from dataclasses import dataclass
from typing import Literal

from ..metrics import Counters
from .throughput import ThroughputSearch

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

_PREEMPTED = 0.9
"""Factor of the limit when the engine had to take back memory from requests that it ran."""

_UNSEEN_SHARE = 4
_MAX_UNSEEN = 4
"""If more than a quarter of the requests in flight are not on the server's page, it does not speak
of them, or they have not reached the engine yet: at this many observations in a row, throughput
decides."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a server at some time.

    Attributes:
        now: `time.monotonic()`.
        in_flight: requests it was sent and has not answered, without those that are overtaken.
        completed: requests it has completed since the start.
        was_full: a request has waited because of the limit since the last observation.
        latency: seconds that requests take of late; 0 if that is not known yet.
        counters: its page of metrics; None if it has none.
    """

    now: float
    in_flight: int
    completed: int
    was_full: bool
    latency: float
    counters: Counters | None = None


class AutoLimit:
    """Limit of the requests in flight to one server: a function of what was observed.

    vLLM's page of metrics tells how many requests run and how many wait: the limit grows as long as
    none waits, and shrinks to what runs and a short queue. With other servers, it grows as long as
    that makes more requests complete per second.

    Attributes:
        value: the limit.
    """

    def __init__(self) -> None:
        self.value = FIRST_LIMIT
        self._search = ThroughputSearch(MIN_LIMIT, MAX_LIMIT)
        self._growth = 1.0
        self._queue: tuple[float, int] | None = None
        self._preemptions: int | None = None
        self._unseen = 0

    @property
    def is_settled(self) -> bool:
        """Whether the limit has been found, so that the server's page is needed less often."""
        return self._growth < 1

    def observe(self, seen: Observation) -> None:
        """Adapt the limit to what was observed."""
        page = seen.counters
        if page is None:
            self.value = self._search.next(self.value, seen.now, seen)
            return
        is_shown = seen.in_flight - page.running - page.waiting <= max(
            MIN_LIMIT, seen.in_flight // _UNSEEN_SHARE
        )
        self._unseen = 0 if is_shown else self._unseen + 1
        if is_shown:
            self._search.restart()
            self.value = self._follow(seen, page)
        elif self._unseen > _MAX_UNSEEN:
            self.value = self._search.next(self.value, seen.now, seen)

    def rejected(self) -> None:
        """The server refuses requests because there are too many."""
        self.value = max(MIN_LIMIT, self.value // 2)
        self._growth = _FIRST_GROWTH
        self._search.stop_doubling()

    def _follow(self, seen: Observation, page: Counters) -> int:
        """The limit by what runs and waits in the engine."""
        queue = max(MIN_LIMIT, page.running // _QUEUE_SHARE)
        waiting = self._lasting_queue(seen, page.waiting)
        was_preempted = self._preemptions is not None and page.preemptions > self._preemptions
        self._preemptions = page.preemptions
        if was_preempted or waiting > 2 * queue:
            self._growth, self._queue = _FIRST_GROWTH, None
            # Others may use the server as well: each gives up its share of the queue.
            share = min(seen.in_flight / max(page.running + page.waiting, 1), 1.0)
            busy = min(self.value, seen.in_flight)
            fewer = busy * _PREEMPTED if was_preempted else busy - (waiting - queue) * share
            return max(MIN_LIMIT, int(fewer))
        if page.waiting or not seen.was_full or page.cache_usage > _FULL_CACHE:
            if page.waiting:
                self._growth = _FIRST_GROWTH
            return self.value
        grown = int(self.value * (1 + self._growth)) + 1
        self._growth = min(2 * self._growth, 1.0)
        return min(grown, MAX_LIMIT)

    def _lasting_queue(self, seen: Observation, waiting: int) -> int:
        """How many requests have waited all the time, for as long as requests take."""
        if not waiting:
            self._queue = None
            return 0
        since, least = self._queue or (seen.now, waiting)
        self._queue = since, min(least, waiting)
        usual = seen.latency or _MAX_QUEUED_SECONDS
        seconds = max(_MIN_QUEUED_SECONDS, min(usual, _MAX_QUEUED_SECONDS))
        return self._queue[1] if seen.now - since >= seconds else 0
