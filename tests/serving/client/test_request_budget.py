"""The budget for requests in memory."""

import threading

import pytest
from chat import wait_until
from prefect_imageqa.serving.client import request_budget
from prefect_imageqa.serving.client.request_budget import RequestBudget


class Builder(threading.Thread):
    """A thread that builds requests of one size as long as the budget lets it."""

    def __init__(self, budget: RequestBudget, size: int) -> None:
        super().__init__(daemon=True)
        self.built = 0
        self._budget, self._size = budget, size
        self.start()

    def run(self) -> None:
        while self.built < 1000:
            self._budget.acquire()
            self._budget.grow(self._size)
            self.built += 1

    def waits_at(self, count: int) -> bool:
        """Whether it waits after having built that many."""
        wait_until(lambda: self.built >= count)
        self.join(0.1)
        return self.built == count


def test_large_requests_wait_for_memory_and_a_few_never_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_budget, "MAX_BYTES", 300)
    assert Builder(RequestBudget(500), size=10).waits_at(30)
    assert Builder(RequestBudget(500), size=1000).waits_at(16)


def test_small_requests_wait_for_others_to_end_or_for_a_higher_limit() -> None:
    budget = RequestBudget(40)
    builder = Builder(budget, size=1)
    assert builder.waits_at(40)
    for _ in range(10):
        budget.release(1)
    assert builder.waits_at(50)
    budget.resize(60)
    assert builder.waits_at(70)
