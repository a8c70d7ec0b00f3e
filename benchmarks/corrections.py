"""What the corrective retry gains and costs on a model that gives unusable replies.

    python benchmarks/corrections.py [--rows 3000] [--unusable 0.2] [--corrected 0.8]

The stub answers that share of the rows with prose, and that share of those with a pair once they
are shown their reply. Two runs, without and with the retry: rows that stay without an answer,
requests, and seconds of the flow.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from drawn_images import draw_images
from servers import StubServer

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))
IMAGES = 50


def run(stub: StubServer, dataset: Path, output: Path, *flags: str) -> dict[str, Any]:
    """The record of a run."""
    subprocess.run(
        [
            *(COMMAND, "run", str(dataset), "--output", str(output), "--endpoint", stub.url),
            *("--max-error-rate", "1", *flags),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (record,) = (output / "runs").glob("*.json")
    counts: dict[str, Any] = json.loads(record.read_text())["counts"]
    return counts


def main() -> None:
    """Run without and with the retry, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--unusable", type=float, default=0.2)
    parser.add_argument("--corrected", type=float, default=0.8)
    parser.add_argument("--latency", type=float, default=0.2)
    options = parser.parse_args()
    flags = [f"--unusable-share={options.unusable}", f"--corrected-share={options.corrected}"]
    with (
        tempfile.TemporaryDirectory() as name,
        StubServer(f"--latency={options.latency}", *flags) as stub,
    ):
        folder = Path(name)
        images = draw_images(folder / "images", IMAGES, seed=0, noise=0)
        rows = [
            {"image": str(images[row % IMAGES]), "conversation": f"Ask about row {row}."}
            for row in range(options.rows)
        ]
        dataset = folder / "rows.json"
        dataset.write_text(json.dumps(rows))
        for label, retry in (("without", ["--no-corrective-retry"]), ("with", [])):
            counts = run(stub, dataset, folder / label, *retry)
            print(
                f"{label:>7}: {counts['quarantined'] / counts['rows']:6.1%} unusable, "
                f"{counts['requests']} requests, {counts['corrected']} of "
                f"{counts['corrections']} corrected, {counts['seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
