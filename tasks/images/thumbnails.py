"""Untrusted images -> small pictures for a report page."""

import base64
import io

from PIL import Image

from .decoding import decode
from .formats import sniff
from .prepare import ImageSettings, prepare_image

SIDE = 320
"""Longest side in pixels of a row's only image: a gallery card on a high-density phone screen."""

SMALL_SIDE = 200
"""The same for each image of a row that has several."""

_QUALITIES = (78, 60, 40, 20, 5)
_MAX_BYTES = 24_000
"""For one thumbnail: noise at the lowest quality and 320 x 320 pixels stays below."""


def thumbnail(data: bytes, images: ImageSettings, side: int = SIDE) -> str:
    """Make a small JPEG of an untrusted image, as a `data:` URI of at most about 32 kB.

    Every image is decoded and re-encoded, so that only its pixels end up in the page. Empty if the
    image is refused or corrupted.
    """
    limits = images.model_copy(update={"max_side": side, "min_side": 1})
    try:
        prepared = prepare_image(data, limits)
        # A small file is passed through undecoded, with all its metadata and defects.
        _, decoder = sniff(prepared.data)
        image = decoder(io.BytesIO(prepared.data))
        return _data_uri(decode(image, image.size))
    except Exception:
        # Refused or corrupted: decoders may raise anything, see `prepare_image`.
        return ""


def _data_uri(pixels: Image.Image) -> str:
    pixels.info.clear()  # Pillow would write comments and colour profiles found there
    for quality in _QUALITIES:
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= _MAX_BYTES:
            encoded = base64.b64encode(file.getvalue()).decode("ascii")
            return f"data:image/jpeg;base64,{encoded}"
    return ""
