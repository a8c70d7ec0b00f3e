"""Measure speed, memory and CPU side by side with other clients, and write them into the docs.

    python benchmarks/performance.py [SCENARIO ...] [--repeats 3] [--quick]

The results are kept in `build/performance/results.json` after each scenario, and the table in
`docs/performance.md` is written from all that are there: a run that was cut off goes on with the
scenarios that are named, or with `--missing`. With `--quick`, few rows are taken and the docs are
left alone. Everything together takes about 30 minutes on two idle cores; the page says how long
each scenario took.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import performance_scenarios
from performance_bench import Bench, Run
from performance_figures import FIGURES, notes, table

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "performance"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
ON_REQUEST = ("cores",)
"""Scenarios that run only when they are named: they are for machines with many cores."""


def measure(names: list[str], bench: Bench, results: Path) -> list[str]:
    """Run the scenarios; see `measure_each`."""

    def runs_of(name: str) -> dict[str, Any]:
        runs = getattr(performance_scenarios, name)(bench)
        return {"runs": {who: [asdict(run) for run in each] for who, each in runs.items()}}

    about = {name: str(getattr(performance_scenarios, name).__doc__) for name in names}
    return measure_each(about, runs_of, results)


def measure_each(
    about: Mapping[str, str], measured: Callable[[str], dict[str, Any]], results: Path
) -> list[str]:
    """Measure by name, and keep what was measured of each as soon as it has ended.

    Args:
        about: what each is, by its name.
        measured: measures one.
        results: file with what is kept, by name, with date, machine and minutes.

    Returns:
        Those that failed; the others are measured all the same.
    """
    failed = []
    for name, text in about.items():
        print(f"{name}: {text}", flush=True)
        started = time.monotonic()
        try:
            found = measured(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        kept = read(results)
        kept[name] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "minutes": round((time.monotonic() - started) / 60, 1),
            **found,
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(kept, indent=1) + "\n")
    return failed


def read(results: Path) -> dict[str, Any]:
    """All results so far, by scenario."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    return kept


def machine() -> str:
    """Processor, memory, and the versions that matter."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in info if line.startswith("model name")), "").partition(": ")[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, Prefect {version('prefect')}"
    )


def section(kept: dict[str, Any]) -> str:
    """Date, machine, table, and how long each scenario took."""
    where = sorted({f"{result['date']}, {result['machine']}" for result in kept.values()})
    runs = {
        name: {
            contestant: [Run(**run) for run in each] for contestant, each in result["runs"].items()
        }
        for name, result in kept.items()
    }
    minutes = {name: result["minutes"] for name, result in kept.items()}
    took = ", ".join(f"`{name}` {each}" for name, each in minutes.items())
    return (
        f"Measured on {'; '.join(where)}.\n\n{table(runs)}\n{notes(runs)}"
        f"Minutes by scenario: {took}; {sum(minutes.values()):.0f} together.\n"
    )


def write(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what is between the marks on the page."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    assert mark, f"{page} has no {begin.strip()} and {end.strip()}"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main() -> None:
    """Measure, keep the results, write the page."""
    everything = [name for name in FIGURES if name not in ON_REQUEST]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(FIGURES))
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; some run less often")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all works")
    parser.add_argument("--missing", action="store_true", help="only those without results")
    parser.add_argument("--results", type=Path, help="where results are kept")
    parser.add_argument("--page", type=Path, help="where the table is written")
    options = parser.parse_args()
    results = options.results or BUILD / ("quick.json" if options.quick else "results.json")
    page = options.page or (None if options.quick else PAGE)
    names: list[str] = options.scenarios or everything
    if unknown := set(names) - set(FIGURES):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    if options.missing:
        names = [name for name in names if name not in read(results)]
    BUILD.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    if names:
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            bench = Bench(Path(scratch), BUILD, options.repeats, options.quick)
            failed = measure(names, bench, results)
    text = section(read(results))
    if page:
        write(page, text)
    print(text)
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    main()
