"""Measure what checks find and lose on the demo model's scenes, and write it into the docs.

    python benchmarks/checks.py [SOURCE ...] [--pairs 2000] [--quick] [--missing]

Each source is a dataset whose pairs are known to be right or wrong (`check_sources.py`). It is run
with all checks on a real vLLM server with the demo model, one check after the other, so that the
requests and seconds of each are known. The results are kept in `build/checks/results.json` after
each source, and the tables in `docs/checks_measured.md` are written from all that are there:
`--missing` goes on with the others. A source that was cut off goes on where it was: its output is
in `build/checks` too. With `--quick`, there are few pairs and the docs are left alone.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.request import urlopen

import pyarrow.parquet as pq
from check_figures import Cost, Result, evaluate, tables
from check_sources import SOURCES, Item, draw_source
from performance import BEGIN, END, measure_each, read, write
from prefect_imageqa import Columns, Sampling, image_qa
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer
from prefect_imageqa.tasks.checking.catalogue import CheckName
from prefect_imageqa.tasks.runs.checks import Checks
from prefect_imageqa.tasks.runs.parameters import Limits, Parsing
from prefect_imageqa.tasks.runs.pilot import Pilot
from prefect_imageqa.tasks.storing.layout import JUDGED

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "checks"
PAGE = ROOT / "docs" / "checks_measured.md"
CHECKPOINT = ROOT / "serving" / "demo_model" / "checkpoint"
RUBRIC = Path(__file__).with_name("demo_rubric.md")
"""The demo model was taught to judge with it; it cannot follow the built-in one."""
MODEL = "demo"
PAIRS, FEW_PAIRS = 2000, 40
SEED = 15
COSTS = "costs.json"
CHECKS = tuple(name for name in get_args(CheckName) if name != "contamination")
"""All that need no files of the user."""


@dataclass(frozen=True)
class Bench:
    """What all sources are measured with.

    Attributes:
        url: of the server.
        model: the name it serves the demo model under.
        digest: of the model: another one must not find the answers of this one.
        checks: names of the checks.
        folder: for datasets and outputs.
        pairs: rows of each source.
    """

    url: str
    model: str
    digest: str
    checks: Sequence[str]
    folder: Path
    pairs: int


def measure(name: str, bench: Bench) -> Result:
    """Run a source, then with one more check at a time, and compare its pairs with the truth."""
    folder = bench.folder / f"{name}-{bench.pairs}-{SEED}-{bench.digest}"
    items = draw_source(name, folder / "data", bench.pairs, SEED)
    parameters = _parameters(name, folder, items, bench)
    _run("", parameters, folder / COSTS)
    for number, check in enumerate(bench.checks, 1):
        names = tuple(bench.checks[:number])
        checks = Checks(names=names, rubric=str(RUBRIC) if "judge" in names else "")
        _run(check, parameters | {"checks": checks}, folder / COSTS)
    judged = pq.read_table(folder / "output" / JUDGED)
    costs = {check: Cost(**cost) for check, cost in read(folder / COSTS).items()}
    return replace(evaluate(name, items, judged), costs=costs)


def _parameters(name: str, folder: Path, items: Sequence[Item], bench: Bench) -> dict[str, Any]:
    return {
        "dataset": str(folder / "data" / "dataset.jsonl"),
        "output": str(folder / "output"),
        "endpoint": bench.url,
        "model": bench.model,
        "sampling": Sampling(temperature=SOURCES[name].temperature, top_p=1.0, seed=SEED),
        "columns": Columns(answer="answer" if items[0].answer else None),
        "parsing": Parsing(parser="answer" if items[0].question else "qa_pairs"),
        "limits": Limits(max_error_rate=1.0),
        "pilot": Pilot(image_proof=False),
    }


def _run(check: str, parameters: dict[str, Any], costs: Path) -> None:
    """Make a run that adds a check, and record what it cost, unless it had been made before.

    Of a check that was cut off, only the requests of the last attempt are counted.
    """
    started = time.monotonic()
    summary = image_qa(**parameters)
    print(f"{check or 'pairs'}: {summary}", flush=True)
    known = read(costs)
    if check not in known or summary.requests:
        known[check] = asdict(Cost(summary.requests, round(time.monotonic() - started, 1)))
        costs.write_text(json.dumps(known))


def measure_all(names: Sequence[str], bench: Bench, results: Path) -> list[str]:
    """Measure sources, and keep the results of each as soon as it has ended.

    Returns:
        Those that failed; the others are measured all the same.
    """
    about = {name: SOURCES[name].about for name in names}
    return measure_each(about, lambda name: {"result": measure(name, bench).to_plain()}, results)


def section(kept: dict[str, Any]) -> str:
    """Date, machine, sources, tables, and how long each source took."""
    where = sorted({f"{each['date']}, {each['machine']}" for each in kept.values()})
    names = [name for name in SOURCES if name in kept]
    about = "".join(f"- **{name}**: {SOURCES[name].about}\n" for name in names)
    took = ", ".join(f"{name} {kept[name]['minutes']}" for name in names)
    results = {name: Result.from_plain(kept[name]["result"]) for name in names}
    return (
        f"Measured on {'; '.join(where)}, on a real vLLM server with the demo model, with 95 % "
        f"confidence intervals in brackets.\n\n{about}\n{tables(results)}\n"
        f"Minutes by source: {took}.\n"
    )


def _served_model(url: str) -> str:
    with urlopen(f"{url.rstrip('/')}/v1/models", timeout=30) as response:  # noqa: S310
        return str(json.load(response)["data"][0]["id"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=", ".join(SOURCES))
    parser.add_argument("--pairs", type=int, help=f"rows of each source; {PAIRS:,} by default")
    parser.add_argument("--quick", action="store_true", help="few pairs, to see that all works")
    parser.add_argument("--missing", action="store_true", help="only those without results")
    parser.add_argument("--check", action="append", choices=CHECKS, help="only these checks")
    parser.add_argument("--endpoint", help="a server of the checkpoint; by default one is started")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the demo model")
    parser.add_argument("--results", type=Path, help="where results are kept")
    parser.add_argument("--page", type=Path, help="where the tables are written")
    options = parser.parse_args()
    options.results = options.results or BUILD / ("quick.json" if options.quick else "results.json")
    options.page = options.page or (None if options.quick else PAGE)
    options.pairs = options.pairs or (FEW_PAIRS if options.quick else PAIRS)
    options.sources = options.sources or list(SOURCES)
    if unknown := set(options.sources) - set(SOURCES):
        parser.error(f"no such source: {', '.join(unknown)}")
    if options.page and END not in options.page.read_text("utf-8"):
        parser.error(f"{options.page} has no {BEGIN.strip()} and {END.strip()}")
    return options


def main() -> None:
    """Measure, keep the results, write the page."""
    options = _options()
    names, failed = options.sources, list[str]()
    if options.missing:
        names = [name for name in names if name not in read(options.results)]
    if names:
        weights = (options.checkpoint / "model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()[:8]
        with ExitStack() as stack:
            url, model = options.endpoint, MODEL
            if url is None:
                server = ServerOptions(model=options.checkpoint, served_model_name=MODEL)
                url = stack.enter_context(VLLMServer(server)).url
            else:
                model = _served_model(url)
            bench = Bench(url, model, digest, options.check or CHECKS, BUILD, options.pairs)
            failed = measure_all(names, bench, options.results)
    text = section(read(options.results))
    if options.page:
        write(options.page, text)
    print(text)
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    main()
