"""Seconds and peak memory of an export for training: `exports.py 100000 llava`.

Fabricates an output of that many answered rows about 300 images, and writes the export in a process
of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
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
from prefect_imageqa.tasks.loading.dataset import Dataset, open_dataset
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
    """Write an export, and print what it took."""
    dataset, output = table(folder), ObjectStore(uri=str(folder / "out"))
    exports = Exports.model_validate({"formats": [name], "validation": 0.05})
    begun = time.monotonic()
    with ImageReader() as reader:
        source = ExportSource(
            output, dataset.rows, dataset.columns, dataset.base, reader, ImageSettings()
        )
        target = ObjectStore(uri=str(folder / name))
        record = write_export(source, exports.formats[0], exports, target)
    seconds = time.monotonic() - begun
    pairs = sum(split.pairs for split in record.splits.values())
    size = sum(target.sizes().values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {pairs:,} pairs in {seconds:.1f} s, {size / 1e6:,.0f} MB; peak {peak:.0f} MB")


def main() -> None:
    """Fabricate an output, and measure each format on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("formats", nargs="+")
    parser.add_argument("--folder", type=Path, help="of an output that was fabricated before")
    options = parser.parse_args()
    if options.folder:
        export(options.folder, *options.formats)
        return
    with tempfile.TemporaryDirectory() as name:
        fabricate(Path(name), options.rows)
        for format_ in options.formats:
            arguments = [str(options.rows), format_, "--folder", name]
            subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
