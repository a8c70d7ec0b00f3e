"""How a run behaves when what it depends on fails: how long it takes, what it loses, what it says.

    python benchmarks/faults.py [--list] [--limit 1800] [--logs build/faults] [SCENARIO ...]

Each scenario is a run of the program against servers of its own, after one of the same size without
the fault ("clean"). The table shows

    seconds, clean    wall time of the two runs, with about 5 s for the start
    answered, quar.   rows in the output
    requests          completions asked for, per row
    exit              exit code; "killed" if it took longer than the limit
    fault             second in which the fault began; 0 if it was there from the start
    named             second in which the first line on stderr named a problem

and below each row that line, and the run's last one. `--logs` gets all lines with their times.
"""

import argparse
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fault_scenarios import SCENARIOS
from fault_world import Scenario, World, place, start_run, start_servers
from servers import PrefectServer
from timed_run import Line, stored_counts

COLUMNS = (32, 8, 7, 9, 6, 9, 7, 7, 7)
HEAD = ("scenario", "seconds", "clean", "answered", "quar.", "requests", "exit", "fault", "named")


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        requests: completions that the servers were asked for.
        fault_at: when the fault began, in seconds since the run was started.
        named: the first line since then that names a problem.
        last: the last line.
    """

    seconds: float
    answered: int
    quarantined: int
    requests: int
    exit_code: int | None
    fault_at: float
    named: Line | None
    last: str


@dataclass(frozen=True)
class Bench:
    """What the scenarios share.

    Attributes:
        scratch: folder for datasets and outputs.
        logs: folder for the lines of the runs.
        limit: seconds after which a run is killed.
        prefect: the Prefect server of all runs that leave it alone.
    """

    scratch: Path
    logs: Path
    limit: float
    prefect: PrefectServer

    def measure(self, name: str, scenario: Scenario, faulty: bool) -> Result:
        """Run a scenario, with or without its fault."""
        log = self.logs / f"{name}{'' if faulty else '-clean'}.log"
        with (
            tempfile.TemporaryDirectory(dir=self.scratch) as temporary,
            start_servers(scenario, Path(temporary), self.prefect, faulty) as servers,
        ):
            folder = Path(temporary)
            run = start_run(scenario, servers, folder, log)
            world = World(scenario.rows, run, servers)
            if faulty and scenario.inject:
                scenario.inject(world)
            run.wait(self.limit)
            answered, quarantined = stored_counts(
                place("output", "out", scenario, servers, folder)[0]
            )
            return Result(
                seconds=run.seconds,
                answered=answered,
                quarantined=quarantined,
                requests=sum(stub.counts()[0] for stub in servers.stubs),
                exit_code=run.exit_code,
                fault_at=world.fault_at,
                named=run.first_problem(world.fault_at),
                last=run.lines[-1].text if run.lines else "",
            )


def show(*cells: object) -> None:
    """Print a row of the table."""
    first, *others = (str(cell).rjust(width) for cell, width in zip(cells, COLUMNS, strict=True))
    print(first.strip().ljust(COLUMNS[0]) + "".join(others), flush=True)


def compare(name: str, bench: Bench) -> None:
    """Measure a scenario without and with its fault, and print its row."""
    scenario = SCENARIOS[name]
    clean = bench.measure(name, scenario, faulty=False)
    if clean.exit_code or clean.named or clean.answered != scenario.rows:
        print(f"{name}: the run without a fault is not clean: {clean}", flush=True)
    result = bench.measure(name, scenario, faulty=True)
    show(
        name,
        f"{result.seconds:.1f}",
        f"{clean.seconds:.1f}",
        result.answered,
        result.quarantined,
        f"{result.requests / scenario.rows:.2f}",
        "killed" if result.exit_code is None else result.exit_code,
        f"{result.fault_at:.1f}",
        f"{result.named.seconds:.1f}" if result.named else "never",
    )
    for text in {result.named.text if result.named else "": 0, result.last: 0}:
        if text:
            print(f"    {text}", flush=True)


def main() -> None:
    """Measure the scenarios named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="by default all")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--limit", type=float, default=1800, help="seconds a run may take")
    parser.add_argument("--logs", type=Path, default=Path("build/faults"))
    options = parser.parse_args()
    if options.list:
        print("\n".join(SCENARIOS))
        return
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; see --list")
    options.logs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as scratch,
        PrefectServer(Path(scratch, "prefect")) as prefect,
    ):
        bench = Bench(Path(scratch), options.logs, options.limit, prefect)
        show(*HEAD)
        for name in options.scenarios or SCENARIOS:
            compare(name, bench)


if __name__ == "__main__":
    main()
