"""Time, memory and S3 requests of what a run does with all rows of a large output.

    python benchmarks/ledger.py [--rows 10000 100000 1000000] [--local]

The rows are real parts on an S3 server that the benchmark starts (rclone, loopback), or in a local
folder. Each step runs in its own process, to measure its own CPU and peak memory; the first one
only imports, as a baseline. With several sizes, the last table has what a further row costs between
the two largest, and what 10 million rows would take if that stays so.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd  # imported by every run, so its memory counts
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.last_export import export_inputs
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store import s3 as s3_module
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.keys import KeyList
from prefect_imageqa.tasks.records import Answered
from prefect_imageqa.tasks.storing.compaction import compact
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.row_keys import write_keys
from prefect_imageqa.tasks.storing.store import write_part
from servers import S3Server

PARTS = PassFolder().parts("qa_pairs-v1")
BATCH = 256
COLUMNS = Columns(image="image", conversation=None)
WORDS = ("the", "a", "large", "red", "circle", "near", "left", "of", "which", "what", "is", "many")
FAR = 10_000_000
"""Rows to which the last table extrapolates."""


@dataclass(frozen=True)
class Cost:
    """What a step took: `peak` in MiB, `requests` to S3 by the name of the method."""

    seconds: float
    cpu: float
    peak: float
    requests: dict[str, int]


def row_key(number: int) -> str:
    """A realistic row key: incompressible."""
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()[:32]


def answered(number: int) -> Answered:
    """A row with a completion of about 300 characters and two pairs."""
    rng = random.Random(number)
    texts = [" ".join(rng.choices(WORDS, k=16)) for _ in range(4)]
    pairs = [
        {"question": question, "answer": answer}
        for question, answer in zip(texts[::2], texts[1::2], strict=True)
    ]
    text = "".join("Question: {question}\nAnswer: {answer}\n".format(**pair) for pair in pairs)
    return Answered(row_key(number), text, pairs, "org/model", 812, 95, rng.random())


def all_keys(count: int) -> KeyList:
    """The row keys of the dataset, in the type that the flow uses."""
    keys = KeyList()
    for number in range(count):
        keys.append(row_key(number))
    return keys


def write(store: ObjectStore, count: int, table: Path) -> None:
    """Store all rows, one part per batch, and their dataset."""

    def write_from(start: int) -> None:
        rows = [answered(number) for number in range(start, min(start + BATCH, count))]
        write_part(store, PARTS, row_key(count + start), rows)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write_from, range(0, count, BATCH)):
            pass
    with table.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"image": f"train/{number:08d}.jpg", "id": number}) + "\n")


def read(store: ObjectStore, count: int, _: Path) -> Ledger:
    """Read the ledger, as a run does."""
    ledger = Ledger.read(store, PARTS, alone=True)
    assert len(ledger.rows.index) == count
    return ledger


def status(store: ObjectStore, count: int, table: Path) -> None:
    """Look up the status of every row of a dataset that has doubled in size."""
    ledger = read(store, count, table)
    for start in range(0, 2 * count, BATCH):
        ledger.statuses([row_key(number) for number in range(start, start + BATCH)])


def fill(store: ObjectStore, count: int, _: Path) -> None:
    """Enter every row in an empty ledger, batch by batch, as a first run does."""
    ledger = Ledger.read(store, PARTS + "-none", alone=True)
    for start in range(0, count, BATCH):
        keys = [row_key(number) for number in range(start, min(start + BATCH, count))]
        ledger.statuses(keys)
        ledger.add(row_key(start), [Answered(key, "", [], "", 0, 0, 0.0) for key in keys], 1.0)


def export(store: ObjectStore, count: int, table: Path) -> None:
    """Read the ledger and write the exports, as a run does."""
    ledger, keys = read(store, count, table), all_keys(count)
    inputs = f"{export_inputs(b'', {}, [(ledger, keys)])} at {time.time()}"  # else they stay
    rows = open_dataset(str(table), COLUMNS).rows()
    export_rows.fn(store, ledger.outcomes(keys), rows, count, COLUMNS, inputs=inputs)


def shuffled(store: ObjectStore, count: int, table: Path) -> None:
    """Read every answer in another order than that in which they are stored."""
    ledger, keys = read(store, count, table), KeyList()
    for number in random.Random(0).sample(range(count), count):
        keys.append(row_key(number))
    assert all(ledger.outcomes(keys))


def merge(store: ObjectStore, count: int, table: Path) -> None:
    """Read the ledger, merge the small parts and store the row keys, as a run does at its end."""
    ledger, keys = read(store, count, table), all_keys(count)
    compact(store, ledger, keys)
    write_keys(store, "pairs/keys/c/d", keys)


def imports(_store: ObjectStore, _count: int, _table: Path) -> None:
    """Do nothing: the baseline of a process with all imports."""
    assert pd.__version__


Step = Callable[[ObjectStore, int, Path], object]
STEPS: dict[str, Step] = {
    function.__name__: function
    for function in (imports, write, read, fill, status, export, merge, shuffled)
}
PLAN = {
    "imports only": "imports",
    "write small parts": "write",
    "enter the rows of a first run": "fill",
    "ledger of small parts": "read",
    "ledger and exports of small parts": "export",
    "ledger, compaction, row keys": "merge",
    "ledger of merged parts": "read",
    "ledger and twice the look-ups": "status",
    "ledger and exports of merged parts": "export",
    "ledger and answers in another order": "shuffled",
}


def peak_mib() -> float:
    """Peak resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status")


def counted_requests() -> Counter[str]:
    """Counts the requests to S3 from now on, by the name of the method."""
    requests = Counter[str]()
    filesystem: Any = s3_module._S3FileSystem
    call = filesystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        requests[method] += 1
        return await call(self, method, *args, **kwargs)

    filesystem._call_s3 = counted
    return requests


def run_step(name: str, uri: str, count: int, table: Path) -> None:
    """Run a step in this process and print its cost."""
    store, requests = ObjectStore(uri=uri), counted_requests()
    started = time.perf_counter()
    STEPS[name](store, count, table)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - started
    cost = Cost(seconds, used.ru_utime + used.ru_stime, peak_mib(), dict(requests))
    print(json.dumps(asdict(cost)))


def measure_steps(
    rows: int, folder: Path, uri: str, environment: dict[str, str]
) -> dict[str, Cost]:
    """Run all steps for an output, each in its own process, and print a table."""
    print(f"\n{rows:,} rows in {uri}\n{'':38}{'seconds':>9}{'CPU':>9}{'peak MiB':>10}  requests")
    costs = {}
    for label, step in PLAN.items():
        command = [sys.executable, __file__, "--step", step, "--uri", uri, "--rows", str(rows)]
        command += ["--table", str(folder / f"{rows}.jsonl")]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, env=os.environ | environment
        )
        cost = costs[label] = Cost(**json.loads(done.stdout.splitlines()[-1]))
        requests = ", ".join(f"{count:,} {name}" for name, count in cost.requests.items())
        print(f"{label:38}{cost.seconds:9.1f}{cost.cpu:9.1f}{cost.peak:10.0f}  {requests}")
        sys.stdout.flush()
    return costs


def print_slopes(sizes: Sequence[int], costs: Sequence[dict[str, Cost]]) -> None:
    """What a further row costs between the two largest outputs, and what many more would take."""
    (low, before), (high, after) = list(zip(sizes, costs, strict=True))[-2:]
    print(f"\nA further row, from {low:,} to {high:,} rows, and {FAR:,} rows at that slope:")
    print(f"{'':38}{'us CPU':>9}{'bytes':>9}{'s CPU':>10}{'peak MiB':>10}")
    for label, cost in after.items():
        cpu = (cost.cpu - before[label].cpu) / (high - low)
        memory = (cost.peak - before[label].peak) / (high - low)
        far_cpu, far_peak = cost.cpu + cpu * (FAR - high), cost.peak + memory * (FAR - high)
        print(f"{label:38}{cpu * 1e6:9.1f}{memory * (1 << 20):9.0f}{far_cpu:10.0f}{far_peak:10.0f}")


def main() -> None:
    """Measure outputs of some sizes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments.add_argument("--local", action="store_true", help="use a local folder instead of S3")
    arguments.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments.add_argument("--uri", help=argparse.SUPPRESS)
    arguments.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.step:
        run_step(options.step, options.uri, options.rows[0], options.table)
        return
    with tempfile.TemporaryDirectory(prefix="ledger-") as name, S3Server(Path(name)) as s3:
        base = name if options.local else s3.uri
        costs = [
            measure_steps(rows, Path(name), f"{base}/output-{rows}", s3.environment)
            for rows in options.rows
        ]
    if len(costs) > 1:
        print_slopes(options.rows, costs)


if __name__ == "__main__":
    main()
