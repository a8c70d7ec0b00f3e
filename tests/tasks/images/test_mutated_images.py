"""Damaged and hostile image files: each costs its row only, and bounded work."""

import io
import os
import random
import resource
import struct
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from prefect_imageqa.tasks.images.decoding_budget import MAX_BYTES
from prefect_imageqa.tasks.images.prepare import ImageSettings, prepare_image
from prefect_imageqa.tasks.records import RowError

COUNT = int(os.environ.get("IMAGEQA_MUTATED_IMAGES", "1000"))
"""They take about 5 s; set it to 2,000 and more after changes here or of Pillow."""

MAX_CPU_SECONDS = 2.0

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
_FORMATS: dict[str, tuple[dict[str, object], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}),
    "PNG": ({}, {"optimize": True}, {"transparency": 0}),
    "WEBP": ({}, {"lossless": True}),
    "GIF": ({}, {"interlace": 1, "comment": b"x" * 300}),
    "BMP": ({},),
    "TIFF": tuple(
        {"compression": name}
        for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd")
    ),
    "AVIF": ({},),
    "PPM": ({},),
}


def picture(mode: str) -> Image.Image:
    """A small picture of any mode."""
    values = np.random.default_rng(0).integers(0, 4096, (48, 64))
    if mode in ("I", "F"):
        return Image.fromarray(values.astype({"I": "int32", "F": "float32"}[mode]))
    if mode == "I;16":
        return Image.fromarray(values.astype("uint16"))
    grey = Image.fromarray((values >> 4).astype("uint8"))
    colours = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    if mode == "PA":
        return colours.convert("P").convert("PA")
    if mode == "LAB":
        return Image.merge("LAB", colours.split())
    return colours.convert("RGBA").convert("P" if mode == "P" else mode)


def encoded_pictures() -> Iterator[tuple[str, bytes]]:
    """Every format with every mode and option that Pillow writes."""
    for kind, variants in _FORMATS.items():
        for mode in _MODES:
            for options in variants:
                if (kind, mode) == ("PPM", "F"):  # PFM, another format
                    continue
                file = io.BytesIO()
                try:
                    picture(mode).save(file, kind, **options)
                except (OSError, ValueError, KeyError, TypeError, RuntimeError, SystemError):
                    continue
                yield f"{kind} {mode} {options}", file.getvalue()
        if kind in ("PNG", "WEBP", "GIF", "TIFF", "AVIF"):
            file = io.BytesIO()
            frames = [picture("RGB").rotate(90) for _ in range(3)]
            picture("RGB").save(file, kind, save_all=True, append_images=frames)
            yield f"{kind} frames", file.getvalue()


PICTURES = dict(encoded_pictures())


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_every_mode_of_every_format_is_prepared(data: bytes) -> None:
    prepared = prepare_image(data, ImageSettings())
    with Image.open(io.BytesIO(prepared.data)) as image:
        image.load()
        assert (image.size, image.mode in ("L", "RGB")) == ((64, 48), True)
        high = image.convert("L").getextrema()[1]
    assert isinstance(high, int)
    assert high > 100  # none is black


_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x4000, 10_000, 0x7FFF_FFFF, 0xFFFF_FFFF)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a file in one to four ways."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # Most of what decides a decoder's work is in the header; the signature mostly stays.
        at = rng.randrange(min(len(changed), rng.choice((64, 512, 1 << 30))) or 1)
        at = at if at >= 12 else at + rng.choice((0, 12, 12))
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                kind = rng.choice((">H", "<H", ">I", "<I"))
                value = rng.choice(_EXTREMES) & (0xFFFF if kind[1] == "H" else 0xFFFF_FFFF)
                changed[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
            case 2:
                del changed[at : at + rng.choice((1, 2, 4, 64))]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 64)))
            case 4:
                part = changed[at : at + rng.choice((4, 16, 256))]
                changed[at:at] = part * rng.choice((1, 10, 1000))
            case 5:
                del changed[at:]
            case _:
                begin = rng.randrange(len(other))
                changed[at:at] = other[begin : begin + rng.choice((16, 256, 4096))]
    return bytes(changed)


def cpu_seconds() -> float:
    """Of this process and of those that decoded for it."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_mutated_images_cost_their_row_and_bounded_work() -> None:
    rng = random.Random(12)
    files = list(PICTURES.values())
    before, slowest, outcomes = peak_bytes(), 0.0, Counter[str]()
    for _ in range(COUNT):
        data = mutate(rng.choice(files), rng.choice(files), rng)
        began = cpu_seconds()
        outcomes[outcome(data)] += 1
        slowest = max(slowest, cpu_seconds() - began)
    grown = peak_bytes() - before
    print(f"{dict(outcomes)}, slowest {slowest:.2f} s, memory grown by {grown / 1e6:.0f} MB")
    assert sum(outcomes.values()) == COUNT
    assert slowest < MAX_CPU_SECONDS
    assert grown < MAX_BYTES


def outcome(data: bytes) -> str:
    """What becomes of a row with this image; any other exception fails the test."""
    try:
        prepare_image(data, ImageSettings())
    except RowError as error:
        return error.problem.kind
    return "prepared"
