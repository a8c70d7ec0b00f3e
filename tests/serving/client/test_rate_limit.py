"""Servers that limit the rate of requests: in simulated time, and a real gateway."""

import heapq
import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import stub_faults
from chat import ask, completing, endpoint, noted, texts, wait_until
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, notes, rate_limit, sender
from prefect_imageqa.serving.client.rate_limit import RateLimit
from prefect_imageqa.serving.errors import EndpointLostError
from servers import StubServer

MAX_IN_FLIGHT = 64
LATENCY = 2.0
MOST = MAX_IN_FLIGHT / LATENCY
"""Rows per second without a limit."""
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
    limit: RateLimit = field(default_factory=RateLimit)
    sent: list[float] = field(default_factory=list)
    answered: int = 0
    _replies: list[tuple[float, float, bool]] = field(default_factory=list)

    def send(self, rows: int) -> float:
        """Send rows until all are answered; returns the seconds it took."""
        began, end = self.now, self.answered + rows
        while self.answered < end:
            in_flight = len(self._replies)
            may_send = in_flight < min(MAX_IN_FLIGHT, self.limit.max_load, end - self.answered)
            delay = self.limit.delay(self.now)
            if may_send and delay <= 0:
                self._send()
                continue
            events = [self._replies[0][0]] if self._replies else []
            self.now = min([*events, *([self.now + delay] if may_send else [])])
            while self._replies and self._replies[0][0] <= self.now:
                self._receive(*heapq.heappop(self._replies))
        return self.now - began

    def _send(self) -> None:
        self.limit.sent(self.now)
        self.sent.append(self.now)
        is_admitted = self.gateway is None or self.gateway.admits()
        at = self.now + (LATENCY if is_admitted else REJECTION_SECONDS)
        heapq.heappush(self._replies, (at, self.now, is_admitted))

    def _receive(self, _: float, sent: float, is_admitted: bool) -> None:
        if is_admitted:
            self.answered += 1
            self.limit.accepted()
        else:
            self.limit.rejected(self.now, sent, self.retry_after)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """A simulation whose gateways read its time."""
    simulated = Simulation()
    monkeypatch.setattr(stub_faults, "time", SimpleNamespace(monotonic=lambda: simulated.now))
    monkeypatch.setattr(rate_limit, "random", random.Random(7))
    return simulated


class ClosedGateway(stub_faults.Gateway):
    """Admits nothing until some time."""

    def __init__(self, simulation: Simulation, until: float) -> None:
        super().__init__(rate=1, window=False)
        self._simulation, self._until = simulation, until

    def admits(self) -> bool:
        return self._simulation.now >= self._until


class RandomGateway(stub_faults.Gateway):
    """Rejects a share of the requests, at random."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__(rate=1, window=False)
        self._random, self._share = random.Random(seed), share

    def admits(self) -> bool:
        return self._random.random() >= self._share


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
    assert len(simulation.sent) / rows < 1.2
    assert rows / seconds > 0.6 * min(rate, MOST)


@pytest.mark.parametrize(("rate", "seconds"), [(0.2, 600), (1, 180), (2, 120), (5, 90)])
def test_the_rate_recovers_when_the_limit_goes_away(
    rate: float, seconds: float, simulation: Simulation
) -> None:
    simulation.gateway = stub_faults.Gateway(rate, window=False)
    simulation.send(200)
    assert simulation.limit.is_limiting
    simulation.gateway = None
    assert 2000 / MOST < simulation.send(2000) < seconds
    assert not simulation.limit.is_limiting


@pytest.mark.parametrize("seconds", [5, 60, 3600])
def test_the_rate_recovers_when_everything_was_rejected_for_long(
    seconds: float, simulation: Simulation
) -> None:
    simulation.send(600)
    opens = simulation.now + seconds
    simulation.gateway, before = ClosedGateway(simulation, opens), len(simulation.sent)
    simulation.send(2000)
    assert simulation.now - opens < 2000 / MOST + 40
    assert len(simulation.sent) - before < 2000 + 200


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_random_rejections_slow_nothing_down(
    share: float, seed: int, simulation: Simulation
) -> None:
    simulation.gateway = RandomGateway(share, seed)
    assert simulation.send(4000) < 1.3 * 4000 / MOST


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_that_was_lowered_in_vain_is_given_up(seed: int, simulation: Simulation) -> None:
    simulation.send(600)
    simulation.gateway = ClosedGateway(simulation, simulation.now + 30)
    simulation.send(10)
    assert simulation.limit.is_limiting
    simulation.gateway = RandomGateway(0.12, seed)
    simulation.send(3000)
    assert simulation.send(1000) < 3 * 1000 / MOST


def test_a_limit_that_is_lowered(simulation: Simulation) -> None:
    simulation.send(1000)
    simulation.gateway, before = stub_faults.Gateway(2, window=False), len(simulation.sent)
    assert simulation.send(500) < 300
    # All that could be in flight is rejected once.
    assert len(simulation.sent) - before < 500 * 1.1 + MAX_IN_FLIGHT


def test_nothing_is_sent_for_as_long_as_the_server_asks() -> None:
    limited = RateLimit()
    for _ in range(8):
        assert limited.delay(100.0) <= 0
        limited.sent(100.0)
    limited.accepted()
    limited.rejected(101.0, sent=100.0, retry_after=30.0)
    assert 29 <= limited.delay(102.0) <= 33
    # The same rejection once more: the longer of both counts.
    limited.rejected(101.5, sent=100.0, retry_after=60.0)
    limited.rejected(101.6, sent=100.0, retry_after=1.0)
    assert limited.delay(102.0) == 59.5
    assert limited.delay(161.4) > 0
    assert limited.delay(161.6) <= 0


def test_a_server_without_a_limit_gets_requests_at_once() -> None:
    unlimited = RateLimit()
    assert unlimited.max_load == 8
    unlimited.accepted()
    for _ in range(1000):
        assert unlimited.delay(100.0) <= 0
        unlimited.sent(100.0)
    assert unlimited.max_load == math.inf
    assert not unlimited.is_limiting


# --- with servers ---------------------------------------------------------------------------------


def test_a_gateway_before_the_stub(start_stub: Any) -> None:
    stub: StubServer = start_stub("--rate=20")
    with ChatClient(endpoint(stub.url, model="stub")) as client:
        with completing(client, ["hello"] * 50) as outcomes:
            wait_until(noted(client, f"{stub.url} limits the rate (HTTP 429): sending "))
            assert len(texts(outcomes.result(30))) == 50
        assert 50 < client.stats.requests < 50 + 64
        assert client.stats.failures == 0


def test_a_rejection_among_many_replies_costs_only_its_own_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limit, "_LONG_PAUSE", 600.0)
    monkeypatch.setattr(sender, "_MAX_OWN_WAIT", 1.0)
    with FakeVLLM() as server, ChatClient(endpoint(server.url), max_in_flight=16) as client:
        server.statuses = ([200] * 11 + [429]) * 25
        server.headers = {"Retry-After": "600"}
        server.latency = 0.01
        rows = [str(number) for number in range(400)]
        with completing(client, rows) as outcomes:
            wait_until(lambda: client.stats.requests >= 300)  # a pause takes 600 s
            assert not client.stats.notes
            assert texts(outcomes.result(30)) == rows
        assert client.stats.requests == 425


def test_a_server_that_rejects_everything_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notes, "_REFUSED_SECONDS", 0.1)
    with FakeVLLM() as server, ChatClient(endpoint(server.url), server_wait=0.8) as client:
        server.status = 429
        with completing(client, map(str, range(40))) as outcomes:
            expected = f"{server.url} rejects every request (HTTP 429): waiting, N s of 1"
            wait_until(noted(client, expected))
            with pytest.raises(EndpointLostError) as raised:
                outcomes.result(30)
        assert server.asked.total() < 20
    assert str(raised.value) == (
        f"{server.url} rejects every request: waited 1 s; "
        "when a server is back, run the same command again to resume"
    )


def test_another_server_does_the_work_of_one_that_rejects_everything() -> None:
    with (
        FakeVLLM() as limited,
        FakeVLLM() as other,
        ChatClient(endpoint(limited.url, other.url), max_in_flight=8, server_wait=0.3) as client,
    ):
        limited.status, other.latency = 429, 0.1
        rows = [str(number) for number in range(60)]
        assert texts(client.complete(map(ask, rows))) == rows
        assert limited.asked.total() < 20
