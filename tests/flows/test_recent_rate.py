"""The recent rate: it follows the run, and a pause shows."""

from collections.abc import Iterable

import pytest
from prefect_imageqa.flows.recent_rate import IDLE_SECONDS, Pace, RecentRate


def measure(recent: RecentRate, reports: Iterable[tuple[float, int]]) -> Pace:
    for now, rows in reports:
        pace = recent.update(now, rows)
    return pace


def steady(start: float, seconds: int, rows: int, per_second: int) -> list[tuple[float, int]]:
    """Reports every half a second of so many rows/s, from a number of rows."""
    return [(start + half / 2, rows + half * per_second // 2) for half in range(1, 2 * seconds + 1)]


def test_the_rate_is_that_of_the_last_minute() -> None:
    recent = RecentRate(0.0)
    assert measure(recent, steady(0, 600, 0, 50)).rows_per_second == pytest.approx(50)
    pace = measure(recent, steady(600, 61, 30_000, 10))
    assert pace.rows_per_second == pytest.approx(10, rel=0.05)


def test_rates_of_a_few_rows_are_not_shown_at_first() -> None:
    recent = RecentRate(0.0)
    assert recent.update(2.0, 3) == Pace()
    assert recent.update(4.0, 12).rows_per_second == 3
    assert RecentRate(0.0).update(15.0, 3).rows_per_second == 0.2


def test_a_pause_shows_and_the_rate_before_it_is_forgotten() -> None:
    recent = RecentRate(0.0)
    measure(recent, steady(0, 100, 0, 58))
    short = recent.update(100 + IDLE_SECONDS - 1, 5800)
    assert short.rows_per_second == pytest.approx(58)
    assert short.idle == 0
    assert recent.update(2740.0, 5800).idle == 2640
    resumed = measure(recent, steady(2740, 3, 5800, 20))
    assert resumed.rows_per_second == pytest.approx(20)
    assert resumed.idle == 0


def test_slow_rows_have_a_rate_too() -> None:
    recent = RecentRate(0.0)
    pace = measure(recent, [(90.0 * rows, rows) for rows in range(1, 40)])
    assert pace.rows_per_second == pytest.approx(1 / 90)
    assert pace.idle == 0


def test_memory_is_bounded() -> None:
    recent = RecentRate(0.0)
    measure(recent, ((tick / 100, tick) for tick in range(1, 50_000)))
    assert len(recent._samples) < 100
