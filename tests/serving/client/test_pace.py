"""Servers that limit the rate of requests: in simulated time, and a real gateway."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import stub_faults
from chat import ask, endpoint, noted, texts
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, pace
from prefect_imageqa.serving.client.pace import Pace

MAX_IN_FLIGHT = 64
LATENCY = 2.0
REJECTION_SECONDS = 0.02


@dataclass
class Simulation:
    """Requests to one server in simulated time.

    Attributes:
        now: the time in seconds.
        gateway: admits requests or not; None admits all.
        retry_after: seconds that it asks to wait.
        sent: times at which requests were sent.
        answered: their number.
    """

    gateway: stub_faults.Gateway | None = None
    retry_after: float = 1.0
    now: float = 1000.0
    pace: Pace = field(default_factory=Pace)
    sent: list[float] = field(default_factory=list)
    answered: int = 0
    _replies: list[tuple[float, float, bool]] = field(default_factory=list)

    def send(self, rows: int) -> float:
        """Send rows until all are answered; returns the seconds it took."""
        began, end = self.now, self.answered + rows
        while self.answered < end:
            in_flight = len(self._replies)
            may_send = in_flight < min(MAX_IN_FLIGHT, self.pace.max_load, end - self.answered)
            delay = self.pace.delay(self.now)
            if may_send and delay <= 0:
                self._send()
                continue
            events = [self._replies[0][0]] if self._replies else []
            self.now = min([*events, *([self.now + delay] if may_send else [])])
            while self._replies and self._replies[0][0] <= self.now:
                self._receive(*heapq.heappop(self._replies))
        return self.now - began

    def _send(self) -> None:
        self.pace.sent(self.now)
        self.sent.append(self.now)
        is_admitted = self.gateway is None or self.gateway.admits()
        at = self.now + (LATENCY if is_admitted else REJECTION_SECONDS)
        heapq.heappush(self._replies, (at, self.now, is_admitted))

    def _receive(self, _: float, sent: float, is_admitted: bool) -> None:
        if is_admitted:
            self.answered += 1
            self.pace.accepted()
        else:
            self.pace.rejected(self.now, sent, self.retry_after)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """A simulation whose gateways read its time."""
    simulated = Simulation()
    monkeypatch.setattr(stub_faults, "time", SimpleNamespace(monotonic=lambda: simulated.now))
    return simulated


@pytest.mark.parametrize("retry_after", [0.0, 1.0], ids=["no Retry-After", "Retry-After 1"])
@pytest.mark.parametrize("window", [False, True], ids=["token bucket", "window"])
@pytest.mark.parametrize("rate", [1, 2, 5, 50])
def test_few_requests_are_rejected_and_most_of_the_limit_is_used(
    rate: int, window: bool, retry_after: float, simulation: Simulation
) -> None:
    simulation.gateway = stub_faults.Gateway(rate, window)
    simulation.retry_after = retry_after
    rows = max(200, 60 * rate)
    seconds = simulation.send(rows)
    possible = min(rate, MAX_IN_FLIGHT / LATENCY)
    print(rate, window, retry_after, len(simulation.sent) / rows, rows / seconds / possible)
    assert len(simulation.sent) / rows < 1.2
    assert rows / seconds > 0.6 * possible
