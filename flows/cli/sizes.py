"""What a run of some size takes: pure functions of its rows and of the model servers' speed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Literal

from ...tasks.runs.parameters import Limits
from ...tasks.runs.workers import MAX_WORKERS
from ...tasks.storing.compaction import MAX_SMALL_PARTS, MERGED_ROWS
from ..batches import MAX_CHUNK_ROWS
from ..task_runs import MAX_TASK_RUNS
from . import slopes
from .slopes import Requests, Slope

Basis = Literal["computed", "measured", "extrapolated"]
"""Whether a figure follows from what was given alone, from runs of that size, or of fewer rows."""


@dataclass(frozen=True)
class Figure:
    """A line of the plan.

    Attributes:
        name: for programs.
        label: for people.
        value: in `unit`.
        unit: s, h, cores, processes, MiB, bytes, requests, USD; empty for a plain number.
        basis: what it follows from.
        source: how that was measured.
        note: what else should be known.
    """

    name: str
    label: str
    value: float
    unit: str
    basis: Basis
    source: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The value as people write it."""
        match self.unit:
            case "s":
                return _duration(self.value)
            case "h":
                return f"{_number(self.value)} h"
            case "MiB":
                return _scaled(self.value, 1024, ("MiB", "GiB", "TiB"))
            case "bytes":
                return _scaled(self.value / 1e6, 1000, ("MB", "GB", "TB"))
            case "USD":
                return f"${self.value:,.2f}"
            case "cores":
                return _number(self.value)
        return f"{self.value:,.0f}"


@dataclass(frozen=True)
class Size:
    """A run, as far as it decides what the run takes.

    Attributes:
        rows: requests to the model; one for each row.
        rate: requests a second that each GPU answers.
        gpus: how many there are.
    """

    rows: int
    rate: float
    gpus: int

    @property
    def batches(self) -> int:
        """Into how many batches the rows are divided."""
        return ceil(self.rows / Limits().batch_size) + slopes.FIRST_BATCHES

    @property
    def row_rate(self) -> float:
        """Rows a second, which one run must be able to prepare and to store."""
        return min(self.rate * self.gpus, ceiling())

    @property
    def seconds(self) -> float:
        """How long the run takes."""
        return self.rows / self.row_rate

    def processes(self, image_seconds: float = 0.0) -> int:
        """How many workers are needed; 1 if the run does it alone.

        Args:
            image_seconds: CPU time to prepare an image, beyond that of a small one.
        """
        alone = self.row_rate * (slopes.RUN_CPU.per_row + image_seconds)
        if alone <= slopes.BUSY:
            return 1
        together = self.row_rate * (slopes.WORKERS_CPU.per_row + image_seconds)
        return max(2, ceil(together / slopes.BUSY))

    def cores(self, image_seconds: float = 0.0) -> float:
        """How many cores are busy on average."""
        parts = [slopes.RUN_CPU]
        if self.processes(image_seconds) > 1:
            parts = [slopes.COORDINATOR_CPU, slopes.WORKERS_CPU]
        return self.row_rate * (sum(part.per_row for part in parts) + image_seconds)

    def requests(self, workers: int) -> Requests:
        """Requests to S3 of a run with so many workers, but for images."""
        parts: list[tuple[float, Requests]] = [
            (1, slopes.FIXED_REQUESTS),
            (self.batches, slopes.BATCH_REQUESTS),
            (self.merged, slopes.MERGED_REQUESTS),
            (self.seconds, slopes.RUN_REQUESTS),
        ]
        if workers > 1:
            parts += [
                (self.batches, slopes.HANDED_REQUESTS),
                (self.seconds, slopes.COORDINATOR_REQUESTS),
                (self.seconds * workers, slopes.WORKER_REQUESTS),
            ]
        return Requests(
            sum(count * each.writes for count, each in parts),
            sum(count * each.reads for count, each in parts),
        )

    @property
    def merged(self) -> int:
        """Parts that are merged from small ones."""
        return ceil(self.rows / MERGED_ROWS) if self.batches > MAX_SMALL_PARTS else 0

    @property
    def task_runs(self) -> int:
        """Task runs on Prefect's server."""
        steps = 1 if self.processes() > 1 else 2
        return min(self.batches * steps + ceil(self.rows / MAX_CHUNK_ROWS), MAX_TASK_RUNS)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{_number(seconds / length)} {unit}"
    return f"{_number(seconds)} s"


def _scaled(value: float, factor: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < factor:
            return f"{_number(value)} {unit}"
        value /= factor
    return f"{_number(value)} {units[-1]}"


def _number(value: float) -> str:
    """About three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def ceiling() -> float:
    """Rows a second that one run can hand to workers, and enter in its ledger."""
    return slopes.BUSY / slopes.COORDINATOR_CPU.per_row


def figures(size: Size) -> Sequence[Figure]:
    """What a run takes, line by line."""
    return [*_time(size), *_machines(size), *_requests(size), *_output(size), *_ends(size)]


def _time(size: Size) -> Iterator[Figure]:
    note = f"{size.rate:g} requests/s for each of {size.gpus:,}"
    hours = size.rows / size.rate / 3600
    yield Figure("gpu_hours", "GPU hours", hours, "h", "computed", note=note)
    offered, note = size.rate * size.gpus, f"{_number(size.row_rate)} rows/s"
    if offered <= size.row_rate:
        yield Figure("seconds", "time", size.seconds, "s", "computed", note=note)
        return
    note += (
        f", the most that one run can hand to workers: for {offered:,.0f} rows/s, make "
        f"{ceil(offered / size.row_rate)} runs of parts of the dataset, with outputs of their own"
    )
    source = slopes.COORDINATOR_CPU.source
    yield Figure("seconds", "time", size.seconds, "s", "extrapolated", source, note)


def _machines(size: Size) -> Iterator[Figure]:
    for name, label, extra in (
        ("", "", 0.0),
        ("_large", ", JPEGs of 12 Mpx", slopes.LARGE_IMAGE_CPU),
    ):
        workers, cores = size.processes(extra), size.cores(extra)
        slope = slopes.COORDINATOR_CPU if workers > 1 else slopes.RUN_CPU
        basis, source = _basis(size, slope.rows), slope.source
        yield Figure(f"cores{name}", f"client cores{label}", cores, "cores", basis, source)
        note = f"--workers {workers}" if workers > 1 else "without --workers"
        if workers > MAX_WORKERS:
            note = (
                f"{ceil(workers / MAX_WORKERS)} runs of parts of the dataset, with outputs of "
                f"their own and --workers {MAX_WORKERS}"
            )
        what = f"processes{label}"
        yield Figure(f"processes{name}", what, workers, "processes", basis, source, note)
    memory = slopes.RUN_MEMORY if size.processes() == 1 else slopes.COORDINATOR_MEMORY
    note = f"and {slopes.PREFECT_MEMORY:.0f} MiB of Prefect's server, if the run starts it"
    yield _figure("memory", "memory of the run", size, memory, "MiB", note)
    if size.processes(slopes.LARGE_IMAGE_CPU) > 1:
        yield _figure("worker_memory", "memory of each worker", size, slopes.WORKER_MEMORY, "MiB")


def _requests(size: Size) -> Iterator[Figure]:
    requests, images = size.requests(size.processes()), size.rows * slopes.IMAGE_REQUESTS.reads
    read, write = slopes.READ_PRICE / 1000, slopes.WRITE_PRICE / 1000
    cost = requests.writes * write + requests.reads * read
    price = f"Amazon S3 Standard: ${slopes.WRITE_PRICE:g} and ${slopes.READ_PRICE:g} for 1,000"
    there = "none for images on local disks or the web"
    for name, label, value, unit, note in (
        ("s3_writes", "S3: PUT and LIST", requests.writes, "requests", ""),
        ("s3_reads", "S3: GET and HEAD", requests.reads, "requests", ""),
        ("s3_cost", "S3: cost of these", cost, "USD", price),
        ("s3_image_reads", "S3: GET and HEAD of images", images, "requests", there),
        ("s3_image_cost", "S3: cost of these", images * read, "USD", ""),
    ):
        basis = _basis(size, slopes.REQUEST_ROWS)
        yield Figure(name, label, value, unit, basis, slopes.S3, note)


def _output(size: Size) -> Iterator[Figure]:
    objects = slopes.FIXED_OBJECTS + size.batches + (size.merged or size.batches)
    basis = _basis(size, slopes.REQUEST_ROWS)
    yield Figure("objects", "output, objects", objects, "", basis, slopes.S3)
    note = "without exports; replies of 55 characters"
    yield _figure("output_bytes", "output, size", size, slopes.STORED_BYTES, "bytes", note)


def _ends(size: Size) -> Iterator[Figure]:
    note = f"at most {MAX_TASK_RUNS:,}: later steps have none; and up to 100 others"
    yield Figure("task_runs", "task runs", size.task_runs, "", "computed", note=note)
    note = "CPU time to read what is finished, when it resumes"
    yield _figure("ledger_seconds", "ledger, time", size, slopes.LEDGER_SECONDS, "s", note)
    yield _figure("ledger_memory", "ledger, memory", size, slopes.LEDGER_MEMORY, "MiB")
    yield _figure("export_seconds", "exports, time", size, slopes.EXPORT_SECONDS, "s", "CPU time")
    note = "with one pair of 30 characters for each row"
    yield _figure("export_bytes", "exports, size", size, slopes.EXPORT_BYTES, "bytes", note)


def _figure(name: str, label: str, size: Size, slope: Slope, unit: str, note: str = "") -> Figure:
    value, basis = slope.of(size.rows), _basis(size, slope.rows)
    return Figure(name, label, value, unit, basis, slope.source, note)


def _basis(size: Size, measured_rows: int) -> Basis:
    return "measured" if size.rows <= measured_rows else "extrapolated"


def sources_of(found: Iterable[Figure]) -> Sequence[str]:
    """What the figures were measured with, each once, to be numbered from 1."""
    return list(dict.fromkeys(figure.source for figure in found if figure.source))


def sizes_table(rows: Sequence[int], rate: float, gpus: int) -> str:
    """What runs of some sizes take, as a table in Markdown; extrapolated figures have a `~`."""
    sizes = [figures(Size(each, rate, gpus)) for each in rows]
    columns = [{figure.name: figure for figure in each} for each in sizes]
    sources = sources_of(chain.from_iterable(sizes))
    lines = [["rows", *(f"{each:,}" for each in rows), "measured"], ["---"] * (len(rows) + 2)]
    for last in sizes[-1]:
        values = [_marked(column[last.name]) if last.name in column else "" for column in columns]
        number = str(sources.index(last.source) + 1) if last.source else ""
        lines.append([last.label, *values, number])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n" + "".join(f"{place}. {each}\n" for place, each in enumerate(sources, 1))


def _marked(figure: Figure) -> str:
    return f"~{figure.text}" if figure.basis == "extrapolated" else figure.text
