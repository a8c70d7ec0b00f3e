"""Time and peak memory of the ledger of a large output, with small parts and with merged parts.

    python benchmarks/ledger.py [--rows 1000000] [--local]

The rows are stored on an S3 server that the benchmark starts (rclone, loopback), or in a local
folder. Each step runs in its own process, to measure its own peak memory; the first process only
imports, as a baseline.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd  # imported by every run, so its memory counts
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.prompting.keys import KeyList
from prefect_imageqa.tasks.records import Answered
from prefect_imageqa.tasks.storing.compaction import compact
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part
from servers import S3Server

PARTS = PassFolder().parts("qa_pairs-v1")
BATCH = 256
WORDS = ("the", "a", "large", "red", "circle", "near", "left", "of", "which", "what", "is", "many")


def row_key(number: int) -> str:
    """A realistic row key: incompressible."""
    return hashlib.sha256(number.to_bytes(8, "big")).hexdigest()[:32]


def answered(number: int) -> Answered:
    """A row with a completion of about 300 characters."""
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


def write(store: ObjectStore, count: int) -> int:
    """Store all rows, one part per batch."""

    def write_from(start: int) -> None:
        rows = [answered(number) for number in range(start, min(start + BATCH, count))]
        write_part(store, PARTS, row_key(count + start), rows)

    starts = range(0, count, BATCH)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write_from, starts):
            pass
    return len(starts)


def read(store: ObjectStore, count: int) -> int:
    """Read the ledger."""
    ledger = Ledger.read(store, PARTS)
    assert len(ledger.rows.index) == count
    return len(ledger.rows.names)


def status(store: ObjectStore, count: int) -> int:
    """Look up the status of every row of a dataset that has doubled in size."""
    ledger = Ledger.read(store, PARTS)
    for start in range(0, 2 * count, BATCH):
        ledger.statuses([row_key(number) for number in range(start, start + BATCH)])
    return count


def join(store: ObjectStore, count: int) -> int:
    """Read every answer in dataset order, like an export."""
    ledger = Ledger.read(store, PARTS)
    assert all(ledger.outcomes(all_keys(count)))
    return count


def merge(store: ObjectStore, count: int) -> int:
    """Merge the small parts."""
    return compact(store, Ledger.read(store, PARTS), all_keys(count))


def imports(store: ObjectStore, count: int) -> int:  # noqa: ARG001
    """Do nothing: the baseline of a process with all imports."""
    return len(pd.__version__) * 0


STEPS: dict[str, Callable[[ObjectStore, int], int]] = {
    function.__name__: function for function in (imports, write, read, status, join, merge)
}
PLAN = [
    ("imports", "imports only"),
    ("write", "write small parts"),
    ("read", "read the ledger, small parts"),
    ("join", "read ledger and answers, small parts"),
    ("merge", "read the ledger and merge"),
    ("read", "read the ledger, merged parts"),
    ("status", "read it and look up twice the rows"),
    ("join", "read ledger and answers, merged parts"),
]


def peak_mib() -> int:
    """Peak resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    raise OSError("no VmHWM in /proc/self/status")


def run_step(name: str, uri: str, count: int) -> None:
    """Run a step in this process and print its time, peak memory and result."""
    store = ObjectStore(uri=uri)
    started = time.perf_counter()
    result = STEPS[name](store, count)
    print(json.dumps([time.perf_counter() - started, peak_mib(), result]))


def main() -> None:
    """Run all steps, each in its own process, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--local", action="store_true", help="use a local folder instead of S3")
    arguments.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments.add_argument("--uri", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.step:
        run_step(options.step, options.uri, options.rows)
        return
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder, S3Server(Path(folder)) as s3:
        uri = f"{folder}/output" if options.local else f"{s3.uri}/output"
        print(
            f"{options.rows:,} rows in {uri}\n{'':42}{'seconds':>9}{'peak MiB':>10}{'objects':>10}"
        )
        for step, label in PLAN:
            command = [sys.executable, __file__, "--step", step, "--uri", uri]
            command += ["--rows", str(options.rows)]
            environment = os.environ | s3.environment
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            seconds, peak, result = json.loads(done.stdout)
            print(f"{label:42}{seconds:9.1f}{peak:10,}{result:10,}", flush=True)


if __name__ == "__main__":
    main()
