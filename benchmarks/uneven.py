"""Duration of a run in which some rows are answered much later than the others.

    python benchmarks/uneven.py [--rows 3000]

Three runs against the stub with 50 ms latency: all rows alike, one row that takes 45 s, and 1 % of
the rows that take 3 s. Prints how long each took, and the requests that the stub had received after
every two seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drawn_images import draw_images
from servers import StubServer

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))
IN_FLIGHT = 128
POLL_SECONDS = 2.0


def write_dataset(folder: Path, images: list[Path], rows: int, slow: dict[int, float]) -> Path:
    """Write rows with distinct conversations; `slow` maps some rows to their latency in seconds."""
    records = [
        {
            "image": str(images[row % len(images)]),
            "conversation": f"STUB slow {slow[row]} row {row}" if row in slow else f"row {row}",
        }
        for row in range(rows)
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps(records))
    return path


def run(stub: StubServer, dataset: Path, output: Path) -> tuple[float, float, list[int]]:
    """Seconds that the run and the command took, and the requests received over time."""
    command = [COMMAND, "run", str(dataset), "--output", str(output), "--json"]
    before = stub.stats()["requests"]
    started = time.perf_counter()
    seen: list[int] = []
    process = subprocess.Popen(
        [*command, "--endpoint", stub.url, "--max-in-flight", str(IN_FLIGHT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        requests = stub.stats()["requests"]
        if seen or requests > before:
            seen.append(requests - before)
    wall = time.perf_counter() - started
    assert process.stdout
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert summary["ok"] == summary["rows"] == summary["requests"], summary
    return summary["seconds"], wall, seen


def main() -> None:
    """Measure the three runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    rows = parser.parse_args().rows
    cases: dict[str, dict[int, float]] = {
        "all rows alike": {},
        "one row takes 45 s": {rows // 10: 45},
        "1 % of the rows take 3 s": dict.fromkeys(range(50, rows, 100), 3),
    }
    with StubServer() as stub, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = draw_images(folder / "images", 64, seed=1, noise=40)
        for number, (name, slow) in enumerate(cases.items()):
            dataset = write_dataset(folder, images, rows, slow)
            seconds, wall, seen = run(stub, dataset, folder / f"output-{number}")
            print(f"{name}: {rows} rows in {seconds:.1f} s, {wall:.1f} s wall", flush=True)
            print(f"  requests after each {POLL_SECONDS:g} s: {seen}", flush=True)


if __name__ == "__main__":
    main()
