"""How fast requests may be sent to a server that limits their rate."""

import math
import random
from collections import deque

_DECREASE = 0.85
"""Factor of the rate at each rejection (multiplicative decrease)."""

_INCREASE = 0.01
"""Added to the rate with each accepted request, as a share of the rate at the last rejection.

A limit is thus exceeded once in some 17 requests.
"""

_PROBING = 1.5
_FAST_INCREASE = 0.05
"""Beyond that multiple of the rate at the last rejection, the limit has been raised: this share of
the present rate is added with each request, and the rate doubles every 14."""

_FORGET = 100.0
"""At that multiple of the rate at the last rejection, there is no limit any more."""

_MIN_PER_PAUSE = 0.3
"""Requests per pause, at least: rejections that do not depend on our own rate, as when others use
up a quota, must not lower it for ever."""

_MIN_PAUSE = 0.5
"""Seconds without requests after a rejection, if the server names no time."""

_MAX_PAUSE = 30.0
"""The pause is doubled up to this while no request is accepted: the server is not slow, but closed,
so that the rate stays as it is for the time when it opens again."""

_RECENT = 64
_SPORADIC = 0.25
_FEW = 32
"""As long as fewer than a quarter of the newest replies are rejections, they do not depend on the
rate: one of several replicas is busy, or a fault is random. Each costs its own request a wait, but
no other. Of fewer than 32 replies, 8 rejections count as a quarter."""

_FIRST_REJECTIONS = 3
"""As long as no request was accepted, that many show that there is a limit."""

_LONG_PAUSE = 5.0
"""A server that asks to wait for longer means it, even if it is the only rejection."""

_UNRELATED = 4.0
_MOST = 0.4
"""If the rate has been lowered by this factor since this share of the newest requests was rejected,
and some still are, they are not rejected for the rate."""

_FIRST_REQUESTS = 8
"""Requests in flight until one is accepted: with a strict limit, all further ones were wasted."""


class RateLimit:
    """Limits the rate of requests to a server once it answers 429 (or 503 with `Retry-After`).

    Additive increase, multiplicative decrease, as in TCP's congestion avoidance (RFC 5681). Times
    are those of `time.monotonic`.

    Attributes:
        rate: requests per second; None means no limit.
        refused_since: time of the first rejection after the last accepted request; 0 if there is
            none.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self.refused_since = 0.0
        self._was_accepted = False
        self._next = 0.0
        self._rejected_at = 0.0
        self._paused_until = 0.0
        self._base = 0.0
        self._pause = self._length = _MIN_PAUSE
        self._accepted = 0
        self._accepted_since = 0.0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._first_rate = 0.0

    @property
    def is_limiting(self) -> bool:
        """Whether requests have been rejected lately, so that the rate matters."""
        return self.rate is not None and self.rate < 3 * self._base

    @property
    def max_load(self) -> float:
        """Limit of requests in flight."""
        return math.inf if self._was_accepted else _FIRST_REQUESTS

    def delay(self, now: float) -> float:
        """Seconds until the next request may be sent; 0 or less if it may be sent now."""
        if not self._paused_until and self.rate is None:
            return 0.0
        if self._paused_until and now >= self._paused_until:
            self._resume(now)
        return max(self._paused_until, self._next) - now

    def sent(self, now: float) -> None:
        """A request is sent."""
        self._accepted_since = self._accepted_since or now
        self._accepted += 1  # until it is rejected
        if self.rate is not None:
            self._next = max(self._next, now) + 1 / self.rate

    def accepted(self) -> None:
        """A request was not rejected for its rate."""
        self._was_accepted = True
        self.refused_since = 0.0
        self._recent.append(False)
        if self.rate is None:
            return
        is_raised = self.rate > _PROBING * self._base
        self.rate += _FAST_INCREASE * self.rate if is_raised else _INCREASE * self._base
        if self.rate > _FORGET * self._base:
            self.rate, self._first_rate = None, 0.0

    def works(self) -> None:
        """The server is known to work on a request, which it has not rejected therefore."""
        self._was_accepted = True

    def rejected(self, now: float, sent: float, retry_after: float) -> None:
        """A request was rejected.

        Args:
            now: the current time.
            sent: when it was sent.
            retry_after: seconds to send nothing, as requested by the server; 0 if it names none.
        """
        self.refused_since = self.refused_since or now
        self._accepted -= 1
        self._recent.append(True)
        if self.rate is None and self._is_sporadic() and retry_after <= _LONG_PAUSE:
            return
        if sent > self._rejected_at:
            self._rejected_at = now
            self._length = max(retry_after, self._pause)
            self._paused_until = now + self._length * random.uniform(1, 1.1)  # noqa: S311
        elif self._paused_until:  # sent before the pause: the same rejection once more
            self._paused_until = max(self._paused_until, now + retry_after)

    def _is_sporadic(self) -> bool:
        """Whether only a few of the newest requests were rejected."""
        if not self._was_accepted:
            return len(self._recent) < _FIRST_REJECTIONS
        return sum(self._recent) < _SPORADIC * max(len(self._recent), _FEW)

    def _resume(self, now: float) -> None:
        """End a pause with a lower rate: by now it is known how many requests were accepted."""
        self._paused_until = 0.0
        if self._accepted <= 0:
            self._accepted, self._pause = 0, min(2 * self._pause, _MAX_PAUSE)
            return
        measured = self._accepted / max(now - self._accepted_since, 1e-3)
        if self.rate is not None:
            measured = max(0.3 * self.rate, min(_DECREASE * self.rate, measured))
        least = _MIN_PER_PAUSE / self._length
        self.rate = self._base = max(measured, least)
        share = sum(self._recent) / len(self._recent)
        if not self._first_rate or share > _MOST:
            self._first_rate = self.rate
        elif self.rate <= max(self._first_rate / _UNRELATED, least) and share < _MOST:
            self.rate, self._first_rate = None, 0.0
            self._recent.clear()
        self._pause = _MIN_PAUSE
        self._accepted, self._accepted_since = 0, now
