"""Drawn scenes with planted copies, and what `duplicates` and `contamination` say of them.

    python benchmarks/planted_copies.py FOLDER CHECK

judges the pairs in a folder that `Sets` has written, into `FOLDER/CHECK.parquet`, and prints the
time it took. Every other scene is flat, every other has light as soft as in a photograph.
"""

import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measured import measure
from PIL import Image, ImageEnhance, ImageOps
from prefect_imageqa.serving.demo_model.questions import Question, QuestionKind, questions_of
from prefect_imageqa.serving.demo_model.scenes import Scene, draw_scene, random_scene
from prefect_imageqa.tasks.checking import CheckSettings, ComputedCheck, open_check
from prefect_imageqa.tasks.checking.catalogue import CheckName
from prefect_imageqa.tasks.checking.hashed_rows import ImageSource
from prefect_imageqa.tasks.exporting.checked_rows import checked_pairs
from prefect_imageqa.tasks.exporting.export import export_rows
from prefect_imageqa.tasks.images.file_digests import FileDigests
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import Answered
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS

LIGHTS = ("flat", "soft light")
QUESTIONS = [question for kind in QuestionKind for question in questions_of(kind)]


def png(image: Image.Image) -> bytes:
    """The image without loss."""
    return encoded(image, "PNG", compress_level=1)


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    """The image in a format of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


COPIES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: png(ImageOps.scale(image, 0.5)),
    "JPEG of quality 60": lambda image: encoded(image, "JPEG", quality=60),
    "WebP of quality 60": lambda image: encoded(image, "WEBP", quality=60),
    "cropped by 5 % of the area": lambda image: png(ImageOps.crop(image, (2, 2, 3, 3))),
    "cropped by 10 % of the area": lambda image: png(ImageOps.crop(image, 5)),
    "5 % brighter": lambda image: png(ImageEnhance.Brightness(image).enhance(1.05)),
    "mirrored": lambda image: png(ImageOps.mirror(image)),
}
KNOWN = ("In the image, {}?", "Looking at the photo, {}?", "Can you tell me {}?", "Please: {}?")
OTHER = ("Hello! {}?", "Take a look: {}?", "In one word, {}?")
Wording = Callable[[Question, str, random.Random], str]
WORDINGS: Mapping[str, Wording] = {
    "the same": lambda _, asked, __: asked,
    "other case and punctuation": lambda _, asked, __: f"“{asked.upper().rstrip('?.')}”",
    "after a phrase that is known": lambda _, asked, rng: rng.choice(KNOWN).format(_inside(asked)),
    "after another phrase": lambda _, asked, rng: rng.choice(OTHER).format(_inside(asked)),
    "in other words": lambda question, asked, rng: rng.choice(
        [text for text in question.phrasings() if text != asked]
    ),
    "another question": lambda question, _, rng: next(
        other.phrasings()[0] for other in rng.sample(QUESTIONS, 2) if other != question
    ),
}


def _inside(asked: str) -> str:
    return asked[0].lower() + asked[1:].rstrip("?.")


def draw(number: int, side: int, rng: random.Random) -> tuple[Scene, Image.Image]:
    """A random scene and its image: flat if the number is even, else with soft light."""
    scene = random_scene(rng)
    image = draw_scene(scene, side, side, rng)
    if number % 2:
        noise = np.frombuffer(rng.randbytes(5 * 7 * 3), np.uint8).reshape(5, 7, 3)
        image = Image.blend(image, Image.fromarray(noise).resize(image.size), 0.5)
    return scene, image


class Sets:
    """A dataset with its pairs, and two benchmark sets; `finish` completes the files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.embedded = folder, list[dict[str, object]]()
        self.rows: list[tuple[str, Sequence[str]]] = []
        for name in ("images", "bench"):
            (folder / name).mkdir(parents=True)

    def add(self, data: bytes, *asked: str) -> None:
        """Add a row with these questions."""
        self.rows.append((f"images/{len(self.rows)}", asked))
        (self.folder / self.rows[-1][0]).write_bytes(data)

    def add_to_benchmark(self, number: int, data: bytes, asked: str) -> str:
        """Add an image to the table or to the folder, which has no questions; gives its place."""
        if number // 2 % 2:
            (self.folder / "bench" / f"{number}.png").write_bytes(data)
            return f"bench/{number}.png"
        self.embedded.append({"image": {"bytes": data}, "question": asked})
        return f"bench.parquet[{len(self.embedded) - 1}]"

    def finish(self) -> None:
        """Write the dataset, its output, and the table."""
        folder, lines = self.folder, [json.dumps({"image": image}) for image, _ in self.rows]
        (folder / "rows.jsonl").write_text("\n".join(lines))
        pq.write_table(pa.Table.from_pylist(self.embedded), folder / "bench.parquet")
        pairs = ([{"question": each, "answer": "-"} for each in asked] for _, asked in self.rows)
        answers = (Answered(f"{row:032x}", "", of, "m", 1, 1, 0) for row, of in enumerate(pairs))
        table, store = open_dataset(folder / "rows.jsonl"), ObjectStore(uri=str(folder / "output"))
        rows, columns = table.rows(), table.columns
        export_rows.fn(store, answers, rows, len(lines), columns, pairs_name=ALL_PAIRS)

    def judge(self, name: str) -> pa.Table:
        """What a check says of each pair, in a process of its own; with its cost as metadata."""
        command = [sys.executable, __file__, str(self.folder), name]
        run = measure(command, os.environ, self.folder / "log")
        table = pq.read_table(self.folder / f"{name}.parquet")
        return table.replace_schema_metadata(
            json.loads(run.stdout) | {"peak memory": f"{run.peak_mib:,.0f} MiB"}
        )


def judge(folder: Path, name: str) -> None:
    """Write what a check says of each pair, and print the time it took."""
    table, store = open_dataset(folder / "rows.jsonl"), ObjectStore(uri=str(folder / "output"))
    started, used = time.perf_counter(), time.process_time()
    with ImageReader(digests=FileDigests(folder / "digests.sqlite")) as reader:
        source = ImageSource(table.rows, table.columns, table.base, reader, ImageSettings())
        benchmarks = (str(folder / "bench"), str(folder / "bench.parquet"))
        settings = CheckSettings(store, lambda: source, benchmarks=benchmarks)
        check = open_check(cast("CheckName", name), settings)
        assert isinstance(check, ComputedCheck)
        values = zip(*check.judge(lambda: checked_pairs(store)), strict=True)
        said = pa.Table.from_arrays(list(map(pa.array, values)), schema=pa.schema(check.columns))
    cpu, wall = time.process_time() - used, time.perf_counter() - started
    pq.write_table(said, folder / f"{name}.parquet")
    print(json.dumps({"seconds": f"{wall:.1f}", "CPU seconds": f"{cpu:.1f}"}))


if __name__ == "__main__":
    judge(Path(sys.argv[1]), sys.argv[2])
