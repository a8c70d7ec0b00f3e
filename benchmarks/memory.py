"""Peak memory of a run over 10,000 rows and over ten times as many, against the stub.

    python benchmarks/memory.py [--rows 10000] [--times 10]

Each run is a separate process with its own Prefect server. The peak is VmHWM in /proc/self/status.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from servers import StubServer
from throughput import draw_images

RUN = """
import json, sys
from pathlib import Path
from prefect_imageqa import image_qa
dataset, output, url = sys.argv[1:]
summary = image_qa(dataset, output, endpoint=url)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
result = {"peak_mib": int(peak.split()[1]) / 1024, "seconds": summary.seconds}
print(json.dumps(result | {"rows": summary.rows, "ok": summary.ok, "requests": summary.requests}))
"""


def measure(folder: Path, images: list[Path], rows: int, url: str) -> float:
    """Run over that many rows, then again when all are finished; returns the peak in MiB."""
    dataset = folder / f"{rows}.jsonl"
    with dataset.open("w") as file:
        for number in range(rows):
            row = {"image": str(images[number % len(images)]), "conversation": f"{number}?"}
            file.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", RUN, str(dataset), str(folder / f"out-{rows}"), url]
    peaks = []
    for name in ("first", "again"):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        assert result["ok"] == result["rows"] == rows
        print(f"{rows} rows, {name}: {result}", flush=True)
        peaks.append(result["peak_mib"])
    return max(peaks)


def main() -> None:
    """Measure both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, StubServer() as stub:
        images = draw_images(Path(scratch) / "images", 512, seed=1, noise=0)
        few = measure(Path(scratch), images, options.rows, stub.url)
        many = measure(Path(scratch), images, options.rows * options.times, stub.url)
        print(f"peak memory with {options.times} times the rows: {many / few:.2f}")


if __name__ == "__main__":
    main()
