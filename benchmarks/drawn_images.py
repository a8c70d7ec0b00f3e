"""Images for the benchmarks: drawn scenes, photographs of 12 megapixels, and new files of both."""

import io
import os
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image, ImageChops
from prefect_imageqa.serving.demo_model.scenes import draw_scene, random_scene

SIZE = (640, 480)
LARGE = (4000, 3000)
"""12 megapixels, as of a telephone."""
QUALITY = 85
SMALL_NOISE, LARGE_NOISE = 40, 25
"""With these, files are as large as photographs: about 80 kB and 4 MB."""


def draw_images(folder: Path, count: int, seed: int, noise: int) -> list[Path]:
    """Draw `count` JPEGs of 640x480 with different pixels; with noise, as large as photographs."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for path in paths:
        image = draw_scene(random_scene(rng), *SIZE, rng)
        path.write_bytes(_encode(_with_grain(image, noise, rng)))
    return paths


def new_files(folder: Path, count: int, seed: int, images: Sequence[bytes]) -> list[Path]:
    """Write `count` JPEGs of which no two are equal: these images, each with a comment of its own.

    A hundred times as fast as drawing them. A server that caches by pixels takes them for the same.
    """
    folder.mkdir(parents=True)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        image, comment = images[number % len(images)], b"%d of %d" % (number, seed)
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        path.write_bytes(image[:2] + segment + image[2:])
    return paths


def draw_large(folder: Path, count: int, seed: int) -> list[Path]:
    """Draw `count` JPEGs of 12 megapixels with different pixels, on all cores."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        for _ in pool.map(
            _draw_some_large,
            [paths[core::cores] for core in range(cores)],
            range(seed, seed + cores),
        ):
            pass
    return paths


def _draw_some_large(paths: Sequence[Path], seed: int) -> None:
    rng = random.Random(seed)
    image = _with_grain(draw_scene(random_scene(rng), *LARGE, rng), LARGE_NOISE, rng)
    for path in paths:
        shifted = ImageChops.offset(image, rng.randrange(LARGE[0]), rng.randrange(LARGE[1]))
        path.write_bytes(_encode(shifted))


_grains: dict[tuple[tuple[int, int], int], Image.Image] = {}


def _with_grain(image: Image.Image, noise: int, rng: random.Random) -> Image.Image:
    if not noise:
        return image
    if (image.size, noise) not in _grains:
        _grains[image.size, noise] = Image.effect_noise(image.size, noise).convert("RGB")
    grain, (width, height) = _grains[image.size, noise], image.size
    shifted = ImageChops.offset(grain, rng.randrange(width), rng.randrange(height))
    return Image.blend(image, shifted, 0.3)


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
