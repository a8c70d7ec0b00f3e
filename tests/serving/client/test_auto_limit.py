"""The automatic limit of requests in flight: on simulated servers, and on the real stub."""

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, takewhile
from statistics import mean
from time import monotonic
from typing import Any

import auto_limit
import pytest
from auto_limit import ClientProcess, stub_counters
from chat import ask, completing, endpoint, logged, texts, wait_until
from fake_vllm import FakeVLLM
from prefect_imageqa.serving.client import ChatClient, servers, steering
from prefect_imageqa.serving.client.auto_limit import FIRST_LIMIT, MIN_LIMIT, AutoLimit
from prefect_imageqa.serving.client.throughput import Observation
from prefect_imageqa.serving.metrics import Counters


@dataclass
class Engine:
    """A server with slots, observed each second while more rows wait than it may get.

    Attributes:
        slots: requests that it runs at a time.
        latency: seconds that each takes, without the time in the queue.
        has_page: it shows its counters.
        others: requests of others that wait in its queue.
        limit: of the requests it gets.
        longest: the longest queue so far.
    """

    slots: int
    latency: float = 2.0
    has_page: bool = True
    others: int = 0
    limit: AutoLimit = field(default_factory=AutoLimit)
    longest: int = 0
    completed: float = 0.0
    latency_sum: float = 0.0
    now: float = 100.0

    def run(self, seconds: int, **seen: Any) -> int:
        """The limit after that time; `seen` replaces parts of what is observed."""
        for _ in range(seconds):
            self.now += 1
            running = min(self.limit.value, self.slots)
            waiting = self.limit.value - running
            self.longest = max(self.longest, waiting)
            self.completed += running / self.latency
            self.latency_sum += self.limit.value
            page = Counters(running, waiting + self.others, 1) if self.has_page else None
            fields = {
                "now": self.now,
                "in_flight": self.limit.value,
                "completed": int(self.completed),
                "latency_sum": self.latency_sum,
                "was_full": True,
                "latency": self.latency * self.limit.value / running,
                "counters": page,
            }
            self.limit.observe(Observation(**(fields | seen)))
        return self.limit.value


@pytest.mark.parametrize("slots", [16, 33, 64, 256, 1000])
def test_all_slots_are_used_within_seconds_and_the_queue_is_short(slots: int) -> None:
    engine = Engine(slots)
    assert slots <= engine.run(10)
    assert slots <= engine.run(30) <= math.ceil(1.25 * slots)
    assert engine.longest <= slots + MIN_LIMIT


def test_the_limit_follows_a_server_that_changes() -> None:
    engine = Engine(32)
    for slots in (32, 96, 48, 200, 20):
        engine.slots = slots
        assert slots <= engine.run(20) <= math.ceil(1.25 * slots)


def test_without_rows_that_wait_nothing_changes() -> None:
    assert Engine(256).run(20, was_full=False) == FIRST_LIMIT


def test_a_short_wait_is_no_queue() -> None:
    engine = Engine(64)
    settled = engine.run(20)
    for _ in range(10):
        engine.run(1, counters=Counters(20, settled - 20, 1))
        assert engine.run(1, counters=Counters(settled, 0, 1), was_full=False) == settled


def test_a_full_cache_stops_growth_and_preemptions_shrink_the_limit() -> None:
    engine = Engine(256)
    full = Counters(FIRST_LIMIT, 0, 1, cache_usage=0.97)
    assert engine.run(5, counters=full) == FIRST_LIMIT
    assert engine.run(1, counters=Counters(FIRST_LIMIT, 0, 1, preemptions=3)) < FIRST_LIMIT


def test_requests_that_are_still_in_flight_lower_the_limit_only_once() -> None:
    """Each takes a minute: it takes longer for a queue to get shorter than to be looked at again.

    The same holds while memory is short.
    """
    engine = Engine(32)
    engine.limit.value = 128
    for in_flight in (128, 125, 122, 119):
        page = Counters(32, in_flight - 32, 1)
        assert engine.run(6, counters=page, in_flight=in_flight, latency=60.0) in range(32, 37)
    engine.limit.value = 100
    for seconds in range(20):
        engine.run(1, counters=Counters(95, 0, 1, preemptions=seconds), in_flight=95)
    assert engine.limit.value == 85


def test_the_queue_of_others_is_not_ours_alone() -> None:
    """Two clients with the same number of requests each give up half of a queue."""
    engine = Engine(64)
    engine.limit.value = 64
    page = Counters(64, 64, 1)  # 128 requests, half of them ours
    engine.run(1, counters=page)
    assert engine.run(2, counters=page) == 64 - (64 - 8) // 2


@dataclass
class SharedEngine:
    """A server with slots that several clients share, observed one after the other.

    Attributes:
        slots: requests that it runs at a time.
        limits: those of the clients, each of which has as many requests as it may.
        has_page: it shows its counters.
        longest: the longest queue so far.
        used: shares of the slots in use, at each time.
    """

    slots: int
    limits: list[AutoLimit]
    has_page: bool = True
    longest: int = 0
    used: list[float] = field(default_factory=list)
    now: float = 100.0

    def __post_init__(self) -> None:
        self.completed = [0.0] * len(self.limits)
        self.latency_sum = [0.0] * len(self.limits)

    def run(self, seconds: int) -> None:
        """Let all clients observe it for that time, four times a second; requests take a second."""
        interval = 0.25 / len(self.limits)
        for turn in range(4 * seconds * len(self.limits)):
            self.now += interval
            total = sum(limit.value for limit in self.limits)
            running = min(total, self.slots)
            self.longest = max(self.longest, total - running)
            self.used.append(running / self.slots)
            for number, limit in enumerate(self.limits):
                self.completed[number] += limit.value / total * running * interval
                self.latency_sum[number] += limit.value * interval
            number = turn % len(self.limits)
            limit = self.limits[number]
            limit.observe(
                Observation(
                    self.now,
                    limit.value,
                    int(self.completed[number]),
                    self.latency_sum[number],
                    was_full=True,
                    latency=total / running,
                    counters=Counters(running, total - running, 1) if self.has_page else None,
                )
            )


def sharing(count: int) -> list[AutoLimit]:
    """The limits of so many clients."""
    return [AutoLimit(count) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("slots", [16, 64, 256])
def test_clients_that_share_a_server_fill_it_together_without_a_long_queue(
    slots: int, count: int
) -> None:
    engine = SharedEngine(slots, sharing(count))
    assert sum(limit.value for limit in engine.limits) == FIRST_LIMIT
    engine.run(30)
    assert engine.longest <= slots
    assert min(engine.used[len(engine.used) // 4 :]) == 1
    engine.longest = 0
    engine.run(10)
    assert engine.longest <= slots // 4


def test_a_client_whose_fellows_have_nothing_to_send_gets_all_slots() -> None:
    engine = SharedEngine(64, sharing(4)[:1])
    engine.run(30)
    assert engine.used[-1] == 1


def test_requests_of_fellows_that_are_on_their_way_slow_growth_down() -> None:
    """Each of two clients sees its own requests on the page, though it may show the other's."""
    shown, half_shown = AutoLimit(2), AutoLimit(2)
    for limit, running in ((shown, 32), (half_shown, 16)):
        limit.observe(Observation(0.0, 16, 0, 0.0, True, 1.0, Counters(running, 0, 1)))
    assert shown.value > 2 * FIRST_LIMIT // 2
    assert half_shown.value < 1.25 * FIRST_LIMIT // 2


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("slots", [48, 64, 256])
def test_clients_do_not_outbid_each_other_where_there_is_no_page(slots: int, count: int) -> None:
    """Whoever sends more gets more of a full server, at the expense of the others."""
    alone = SharedEngine(slots, sharing(1), has_page=False)
    engine = SharedEngine(slots, sharing(count), has_page=False)
    for each in (alone, engine):
        each.run(20)
    assert mean(engine.used) > 0.9 * mean(alone.used)
    engine.run(180)
    assert engine.longest <= 2 * slots
    assert mean(engine.used[len(engine.used) // 2 :]) > 0.9


@pytest.mark.parametrize("slots", [10, 48, 64, 256])
@pytest.mark.parametrize("latency", [0.1, 1.0, 5.0])
def test_throughput_decides_where_there_is_no_page(latency: float, slots: int) -> None:
    engine = Engine(slots, latency, has_page=False)
    engine.run(100 * math.ceil(latency))
    engine.longest = 0
    seconds, busy = 0, 0
    for _ in range(100):
        value = engine.run(1)
        seconds, busy = seconds + 1, busy + min(value, slots)
    assert busy / seconds > 0.9 * slots
    assert engine.longest <= slots


def test_requests_do_not_take_ever_longer_where_there_is_no_page() -> None:
    """The more requests are in flight, the more are answered per second, but hardly more."""
    limit, completed, total = AutoLimit(), 0.0, 0.0
    for now in range(1000):
        rate = 10 * limit.value**0.4
        completed, total = completed + rate, total + limit.value
        latency = limit.value / rate
        limit.observe(Observation(now, limit.value, int(completed), total, True, latency))
    assert limit.value / rate < 6 * FIRST_LIMIT / (10 * FIRST_LIMIT**0.4)


def test_a_page_that_does_not_show_our_requests_is_not_believed() -> None:
    """A gateway before many servers shows the page of one of them."""
    engine = Engine(256)
    assert engine.run(60, counters=Counters(2, 0, 1)) > 200


def test_requests_that_a_gateway_gives_up_at_the_same_time_halve_the_limit_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_SLOW", math.inf)
    monkeypatch.setattr(steering, "_TICK_SECONDS", 600.0)
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        assert texts(client.complete([ask("hello")])) == ["hello"]
        server.frozen, server.statuses = True, [504] * 20
        with completing(client, map(str, range(24))) as outcomes:
            wait_until(lambda: len(server.active) == 24)
            server.frozen = False
            assert len(texts(outcomes.result(30))) == 24
        assert client.max_in_flight == FIRST_LIMIT // 2


def test_an_error_while_a_limit_is_adapted_is_logged_once_and_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Observation] = []
    observe = AutoLimit.observe

    def fail_at_first(limit: AutoLimit, observation: Observation) -> None:
        seen.append(observation)
        if len(seen) <= 3:
            raise LookupError("odd counters")
        observe(limit, observation)

    monkeypatch.setattr(AutoLimit, "observe", fail_at_first)
    monkeypatch.setattr(steering, "_TICK_SECONDS", 0.01)
    rows = (str(number) for number in takewhile(lambda _: len(seen) < 6, count()))
    with FakeVLLM() as server, ChatClient(endpoint(server.url)) as client:
        server.latency, server.tokens = 0.05, 1
        with completing(client, rows) as outcomes:
            wait_until(lambda: len(seen) > 5)
            assert len(texts(outcomes.result(30))) == client.stats.requests > 0
    assert logged(caplog) == [
        "adapting the limit of requests in flight failed: LookupError: odd counters"
    ]


def test_the_slots_of_a_real_server_are_found(start_stub: Any) -> None:
    """It is asked until the limit has been between its slots and a quarter more for a second."""
    stub = start_stub("--metrics", latency=0.4, slots=96)
    limits: list[int] = []
    settled, over = threading.Event(), threading.Event()
    with ChatClient(endpoint(stub.url, model="stub")) as client:

        def watch() -> None:
            while not over.wait(0.05):
                limits.append(client.max_in_flight)
                if len(limits) >= 20 and all(96 <= limit <= 120 for limit in limits[-20:]):
                    settled.set()

        def until_settled() -> Iterator[str]:
            deadline = monotonic() + 60
            for number in count():
                if settled.is_set() or monotonic() > deadline:
                    return
                yield str(number)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert len(texts(client.complete(map(ask, until_settled())))) > 96
        finally:
            over.set()
            watcher.join()
    assert settled.is_set(), limits[-20:]
    assert limits[0] == FIRST_LIMIT
    assert max(limits) <= 3 * 96  # so that the queue is at most twice the slots


def test_clients_that_share_a_server_begin_with_their_share_of_the_first_limit() -> None:
    with FakeVLLM() as server, ChatClient(endpoint(server.url), sharers=4) as client:
        assert client.max_in_flight == FIRST_LIMIT // 4
        assert texts(client.complete([ask("hello")])) == ["hello"]
        assert client.max_in_flight == FIRST_LIMIT // 4


def test_clients_in_two_processes_share_a_real_server(start_stub: Any) -> None:
    """They send until ten looks have found all slots in use and a short queue."""
    stub = start_stub("--metrics", latency=0.4, slots=64)
    command = [sys.executable, auto_limit.__file__, "client", "--sharers=2", "--seconds=600"]
    seen: list[Counters] = []

    def have_settled() -> bool:
        seen.append(stub_counters(stub))
        return sum(page.running == 64 and page.waiting <= 16 for page in seen) >= 10

    with ExitStack() as stack:
        clients = [
            stack.enter_context(ClientProcess([*command, f"--url={stub.url}"])) for _ in range(2)
        ]
        for client in clients:
            assert client.read() == "ready\n"
        for client in clients:
            client.start()
        wait_until(have_settled, 60)
        assert {client.poll() for client in clients} == {None}
    assert max(page.waiting for page in seen) <= 2 * 64
