"""CPU and peak memory of exports for training: `exports.py llava hf --rows 10000 100000`.

Fabricates outputs of that many answered rows about 300 images, and writes each export in a process
of its own. The last lines say what a further row costs between the two largest outputs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from prefect_imageqa.tasks.concurrency import chunks
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.exporting.trainers import ExportSource, write_export
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.loading.columns import Columns
from prefect_imageqa.tasks.loading.dataset import Dataset
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered
from prefect_imageqa.tasks.runs.exports import Exports
from prefect_imageqa.tasks.storing.layout import PassFolder
from prefect_imageqa.tasks.storing.ledger import Ledger
from prefect_imageqa.tasks.storing.store import write_part

IMAGES = 300
ROWS_PER_BATCH = 512
COLUMNS = Columns(image="image", conversation=None)


def table(folder: Path) -> Dataset:
    """The fabricated dataset."""
    return open_dataset(str(folder / "rows.jsonl"), COLUMNS)


def fabricate(folder: Path, rows: int) -> None:
    """Write images, the dataset, and an output with parts and exports."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 255, (24, 32, 3), np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"image": f"{number * IMAGES // rows}.jpg", "id": number}) + "\n")
    store, parts = ObjectStore(uri=str(folder / "out")), PassFolder().parts("qa_pairs-v1")
    for batch in chunks(answers(rows), ROWS_PER_BATCH):
        write_part(store, parts, batch[0].key, batch)
    keys = [f"{number:032x}" for number in range(rows)]
    outcomes = Ledger.read(store, parts).outcomes(keys)
    export_rows.fn(store, outcomes, table(folder).rows(), rows, COLUMNS)


def answers(rows: int) -> Iterator[Answered]:
    """An answer with one pair for each row."""
    for number in range(rows):
        pair = {"question": f"What is thing {number} in it?", "answer": f"It is number {number}."}
        yield Answered(f"{number:032x}", "raw", [pair], "m", 100, 20, 0.1, style="single@1")


def export(folder: Path, name: str) -> None:
    """Write an export, and print what it took: pairs, seconds of CPU, bytes, MiB at its peak."""
    dataset, output = table(folder), ObjectStore(uri=str(folder / "out"))
    exports = Exports.model_validate({"formats": [name], "validation": 0.05})
    with ImageReader() as reader:
        source = ExportSource(
            output, dataset.rows, dataset.columns, dataset.base, reader, ImageSettings()
        )
        target = ObjectStore(uri=str(folder / name))
        record = write_export(source, exports.formats[0], exports, target)
    pairs = sum(split.pairs for split in record.splits.values())
    used = resource.getrusage(resource.RUSAGE_SELF)
    size = sum(target.sizes().values())
    print(json.dumps([pairs, used.ru_utime + used.ru_stime, size, used.ru_maxrss / 1024]))


def measured(folder: Path, name: str) -> tuple[float, float]:
    """Write an export in a process of its own; gives its seconds of CPU and its peak in MiB."""
    command = [sys.executable, __file__, name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    pairs, cpu, size, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {pairs:,} pairs, {cpu:.1f} s CPU, {size / 1e6:,.0f} MB; peak {peak:.0f} MiB")
    return cpu, peak


def main() -> None:
    """Fabricate outputs, and measure each format on them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        export(options.folder, *options.formats)
        return
    results = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            fabricate(Path(name), rows)
            results.append([measured(Path(name), format_) for format_ in options.formats])
    if len(results) > 1:
        more = options.rows[-1] - options.rows[-2]
        for name, (cpu, peak), (more_cpu, more_peak) in zip(
            options.formats, *results[-2:], strict=True
        ):
            microseconds, memory = 1e6 * (more_cpu - cpu) / more, (more_peak - peak) * 2**20 / more
            print(f"{name}: a further row takes {microseconds:.0f} us CPU, {memory:.0f} bytes")


if __name__ == "__main__":
    main()
