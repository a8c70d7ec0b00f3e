"""Untrusted images -> small pictures for a report page."""

import base64
import io

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
    limits = images.model_copy(update={"max_side": side, "min_side": 1})
    try:
        return _data_uri(
            decode_image(data, limits), _MAX_BYTES if side <= SIDE else _MAX_LARGE_BYTES
        )
    except Exception:
        # Refused or corrupted: encoders may raise anything too.
        return ""


def _data_uri(pixels: Image.Image, max_bytes: int) -> str:
    pixels.info.clear()  # Pillow would write comments and colour profiles found there
    for quality in _QUALITIES:
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= max_bytes:
            encoded = base64.b64encode(file.getvalue()).decode("ascii")
            return f"data:image/jpeg;base64,{encoded}"
    return ""
