"""What `performance.py` measures: each scenario is a function from the bench to runs by contestant.

The contestants of a scenario run in turn, on the same servers. `performance_figures.py` says what
is made of the runs.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from auto_limit import CHANGING as CHANGING_PROFILE
from auto_limit import FAST as FAST_PROFILE
from auto_limit import SLOW as SLOW_PROFILE
from auto_limit import Profile
from auto_limit import measure as measure_limit
from drawn_images import draw_images, draw_large
from performance_bench import Bench, Run, Runs
from prefect_imageqa.serving.client.auto_limit import MaxInFlight
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer
from servers import StubServer

CHECKPOINT = Path(__file__).resolve().parent.parent / "serving" / "demo_model" / "checkpoint"
STUB_FLAGS = ("--metrics", "--latency=0.05", "--slots=256")
FAST, HALF = (
    ("--metrics", "--latency=0.5", "--slots=32"),
    ("--metrics", "--latency=1", "--slots=32"),
)
"""Servers of 64 and of 32 rows/s, so that the client's cores are no limit."""
NO_PROOF = "--no-image-proof"
"""Asks nothing before the rows: it takes some seconds of such slow servers, of which a run on two
would have it and a shorter one on one would not."""
ROWS_EACH = 768
"""Rows for each of them: they fill their slots 24 times, so that a last few rows weigh little."""
AUTO_PROFILES: dict[str, tuple[Profile, int, Sequence[MaxInFlight]]] = {
    "fast": (FAST_PROFILE, 6, ("auto", 128, 256, 512)),
    "slow": (SLOW_PROFILE, 12, ("auto", 32, 64)),
    "changing": (CHANGING_PROFILE, 24, ("auto", 48, 64, 96)),
}
"""Servers by name, seconds to measure each, and the limits to try on each."""
AT_ONCE = 256
VLLM_AT_ONCE = 128
"""Requests in flight of the clients to compare with."""


def stub(bench: Bench) -> Runs:
    """All clients on the stub, 640x480."""
    full, few = bench.rows(4096), bench.rows(1024)
    with StubServer(*STUB_FLAGS) as server:

        def ask(kind: str, rows: int, at_once: int) -> Run:
            with bench.new_images(rows) as images:
                return bench.client(kind, images, server.url, server.model, at_once)

        return bench.rounds(
            {
                "raw": partial(ask, "raw", full, AT_ONCE),
                "fast raw": partial(ask, "fastraw", full, AT_ONCE),
                "ours": partial(_ours_on_new, bench, full, server),
                "script": partial(ask, "script", full, AT_ONCE),
                "pool of 10": partial(ask, "pool", few, 10),
                "pool of 64": partial(ask, "pool", few, 64),
            }
        )


def thousand(bench: Bench) -> Runs:
    """The plain script and ours at 1,000 rows."""
    rows = bench.rows(1000)
    with StubServer(*STUB_FLAGS) as server:

        def script() -> Run:
            with bench.new_images(rows) as images:
                return bench.client("script", images, server.url, server.model, AT_ONCE)

        return bench.rounds({"script": script, "ours": partial(_ours_on_new, bench, rows, server)})


def slope(bench: Bench) -> Runs:
    """CPU of few and of many rows."""
    few, many = bench.rows(4096, 16), bench.rows(32_768, 64)
    with StubServer(*STUB_FLAGS) as server:
        return bench.rounds(
            {
                "few": partial(_ours_on_new, bench, few, server),
                "many": partial(_ours_on_new, bench, many, server),
            },
            most=3,
        )


def one(bench: Bench) -> Runs:
    """One row, and a flow that does nothing; both also as the first run on a machine."""
    with StubServer(*STUB_FLAGS) as server:
        ours = partial(_ours_on_new, bench, 1, server)
        return bench.rounds({"empty flow": bench.empty_flow, "ours": ours}) | bench.rounds(
            {
                "first empty flow": partial(bench.empty_flow, is_first=True),
                "first": partial(ours, is_first=True),
            }
        )


def memory(bench: Bench) -> Runs:
    """10,000 and 100,000 rows; then the latter again, all finished, in turn with an empty flow."""
    few, many = bench.rows(10_000), bench.rows(100_000, 64)
    finished = bench.path("finished")
    with StubServer(*STUB_FLAGS) as server:
        images = _drawn(bench)
        small, large = _dataset(bench, images, few), _dataset(bench, images, many)
        contestants = {
            "few": partial(bench.ours, small, [server.url], tree=True),
            "many": partial(bench.ours, large, [server.url], output=finished, tree=True),
        }
        runs = bench.rounds(contestants, most=1)
        again = partial(bench.ours, large, [server.url], output=finished)
        runs |= bench.rounds({"empty flow": bench.empty_flow, "again": again})
    shutil.rmtree(finished)
    return runs


def servers(bench: Bench) -> Runs:
    """One to eight equal servers, as many rows for each."""
    each = bench.rows(ROWS_EACH, 4)
    with ExitStack() as stack:
        urls = [stack.enter_context(StubServer(*FAST)).url for _ in range(8)]
        images = _drawn(bench)

        def contestants(*numbers: int) -> dict[str, Callable[[], Run]]:
            return {
                f"{number}": partial(
                    bench.ours, _dataset(bench, images, number * each), urls[:number], NO_PROOF
                )
                for number in numbers
            }

        return bench.rounds(contestants(1, 2)) | bench.rounds(contestants(4, 8), most=1)


def unequal(bench: Bench) -> Runs:
    """A server, and the same with one at half its speed."""
    rows = bench.rows(ROWS_EACH, 4)
    with StubServer(*FAST) as fast, StubServer(*HALF) as half:
        images = _drawn(bench)
        alone, both = _dataset(bench, images, rows), _dataset(bench, images, rows * 3 // 2)
        return bench.rounds(
            {
                "fast": partial(bench.ours, alone, [fast.url], NO_PROOF),
                "fast and half": partial(bench.ours, both, [fast.url, half.url], NO_PROOF),
            }
        )


def uneven(bench: Bench) -> Runs:
    """All rows alike, one row that takes 20 s, and 1 % of the rows that take 3 s."""
    rows = bench.rows(3000, 64)
    long, some = (20, 3) if not bench.quick else (1, 1)
    with StubServer(*STUB_FLAGS) as server:
        images = _drawn(bench)
        cases: dict[str, dict[int, float]] = {
            "alike": {},
            "one late": {rows // 10: long},
            "1 % late": dict.fromkeys(range(50, rows, 100), some),
        }
        contestants: dict[str, Callable[[], Run]] = {
            name: partial(bench.ours, _dataset(bench, images, rows, late), [server.url])
            for name, late in cases.items()
        }
        return bench.rounds(contestants, most=1)


def auto(bench: Bench) -> Runs:
    """The automatic limit of requests in flight, and fixed ones."""

    def run(profile: Profile, limit: MaxInFlight, seconds: float) -> Run:
        measured = measure_limit([profile], limit, seconds, metrics=True)
        rows = round(measured.rows_per_second * seconds)
        queue, limits = max(measured.queues, default=0), measured.limits
        return Run(rows, seconds, seconds, 0, 0, 0, queue=queue, limits=limits)

    contestants: dict[str, Callable[[], Run]] = {}
    for name, (profile, seconds, limits) in AUTO_PROFILES.items():
        for limit in limits:
            contestants[f"{name}, {limit}"] = partial(run, profile, limit, bench.rows(seconds, 2))
    return bench.rounds(contestants, most=3)


def vllm(bench: Bench) -> Runs:
    """The raw client and ours on vLLM, 640x480."""
    rows = bench.rows(2048)
    return _on_vllm(bench, partial(draw_images, count=rows, noise=0))


def vllm_large(bench: Bench) -> Runs:
    """A client that sends 12-megapixel files as they are, and ours, on vLLM."""
    rows = bench.rows(64, 4)
    return _on_vllm(bench, partial(draw_large, count=rows))


def cores(bench: Bench) -> Runs:
    """How many rows/s a run feeds on 1, 2, 4, ... cores, and how many large images it decodes."""
    available = len(os.sched_getaffinity(0))
    numbers = [2**power for power in range(8) if 2**power <= available]
    large = draw_large(bench.path("large"), bench.rows(192, 4), seed=1)[0].parent
    with ExitStack() as stack:
        # A stub is one process, which answers 4,000 to 5,000 rows/s.
        servers = [StubServer(*STUB_FLAGS) for _ in range(max(1, available // 4))]
        urls = [stack.enter_context(server).url for server in servers]

        def feed(number: int) -> Run:
            with bench.new_images(bench.rows(8192)) as images:
                return bench.ours(images, urls, cores=number)

        contestants: dict[str, Callable[[], Run]] = {}
        for number in numbers:
            contestants[f"{number}, 640x480"] = partial(feed, number)
            contestants[f"{number}, 12 Mpx"] = partial(bench.ours, large, urls, cores=number)
        return bench.rounds(contestants, most=3)


def _on_vllm(bench: Bench, draw: Callable[..., object]) -> Runs:
    """The raw client and ours, each time about new pictures: vLLM caches what it has processed."""
    with VLLMServer(ServerOptions(CHECKPOINT)) as server:

        def on_new(ask: Callable[[Path], Run]) -> Run:
            images = bench.path("images")
            draw(images, seed=bench.seed())
            try:
                return ask(images)
            finally:
                shutil.rmtree(images)

        def raw(images: Path) -> Run:
            return bench.client("raw", images, server.url, server.model_name, VLLM_AT_ONCE)

        def ours(images: Path) -> Run:
            return bench.ours(images, [server.url])

        on_new(raw)  # the first requests are slow
        return bench.rounds({"raw": partial(on_new, raw), "ours": partial(on_new, ours)}, most=3)


def _ours_on_new(bench: Bench, rows: int, server: StubServer, **options: Any) -> Run:
    with bench.new_images(rows) as images:
        return bench.ours(images, [server.url], **options)


def _drawn(bench: Bench) -> list[Path]:
    """Small pictures, for rows that differ by their conversations."""
    return draw_images(bench.path("small"), bench.rows(512), seed=1, noise=0)


def _dataset(
    bench: Bench, images: list[Path], rows: int, late: Mapping[int, float] | None = None
) -> Path:
    """Rows with distinct conversations; `late` maps some of them to their latency in seconds."""
    path = bench.path("rows.jsonl")
    with path.open("w") as file:
        for row in range(rows):
            command = f"STUB slow {late[row]} " if late and row in late else ""
            record = {
                "image": str(images[row % len(images)]),
                "conversation": f"{command}row {row}",
            }
            file.write(json.dumps(record) + "\n")
    return path
