"""Rows/s with the automatic limit of requests in flight, beside several fixed ones.

    python benchmarks/auto_limit.py [--without-metrics] [--seconds 20] [PART ...]

Small text requests are sent by `ChatClient` to the stub. Parts:

    profiles    a fast server (50 ms, 256 slots), a slow one (1 s, 32 slots) and one that changes
                midway (1 s, 32 slots, then 0.5 s and 96 slots, then 1 s and 48 slots)
    servers     1, 2 and 8 servers (2 s, 256 slots) with the automatic limit
    uneven      a fast server (1 s, 64 slots) alone, beside an equal one, and beside one of half the
                speed (2 s, 64 slots)
    shared      a server (1 s, 64 slots) that 1, 2 and 4 clients share, each in a process of its own

Each line has the rows/s from start to end, and after the first quarter of the time until nothing
more is sent; the longest queue at a server, in slots; and the limit over time, or how many requests
a server has that several clients share.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.request import Request, urlopen

from prefect_imageqa.serving.client import ChatClient
from prefect_imageqa.serving.client.auto_limit import MaxInFlight
from prefect_imageqa.serving.endpoint import VLLMEndpoint
from prefect_imageqa.serving.metrics import Counters, parse_metrics
from prefect_imageqa.serving.types import ChatRequest, Completion
from servers import StubServer

SAMPLE_SECONDS = 0.5
SHARED_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Profile:
    """A server's latency in seconds and its slots, and what they become at shares of the time."""

    latency: float
    slots: int
    changes: Sequence[tuple[float, float, int]] = ()

    def flags(self, *, metrics: bool) -> list[str]:
        """Flags of the stub."""
        flags = [f"--latency={self.latency}", f"--slots={self.slots}"]
        return [*flags, "--metrics"] if metrics else flags


FAST, SLOW = Profile(0.05, 256), Profile(1.0, 32)
CHANGING = Profile(1.0, 32, [(1 / 3, 0.5, 96), (2 / 3, 1.0, 48)])


@dataclass
class Measured:
    """What one run showed."""

    rows_per_second: float = 0.0
    steady: float = 0.0
    limits: list[int] = field(default_factory=list)
    queues: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        step = max(1, len(self.limits) // 20)
        limits = " ".join(map(str, self.limits[::step]))
        return (
            f"{self.rows_per_second:7.1f} rows/s, steady {self.steady:7.1f}, "
            f"queue {max(self.queues, default=0):4.2f} x slots, limit {limits}"
        )


def measure(
    profiles: Sequence[Profile], limit: MaxInFlight, seconds: float, *, metrics: bool
) -> Measured:
    """Send requests for some time to servers with these profiles."""
    measured, stop = Measured(), threading.Event()
    with ExitStack() as stack:
        stubs = [
            stack.enter_context(StubServer(*profile.flags(metrics=metrics))) for profile in profiles
        ]
        endpoint = VLLMEndpoint(urls=[stub.url for stub in stubs], model="stub")
        client = stack.enter_context(ChatClient(endpoint, limit))
        began = time.monotonic()
        watcher = threading.Thread(
            target=watch, args=(client, stubs, profiles, began, seconds, measured, stop)
        )
        watcher.start()
        outcomes = client.complete(requests(began + seconds))
        elapsed = time.monotonic() - began
        stop.set()
        watcher.join()
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    measured.rows_per_second = len(outcomes) / elapsed
    return measured


def measure_shared(profile: Profile, clients: int, seconds: float) -> Measured:
    """Send requests to one server from several clients, each in a process of its own."""
    command = [sys.executable, __file__, "client", f"--sharers={clients}", f"--seconds={seconds}"]
    measured, quarter = Measured(), (0.0, 0)
    with ExitStack() as stack:
        stub = stack.enter_context(StubServer(*profile.flags(metrics=True)))
        processes = [
            stack.enter_context(ClientProcess([*command, f"--url={stub.url}"]))
            for _ in range(clients)
        ]
        for process in processes:
            process.read()
        for process in processes:
            process.start()
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            counters = stub_counters(stub)
            measured.limits.append(counters.running + counters.waiting)
            measured.queues.append(counters.waiting / profile.slots)
            if now > seconds / 4:
                completions = stub.counts()[1]
                quarter = quarter if quarter[0] else (now, completions)
                measured.steady = (completions - quarter[1]) / max(now - quarter[0], 1e-6)
            time.sleep(SHARED_SAMPLE_SECONDS)
        results = [json.loads(process.read()) for process in processes]
    measured.rows_per_second = sum(done for done, _ in results) / max(took for _, took in results)
    return measured


class ClientProcess(subprocess.Popen[str]):
    """A client that starts to send when it is told to."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> str:
        """The next line that it writes."""
        assert self.stdout
        return self.stdout.readline()

    def start(self) -> None:
        """Have it send requests."""
        assert self.stdin
        self.stdin.write("\n")
        self.stdin.flush()

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


def run_client(url: str, sharers: int, seconds: float) -> None:
    """Send requests when told to; print how many were answered, and the seconds that took."""
    with ChatClient(VLLMEndpoint(urls=[url], model="stub"), sharers=sharers) as client:
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        outcomes = client.complete(requests(began + seconds))
        took = time.monotonic() - began
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    print(json.dumps([len(outcomes), took]))


def requests(end: float) -> Iterator[ChatRequest]:
    """Requests until some time."""
    while time.monotonic() < end:
        yield ChatRequest([{"role": "user", "content": "hello"}], {"max_tokens": 16})


def watch(
    client: ChatClient,
    stubs: Sequence[StubServer],
    profiles: Sequence[Profile],
    began: float,
    seconds: float,
    measured: Measured,
    stop: threading.Event,
) -> None:
    """Note the limit and the queues, and change the servers when it is time."""
    slots = [profile.slots for profile in profiles]
    changes = [
        (began + share * seconds, number, latency, count)
        for number, profile in enumerate(profiles)
        for share, latency, count in profile.changes
    ]
    quarter: tuple[float, int] | None = None
    while not stop.wait(SAMPLE_SECONDS):
        now, completions = time.monotonic() - began, client.stats.completions
        if now > seconds / 4:
            quarter = quarter or (now, completions)
            if quarter[0] < now <= seconds:
                measured.steady = (completions - quarter[1]) / (now - quarter[0])
        measured.limits.append(client.max_in_flight)
        while changes and time.monotonic() >= changes[0][0]:
            _, number, latency, count = changes.pop(0)
            change(stubs[number], latency, count - slots[number])
            slots[number] = count
        for number, stub in enumerate(stubs):
            measured.queues.append(waiting(stub) / slots[number])


def change(stub: StubServer, latency: float, more_slots: int) -> None:
    """Give the stub another latency and number of slots."""
    body = json.dumps({"latency": latency, "more_slots": more_slots}).encode()
    urlopen(Request(f"{stub.url}/profile", body), timeout=30).close()  # noqa: S310 - loopback


def waiting(stub: StubServer) -> int:
    """Requests that wait for a slot; 0 if the stub does not tell."""
    try:
        return stub_counters(stub).waiting
    except OSError:
        return 0


def stub_counters(stub: StubServer) -> Counters:
    """What the stub's page of metrics shows.

    Raises:
        OSError: it has none.
    """
    with urlopen(f"{stub.url}/metrics", timeout=30) as page:  # noqa: S310 - loopback
        counters = parse_metrics(page.read().decode())
    assert counters
    return counters


def main() -> None:
    """Measure the parts that are named, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["profiles", "servers", "uneven", "shared"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--without-metrics", action="store_true")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--sharers", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts == ["client"]:
        run_client(options.url, options.sharers, options.seconds)
        return

    def show(name: str, profiles: Sequence[Profile], limit: MaxInFlight = "auto") -> None:
        result = measure(profiles, limit, options.seconds, metrics=not options.without_metrics)
        print(f"{name:34s} {limit!s:>5s} {result}", flush=True)

    if "profiles" in options.parts:
        named = {"fast": FAST, "slow": SLOW, "changing": CHANGING}
        for name, profile in named.items():
            for limit in ("auto", 16, 32, 64, 128, 256):
                show(name, [profile], limit)
    if "servers" in options.parts:
        for count in (1, 2, 8):
            show(f"{count} of 256 slots, 2 s", [Profile(2.0, 256)] * count)
    if "uneven" in options.parts:
        fast = Profile(1.0, 64)
        show("one", [fast])
        show("two equal ones", [fast, fast])
        show("one, and one at half its speed", [fast, Profile(2.0, 64)])
    if "shared" in options.parts:
        for clients in (1, 2, 4):
            result = measure_shared(Profile(1.0, 64), clients, options.seconds)
            print(f"{f'shared by {clients}':34s} {'auto':>5s} {result}", flush=True)


if __name__ == "__main__":
    main()
