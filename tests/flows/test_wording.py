import pytest
from prefect_imageqa.flows.wording import duration, rate


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (89.9, "90 s"),
        (90, "2 min"),
        (545, "9 min"),
        (3571, "1 h"),
        (7790, "2 h 10 min"),
        (47 * 3600, "47 h"),
        (76 * 3600, "3 d 4 h"),
        (1e7 * 86400, "10,000,000 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rows_per_second", "text"),
    [
        (1234.5, "1,234 rows/s"),
        (58.2, "58 rows/s"),
        (9.97, "10 rows/s"),
        (9.94, "9.9 rows/s"),
        (0.5, "30 rows/min"),
        (0.04, "2.4 rows/min"),
        (0.001, "3.6 rows/h"),
    ],
)
def test_rates(rows_per_second: float, text: str) -> None:
    assert rate(rows_per_second) == text
