"""Untrusted images -> small pictures for a report page."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from .prepare import ImageSettings, decode_image

SIDE = 240
"""Longest side in pixels of a row's only image: three of them fit side by side in Prefect's UI."""

SMALL_SIDE = 120
"""The same for each image of a row that has several."""

LARGE_SIDE = 640
"""The same for an image that a click enlarges."""

_QUALITIES = (78, 60, 40, 20, 5)
_MAX_BYTES = 24_000
"""For one thumbnail: noise at the lowest quality stays below."""

_MAX_LARGE_BYTES = 60_000
"""For one that is larger than `SIDE`; a photo of `LARGE_SIDE` at a good quality."""


def thumbnail(data: bytes, images: ImageSettings, side: int = SIDE) -> str:
    """Make a small JPEG of an untrusted image, as a `data:` URI of at most about 32 kB.

    If it is larger than `SIDE`, 80 kB.

    Every image is decoded and re-encoded, so that only its pixels end up in the page. Empty if the
    image is refused or corrupted.
    """
    return thumbnails(data, images, (side,))[0]


def thumbnails(data: bytes, images: ImageSettings, sides: Sequence[int]) -> Sequence[str]:
    """Thumbnails of several sizes, as `thumbnail` makes them; the image is decoded once.

    Args:
        data: the encoded image.
        images: limits on what is decoded.
        sides: longest side of each, in pixels; an image is never enlarged.
    """
    limits = images.model_copy(update={"max_side": max(sides), "min_side": 1})
    try:
        pixels = decode_image(data, limits)
        pixels.info.clear()  # Pillow would write comments and colour profiles found there
        return [_data_uri(_shrunk(pixels, side), side) for side in sides]
    except Exception:
        # Refused or corrupted: encoders may raise anything too.
        return [""] * len(sides)


def _shrunk(pixels: Image.Image, side: int) -> Image.Image:
    scale = side / max(pixels.size)
    if scale >= 1:
        return pixels
    width, height = (max(1, round(length * scale)) for length in pixels.size)
    return pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=1.0)


def _data_uri(pixels: Image.Image, side: int) -> str:
    max_bytes = _MAX_BYTES if side <= SIDE else _MAX_LARGE_BYTES
    for quality in _QUALITIES:
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=quality)
        if file.tell() <= max_bytes:
            encoded = base64.b64encode(file.getvalue()).decode("ascii")
            return f"data:image/jpeg;base64,{encoded}"
    return ""
