"""Measure runs on several workers, and a run of a million rows, into `docs/scaling.md`.

    python benchmarks/workers.py [SCENARIO ...] [--quick]

The results are kept in `build/workers/results.json` after each scenario. Ray and Dask are measured
where they are installed. On a machine with few cores, the stubs, the workers and Prefect's server
share them: then the figures say what workers cost, and not how much faster they are.
"""

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from auto_limit import SAMPLE_SECONDS, waiting
from drawn_images import draw_images, draw_large
from performance import measure_each, read, write
from performance_bench import BIN, Bench, Run
from servers import PrefectServer, S3Server, StubServer

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "workers"
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
STUB = ("--metrics", "--latency=0.05", "--slots=256")
EXPORTS = ("qa.jsonl", "pairs.parquet", "quarantine.jsonl")
Result = dict[str, Any]


def engines(bench: Bench) -> list[Result]:
    """20,000 rows on two stubs: alone, and with workers of each engine."""
    rows = bench.rows(20_000, 64)
    dataset = write_rows(bench.path("rows.jsonl"), small_images(bench), rows)
    results: list[Result] = []
    with ExitStack() as stack:
        stubs = [stack.enter_context(StubServer(*STUB)) for _ in range(2)]

        def run(name: str, *flags: str) -> None:
            output = bench.path("output")
            before = asked(stubs)
            urls = [stub.url for stub in stubs]
            measured = bench.ours(dataset, urls, "--no-image-proof", *flags, output=output)
            note(name, measured, before, digests(output))
            shutil.rmtree(output)

        def note(name: str, measured: Run, before: int, exported: Mapping[str, str]) -> None:
            first = results[0]["exports"] if results else exported
            results.append(
                {
                    "name": name,
                    **asdict(measured),
                    "requests": asked(stubs) - before,
                    "exports": exported,
                    "same": exported == first,
                }
            )
            print(f"  {name}: {measured.rate:,.0f} rows/s, {results[-1]}", flush=True)

        run("without workers")
        for number in (1, 2):
            run(f"{number} processes", "--engine=processes", f"--workers={number}")
        for engine, module in (("dask", "distributed"), ("ray", "ray")):
            if find_spec(module):
                run(f"2 of {engine}", f"--engine={engine}", "--workers=2")
        with work_pool(bench.path("pool")) as (environment, uri, objects):
            before = asked(stubs)
            command = [str(BIN / "prefect-imageqa"), "run", str(dataset), "--output", uri]
            command += [part for stub in stubs for part in ("--endpoint", stub.url)]
            command += ["--engine=work-pool", "--workers=2", "--no-image-proof", "--json"]
            measured = bench.on_server(command, environment)
            note("2 of a work pool, on S3", measured, before, digests(objects))
    return results


def large(bench: Bench) -> list[Result]:
    """768 JPEGs of 12 megapixels on 1 and 2 cores: alone, and with as many processes."""
    folder = draw_large(bench.path("large"), bench.rows(768, 4), seed=1)[0].parent
    results = []
    with StubServer(*STUB) as stub:
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            for engine in ("threads", "processes"):
                workers = cores if engine == "processes" else 1
                flags = (f"--engine={engine}", f"--workers={workers}", "--no-image-proof")
                measured = bench.ours(folder, [stub.url], *flags, cores=cores)
                name = f"{cores} cores, {workers} {engine}"
                results.append({"name": name, **asdict(measured)})
                print(f"  {name}: {measured.rate:.1f} rows/s", flush=True)
    return results


def queue(bench: Bench) -> list[Result]:
    """Longest queue of a stub with 64 slots: one, two and four workers."""
    rows = bench.rows(8_000, 64)
    dataset = write_rows(bench.path("rows.jsonl"), small_images(bench), rows)
    results = []
    for workers in (1, 2, 4):
        with StubServer("--metrics", "--latency=0.2", "--slots=64") as stub:
            flags = ["--engine=processes", f"--workers={workers}", "--no-image-proof"]
            with longest_queue(stub) as seen:
                measured = bench.ours(dataset, [stub.url], *flags)
            longest = max(seen, default=0)
            results.append({"name": f"{workers} processes", **asdict(measured), "queue": longest})
            print(f"  {workers}: {measured.rate:.0f} rows/s, queue {longest:.0f}", flush=True)
    return results


def million(bench: Bench) -> list[Result]:
    """A million rows; the same again, all finished; then with 1,000 more."""
    rows, more = bench.rows(1_000_000, 500), bench.rows(1_000, 10)
    images, output = small_images(bench), bench.path("output")
    dataset = write_rows(bench.path("rows.jsonl"), images, rows)
    results = []
    with StubServer("--metrics", "--latency=0.05", "--slots=512") as stub:
        for name in ("first", "again", "appended"):
            if name == "appended":
                write_rows(dataset, images, more, first=rows)
            before = asked([stub])
            run = bench.ours(
                dataset, [stub.url], "--no-image-proof", output=output, tree=name == "first"
            )
            result = {
                "name": name,
                **asdict(run),
                "requests": asked([stub]) - before,
                **prefect_counts(bench.database),
                "objects": sum(1 for file in output.rglob("*") if file.is_file()),
                "bytes": sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
            }
            results.append(result)
            print(f"  {name}: {result}", flush=True)
    shutil.rmtree(output)
    return results


SCENARIOS = {scenario.__name__: scenario for scenario in (engines, large, queue, million)}


def small_images(bench: Bench) -> list[Path]:
    """Small pictures, for rows that differ by their conversations."""
    return draw_images(bench.path("small"), bench.rows(512), seed=1, noise=0)


def write_rows(path: Path, images: Sequence[Path], rows: int, first: int = 0) -> Path:
    """Append rows with distinct conversations to a dataset."""
    with path.open("a") as file:
        for row in range(first, first + rows):
            record = {"image": str(images[row % len(images)]), "conversation": f"row {row}"}
            file.write(json.dumps(record) + "\n")
    return path


@contextmanager
def longest_queue(stub: StubServer) -> Iterator[list[float]]:
    """Notes how many requests wait at a stub, again and again during the block."""
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS / 2):
            seen.append(waiting(stub))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seen
    ended.set()
    watcher.join()


def asked(stubs: Sequence[StubServer]) -> int:
    """Requests to all of them so far."""
    return sum(stub.counts()[0] for stub in stubs)


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of the exports."""
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in EXPORTS}


def prefect_counts(database: Path) -> dict[str, int]:
    """Task runs, events and logs in Prefect's database, and its size."""
    counts = {"database_bytes": database.stat().st_size}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for table in ("task_run", "events", "log"):
            with suppress(sqlite3.OperationalError):
                found = connection.execute(f"SELECT COUNT(*) FROM {table}")  # noqa: S608
                counts[table] = int(found.fetchone()[0])
    return counts


@contextmanager
def work_pool(folder: Path) -> Iterator[tuple[dict[str, str], str, Path]]:
    """A work pool with two workers that share only S3 and Prefect's API with one another.

    Yields:
        The environment for a run, its output on S3, and where the objects of that are.
    """
    (folder / "server").mkdir(parents=True)
    with PrefectServer(folder / "server") as prefect, S3Server(folder / "s3") as s3:
        common = os.environ | prefect.environment | s3.environment

        def environment(name: str) -> dict[str, str]:
            home = folder / name
            home.mkdir()
            own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
            return common | own | {"PREFECT_HOME": str(home / "prefect")}

        def prefect_cli(*command: str) -> None:
            env = environment(f"cli-{command[0]}-{command[1]}")
            subprocess.run([str(BIN / "prefect"), "--no-prompt", *command], env=env, check=True)

        prefect_cli("work-pool", "create", "measured", "--type", "process")
        subprocess.run(
            [str(BIN / "prefect-imageqa"), "deploy", "--pool", "measured"],
            env=environment("deploy"),
            check=True,
        )
        with ExitStack() as stack:
            for number in (1, 2):
                command = [str(BIN / "prefect"), "worker", "start", "--pool", "measured"]
                env = environment(f"worker-{number}")
                worker = subprocess.Popen(
                    [*command, "--limit", "1"],
                    env=env,
                    cwd=env["HOME"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                stack.callback(worker.wait)
                stack.callback(worker.kill)  # its flow runs have ended; SIGTERM may be ignored
            yield environment("run"), f"{s3.uri}/output", s3.bucket / "output"


def main() -> None:
    """Measure, keep the results, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all works")
    options = parser.parse_args()
    names: list[str] = options.scenarios or list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    results = BUILD / ("quick.json" if options.quick else "results.json")
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        bench = Bench(Path(scratch), BUILD, 1, options.quick)

        def measured(name: str) -> Result:
            return {"runs": SCENARIOS[name](bench)}

        about = {name: str(SCENARIOS[name].__doc__) for name in names}
        failed = measure_each(about, measured, results)
    text = section(read(results))
    print(text)
    if not options.quick:
        write(PAGE, text, BEGIN, END)
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


Columns = Mapping[str, Callable[[Result], str]]

COMMON: dict[str, Callable[[Result], str]] = {
    "rows": lambda run: f"{run['rows']:,}",
    "rows/s": lambda run: f"{run['rows'] / run['seconds']:,.0f}",
    "s, all": lambda run: f"{run['wall']:,.0f}",
    "CPU s": lambda run: f"{run['cpu']:,.0f}",
    "peak MiB of a process": lambda run: f"{run['peak_mib']:,.0f}",
}
COLUMNS: Mapping[str, Columns] = {
    "engines": COMMON
    | {
        "requests": lambda run: f"{run['requests']:,}",
        "exports": lambda run: "the same bytes" if run["same"] else "differ",
    },
    "large": COMMON | {"rows/s": lambda run: f"{run['rows'] / run['seconds']:.1f}"},
    "queue": COMMON | {"longest queue": lambda run: f"{run['queue']:.0f}"},
    "million": COMMON
    | {
        "requests": lambda run: f"{run['requests']:,}",
        "task runs": lambda run: f"{run['task_run']:,}",
        "Prefect's database, MiB": lambda run: f"{run['database_bytes'] / 2**20:.0f}",
        "objects": lambda run: f"{run['objects']:,}",
        "output, MiB": lambda run: f"{run['bytes'] / 2**20:,.0f}",
    },
}


def section(kept: Mapping[str, Any]) -> str:
    """The tables of all scenarios that were measured."""
    parts = []
    for name, columns in COLUMNS.items():
        if name not in kept:
            continue
        measured = kept[name]
        lines = [("", *columns), ("---",) * (len(columns) + 1)]
        lines += [
            (run["name"], *(cell(run) for cell in columns.values())) for run in measured["runs"]
        ]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        about = str(SCENARIOS[name].__doc__).rstrip(".")
        parts.append(f"{about} ({measured['date']}, {measured['machine']}):\n\n{table}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
