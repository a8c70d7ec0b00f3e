import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect_imageqa.tasks.concurrency import prefetch, prefetch_results
from prefect_imageqa.tasks.errors import DatasetError


class CompletedRun:
    """The future of a task run that has completed; its result is a list."""

    def __init__(self, *results: int) -> None:
        self._results = list(results)

    def result(self) -> list[int]:
        return self._results


def submit(count: int, submitted: list[int], error: Exception | None = None) -> Iterator[Any]:
    for number in range(count):
        submitted.append(number)
        yield CompletedRun(2 * number, 2 * number + 1)
    if error:
        raise error


def test_task_runs_are_submitted_only_as_far_ahead_as_the_limit() -> None:
    submitted: list[int] = []
    results = prefetch_results(submit(10, submitted), 2)
    assert next(results) == 0
    assert len(submitted) == 3
    assert [next(results), next(results)] == [1, 2]
    assert len(submitted) == 4
    assert list(results) == list(range(3, 20))
    assert list(prefetch_results(iter([]), 2)) == []


def test_results_before_an_error_are_still_yielded() -> None:
    results = prefetch_results(submit(2, [], DatasetError("broken")), 8)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DatasetError, match="broken"):
        next(results)


def test_items_are_processed_in_a_pool_and_yielded_in_order() -> None:
    gate, started = threading.Event(), list[int]()

    def process(number: int) -> int:
        started.append(number)
        gate.wait(10)
        return -number

    with ThreadPoolExecutor(2) as pool:
        results = prefetch(pool, process, iter(range(6)), 3)
        first, future = next(results)
        gate.set()
        assert (first, future.result()) == (0, 0)
        assert [(item, done.result()) for item, done in results] == [(n, -n) for n in range(1, 6)]
    assert sorted(started) == list(range(6))
