import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect_imageqa.tasks.concurrency import prefetch, prefetch_results
from prefect_imageqa.tasks.errors import DatasetError


class Done:
    """A task run that has ended; its results are a list."""

    def __init__(self, *results: int) -> None:
        self._results = list(results)

    def result(self) -> list[int]:
        return self._results


def submitted(count: int, seen: list[int], error: Exception | None = None) -> Iterator[Any]:
    for number in range(count):
        seen.append(number)
        yield Done(2 * number, 2 * number + 1)
    if error:
        raise error


def test_results_come_one_by_one_and_few_task_runs_are_submitted_ahead() -> None:
    seen: list[int] = []
    results = prefetch_results(submitted(10, seen), 2)
    assert next(results) == 0
    assert len(seen) == 3
    assert [next(results), next(results)] == [1, 2]
    assert len(seen) == 4
    assert list(results) == list(range(3, 20))
    assert list(prefetch_results(iter([]), 2)) == []


def test_what_came_before_a_failure_is_still_given() -> None:
    results = prefetch_results(submitted(2, [], DatasetError("broken")), 8)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DatasetError, match="broken"):
        next(results)


def test_items_are_worked_on_in_a_pool_and_come_in_their_order() -> None:
    gate, begun = threading.Event(), list[int]()

    def work(number: int) -> int:
        begun.append(number)
        gate.wait(10)
        return -number

    with ThreadPoolExecutor(2) as pool:
        found = prefetch(pool, work, iter(range(6)), 3)
        first, future = next(found)
        gate.set()
        assert (first, future.result()) == (0, 0)
        assert [(item, done.result()) for item, done in found] == [(n, -n) for n in range(1, 6)]
    assert sorted(begun) == list(range(6))
