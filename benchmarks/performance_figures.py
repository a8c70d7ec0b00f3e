"""What `performance.py` makes of the runs: medians, ratios, goals, and the table of the docs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from performance_bench import Run, Runs

HEADINGS = ("", "this program", "compared with", "", "ratio", "goal", "runs")


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    The goal is about the ratio of ours to theirs, or about ours where it is compared with nothing.

    Attributes:
        what: what was measured, and its unit.
        ours: the figure of this program.
        other: what it is compared with.
        theirs: the figure of that.
        least: the goal, where more is better.
        most: the goal, where less is better.
        runs: how many runs it is the median of.
    """

    what: str
    ours: float
    other: str = ""
    theirs: float = 0
    least: float | None = None
    most: float | None = None
    runs: int = 1

    def cells(self) -> tuple[str, ...]:
        """The cells of the line."""
        ratio = self.ours / self.theirs if self.theirs else None
        value = self.ours if ratio is None else ratio
        goal = met = ""
        if self.least is not None:
            goal, met = f">= {self.least:g}", "met" if value >= self.least else "missed"
        if self.most is not None:
            goal, met = f"<= {self.most:g}", "met" if value <= self.most else "missed"
        return (
            self.what,
            _number(self.ours),
            self.other,
            _number(self.theirs) if self.other else "",
            f"{ratio:.2f}" if ratio is not None else "",
            f"{goal}: {met}" if goal else "",
            str(self.runs),
        )


def table(scenarios: dict[str, Runs]) -> str:
    """The table of all scenarios that were measured, in the order of `FIGURES`."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name, figures in FIGURES.items():
        if name in scenarios:
            lines += [figure.cells() for figure in figures(scenarios[name])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def notes(scenarios: dict[str, Runs]) -> str:
    """What the table has no room for: the automatic limit over time."""
    if "auto" not in scenarios:
        return ""
    limits = scenarios["auto"]["changing, auto"][-1].limits
    return (
        "The automatic limit on the changing stub, every half second of the last run: "
        f"{', '.join(map(str, limits))}.\n"
    )


def _number(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _rate(runs: list[Run]) -> float:
    return median(run.rate for run in runs)


def _wall(runs: list[Run]) -> float:
    return median(run.wall for run in runs)


def _cpu_ms(runs: list[Run]) -> float:
    return median(1000 * run.cpu / run.rows for run in runs)


def _stub(runs: Runs) -> Iterator[Figure]:
    ours = runs["ours"]
    rows, count = f"{ours[0].rows:,} rows", len(ours)
    names = {
        "raw": "raw client",
        "fast raw": "raw client, fast base64",
        "script": "plain script",
        "pool of 10": "10 threads",
        "pool of 64": "64 threads",
    }
    for name, label in names.items():
        least = 0.5 if "raw" in name else None
        what = f"Stub, 640x480, {rows}: rows/s of the job"
        yield Figure(what, _rate(ours), label, _rate(runs[name]), least=least, runs=count)
    for name in ("fast raw", "script"):
        what = "The same: seconds by the clock on the wall"
        most = {"script": 1.0}.get(name)
        yield Figure(what, _wall(ours), names[name], _wall(runs[name]), most=most, runs=count)
    for name, label in names.items():
        what = "The same: ms CPU a row, all processes, with start-up"
        yield Figure(what, _cpu_ms(ours), label, _cpu_ms(runs[name]), runs=count)


def _thousand(runs: Runs) -> Iterator[Figure]:
    ours, script = runs["ours"], runs["script"]
    what = f"Stub, 640x480, {ours[0].rows:,} rows: seconds by the clock on the wall"
    yield Figure(what, _wall(ours), "plain script", _wall(script), most=1, runs=len(ours))


def _slope(runs: Runs) -> Iterator[Figure]:
    few, many = runs["few"], runs["many"]
    rows = few[0].rows, many[0].rows
    cpu = [median(run.cpu for run in each) for each in (few, many)]
    what = f"Stub, from {rows[0]:,} to {rows[1]:,} rows: ms CPU a further row, all processes"
    further = 1000 * (cpu[1] - cpu[0]) / (rows[1] - rows[0])
    yield Figure(what, further, most=0.6, runs=len(many))
    yield Figure(f"Stub, {rows[1]:,} rows: rows/s of the job", _rate(many), runs=len(many))


def _one(runs: Runs) -> Iterator[Figure]:
    ours, empty = runs["ours"], runs["empty flow"]
    what = "One row: seconds by the clock on the wall"
    yield Figure(what, _wall(ours), "empty Prefect flow", _wall(empty), most=1.15, runs=len(ours))
    ours, empty = runs["first"], runs["first empty flow"]
    what = "The same, first run on a machine: Prefect creates its database"
    yield Figure(what, _wall(ours), "empty Prefect flow", _wall(empty), runs=len(ours))


def _memory(runs: Runs) -> Iterator[Figure]:
    few, many = runs["few"][0], runs["many"][0]
    sizes = f"{many.rows:,} rows", f"{few.rows:,} rows"
    what = f"Peak memory, {sizes[0]}: MiB of the largest process"
    yield Figure(what, many.peak_mib, sizes[1], few.peak_mib, most=1.1)
    what = f"Peak memory, {sizes[0]}: MiB of all processes"
    yield Figure(what, many.tree_mib, sizes[1], few.tree_mib, most=1.1)
    again, empty = runs["again"], runs["empty flow"]
    what = f"The same {sizes[0]} again, all finished: seconds beyond an empty flow"
    yield Figure(what, _wall(again) - _wall(empty), most=6, runs=len(again))


def _servers(runs: Runs) -> Iterator[Figure]:
    alone = runs["1"]
    yield Figure("1 stub of 64 rows/s: rows/s of the job", _rate(alone), runs=len(alone))
    for name in ("2", "4", "8"):
        what = f"{name} such stubs, {name} times the rows: rows/s of the job"
        least = 1.9 if name == "2" else None
        ours = runs[name]
        yield Figure(what, _rate(ours), "1 stub", _rate(alone), least=least, runs=len(ours))


def _unequal(runs: Runs) -> Iterator[Figure]:
    fast, both = runs["fast"], runs["fast and half"]
    what = "A stub and one of half its speed: rows/s of the job"
    yield Figure(what, _rate(both), "the fast one", _rate(fast), least=1.4, runs=len(both))


def _uneven(runs: Runs) -> Iterator[Figure]:
    alike = runs["alike"]
    for name, what in (("one late", "one row takes 20 s"), ("1 % late", "1 % take 3 s")):
        what = f"{alike[0].rows:,} rows of which {what}: seconds of the job"
        ours, theirs = (median(run.seconds for run in runs[each]) for each in (name, "alike"))
        yield Figure(what, ours, "all rows alike", theirs, runs=len(alike))


def _auto(runs: Runs) -> Iterator[Figure]:
    for profile in ("fast", "slow", "changing"):
        ours = runs[f"{profile}, auto"]
        fixed = {
            name: _rate(each)
            for name, each in runs.items()
            if name.startswith(profile) and "auto" not in name
        }
        best = max(fixed, key=lambda name: fixed[name])
        what = f"Automatic limit, {profile} stub: rows/s"
        other = f"best fixed limit, {best.rpartition(' ')[2]}"
        yield Figure(what, _rate(ours), other, fixed[best], least=0.95, runs=len(ours))
        queue = median(run.queue for run in ours)
        yield Figure("The same: longest queue, by slots", queue, most=2, runs=len(ours))


def _vllm(runs: Runs) -> Iterator[Figure]:
    ours, raw = runs["ours"], runs["raw"]
    what = f"vLLM on CPU, 640x480, {ours[0].rows:,} rows: rows/s of the job"
    yield Figure(what, _rate(ours), "raw client", _rate(raw), least=0.95, runs=len(ours))


def _vllm_large(runs: Runs) -> Iterator[Figure]:
    ours, raw = runs["ours"], runs["raw"]
    what = f"vLLM on CPU, 12 Mpx, {ours[0].rows:,} rows: rows/s of the job"
    yield Figure(what, _rate(ours), "files as they are", _rate(raw), least=3, runs=len(ours))


def _cores(runs: Runs) -> Iterator[Figure]:
    for name, ours in runs.items():
        number, _, size = name.partition(", ")
        first = runs[f"1, {size}"]
        what = f"{size} on {number} cores, fast stubs: rows/s of the job"
        yield Figure(what, _rate(ours), "1 core", _rate(first), runs=len(ours))


FIGURES: dict[str, Callable[[Runs], Iterator[Figure]]] = {
    "stub": _stub,
    "thousand": _thousand,
    "slope": _slope,
    "one": _one,
    "memory": _memory,
    "servers": _servers,
    "unequal": _unequal,
    "uneven": _uneven,
    "auto": _auto,
    "vllm": _vllm,
    "vllm_large": _vllm_large,
    "cores": _cores,
}
"""The lines of each scenario's runs."""
