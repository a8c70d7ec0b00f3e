"""Durations, rates and counts as people write them."""

from collections.abc import Mapping


def duration(seconds: float) -> str:
    """A duration to about two digits: '45 s', '9 min', '2 h 10 min', '3 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return _two(minutes, 60, "h", "min")
    return _two(hours, 24, "d", "h")


def rate(rows_per_second: float) -> str:
    """A rate to about two digits, per minute or hour if it is low: '58 rows/s', '2.5 rows/min'."""
    number, unit = rows_per_second, "s"
    if number < 1:
        number, unit = rows_per_second * 60, "min"
    if number < 1:
        number, unit = rows_per_second * 3600, "h"
    return f"{number:,.{0 if number >= 9.95 else 1}f} rows/{unit}"


def counted(reasons: Mapping[str, int]) -> str:
    """How often there is each reason, the most frequent first: '9 not_an_image, 3 timeout'."""
    by_count = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in by_count)


def _two(count: int, per: int, large: str, small: str) -> str:
    number, rest = divmod(count, per)
    return f"{number:,} {large} {rest} {small}" if rest else f"{number:,} {large}"
