"""What a user should know about the servers now, in sentences."""

from collections.abc import Iterator

from .pool import ServerPool
from .servers import Health

_SLOW_SECONDS = 45.0
"""Requests that are older than this are mentioned."""

_REFUSED_SECONDS = 5.0
"""A server that has rejected all requests for this long is mentioned."""

_QUIET_SECONDS = 15.0
"""A busy server that has completed nothing for this long is mentioned."""


def notes_about(pool: ServerPool, now: float, request_timeout: float) -> list[str]:
    """Sentences about waits, servers that are down, limits and slow requests; usually none."""
    start = [pool.note] if pool.note else []
    return [
        *start,
        *_losses(pool, now),
        *_limits(pool, now),
        *_slowness(pool, now, request_timeout),
    ]


def _losses(pool: ServerPool, now: float) -> Iterator[str]:
    lost = [server for server in pool.servers if server.health is not Health.UP]
    since = pool.lost_since()
    for server in lost:
        seconds = now - server.since
        if pool.recovery is not None:
            status = pool.recovery.progress or f"{seconds:.0f} s so far"
            yield f"{server.name} {server.reason}: {status}"
        elif since is not None:
            yield (
                f"{server.name} {server.reason}: waiting, "
                f"{now - since:.0f} s of {pool.server_wait:.0f}"
            )
        else:
            yield f"{server.name} {server.reason}: {seconds:,.0f} s; other servers do its work"


def _limits(pool: ServerPool, now: float) -> Iterator[str]:
    for server in pool.up:
        refused = now - (server.rate_limit.refused_since or now)
        if refused > _REFUSED_SECONDS:
            limit = f" of {pool.server_wait:.0f}" if pool.lost_since() is not None else ""
            yield (
                f"{server.name} rejects every request (HTTP 429): waiting, {refused:.0f} s{limit}"
            )
        elif server.rate_limit.rate is not None and server.rate_limit.is_limiting:
            rate = server.rate_limit.rate
            shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
            yield f"{server.name} limits the rate (HTTP 429): sending {shown} requests/s"


def _slowness(pool: ServerPool, now: float, request_timeout: float) -> Iterator[str]:
    for server in pool.up:
        if not server.attempts:
            continue
        if (quiet := server.silence(now)) > _QUIET_SECONDS:
            activity = f"; {server.activity}" if server.activity else ""
            yield f"{server.name} has completed nothing for {quiet:.0f} s{activity}"
        slow = sum(now - request.sent > _SLOW_SECONDS for request in server.attempts)
        if slow and (slow < len(server.attempts) or server.activity or quiet <= _QUIET_SECONDS):
            oldest = max(now - request.sent for request in server.attempts)
            limit = max(request_timeout, 10 * server.usual_latency())
            yield (
                f"{slow:,} {'row has' if slow == 1 else 'rows have'} had no answer for over "
                f"{_SLOW_SECONDS:.0f} s: cancelled after {limit:.0f} s (the oldest: {oldest:.0f} s)"
            )
