import pytest
from prefect_imageqa.flows.circuit_breaker import WINDOW, CircuitBreaker
from prefect_imageqa.tasks.errors import ErrorRateError
from prefect_imageqa.tasks.records import Answered, FinishedRow, Kind, Quarantined


def answered(count: int) -> list[FinishedRow]:
    return [Answered("k", "t", [], "m", 1, 1, 0.1)] * count


def failed(
    count: int, kind: Kind = Kind.UNPARSED, attempts: int = 1, attempt: int = 0
) -> list[FinishedRow]:
    row = Quarantined(
        "k", 7, "d.jsonl:8", kind, "no pair in it", attempts=attempts, attempt=attempt
    )
    return [row] * count


def test_a_run_continues_while_enough_rows_are_answered() -> None:
    breaker = CircuitBreaker(0.5)
    for _ in range(20):
        breaker.add(failed(WINDOW // 4) + answered(WINDOW // 4))
    with pytest.raises(ErrorRateError):
        breaker.add(failed(WINDOW // 4 + 1))


def test_a_run_with_too_many_failures_is_stopped_with_the_reasons() -> None:
    breaker = CircuitBreaker(0.5)
    breaker.add(answered(1000))
    breaker.add(failed(WINDOW // 2))
    with pytest.raises(ErrorRateError) as raised:
        breaker.add(failed(1, Kind.SERVER_ERROR))
    message = str(raised.value)
    assert f"{WINDOW // 2 + 1} of the last {WINDOW} rows failed" in message
    assert f"{WINDOW // 2} unparsed, 1 server_error" in message
    assert "d.jsonl:8: no pair in it" in message


def test_the_first_rows_do_not_stop_a_run() -> None:
    CircuitBreaker(0).add(failed(WINDOW - 1))
    with pytest.raises(ErrorRateError):
        CircuitBreaker(0).add(answered(WINDOW - 1) + failed(1))


def test_broken_images_do_not_count() -> None:
    breaker = CircuitBreaker(0)
    for kind in (Kind.BAD_ROW, Kind.IMAGE_BROKEN, Kind.IMAGE_MISSING, Kind.NOT_AN_IMAGE):
        breaker.add(failed(10 * WINDOW, kind, attempts=0))
    breaker.add(answered(WINDOW))
    with pytest.raises(ErrorRateError, match="1 bad_request"):
        breaker.add(failed(1, Kind.BAD_REQUEST))


@pytest.mark.parametrize("kind", [Kind.CONNECTION, Kind.TIMEOUT])
def test_images_that_cannot_be_reached_count(kind: Kind) -> None:
    breaker = CircuitBreaker(0.5)
    breaker.add(failed(10 * WINDOW, kind, attempts=0, attempt=1))  # in an earlier run as well
    breaker.add(answered(WINDOW // 2) + failed(WINDOW // 2, kind, attempts=0))
    with pytest.raises(ErrorRateError, match=f"{WINDOW // 2 + 1} {kind}"):
        breaker.add(failed(1, kind, attempts=0))


def test_rows_that_failed_in_an_earlier_run_do_not_count() -> None:
    breaker = CircuitBreaker(0)
    breaker.add(failed(10 * WINDOW, Kind.SERVER_ERROR, attempts=3, attempt=1))
    breaker.add(answered(WINDOW))
    with pytest.raises(ErrorRateError, match="1 server_error"):
        breaker.add(failed(1, Kind.SERVER_ERROR, attempts=3))


def test_any_error_rate_can_be_allowed() -> None:
    CircuitBreaker(1).add(failed(10 * WINDOW))
    with pytest.raises(ErrorRateError):
        CircuitBreaker(0.99).add(failed(10 * WINDOW))
