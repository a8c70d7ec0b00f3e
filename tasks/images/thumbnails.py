"""Images of strangers -> small pictures that a page can hold."""

import base64
import io

from PIL import Image

from .pixels import decode
from .preparing import ImageSettings, prepare_image, sniff

SIDE = 320
"""Longest side of a row's only image, in pixels: a gallery's card on a dense phone screen."""

SIDE_OF_SEVERAL = 200

_QUALITIES = (78, 60, 40, 20, 5)
_MOST_BYTES = 24_000
"""Of one thumbnail: noise at the lowest quality and 320 x 320 pixels stays below."""


def thumbnail(data: bytes, images: ImageSettings, side: int = SIDE) -> str:
    """Make a small JPEG of a stranger's image, a `data:` URI of at most some 32 kB.

    Every image is decoded and encoded anew, so that nothing of the file but its pixels is in the
    page. Empty where the image is refused or corrupted.
    """
    limits = images.model_copy(update={"max_side": side, "min_side": 1})
    try:
        prepared = prepare_image(data, limits)
        # A small file is passed on undecoded, with all its metadata and faults.
        _, decoder = sniff(prepared.data)
        image = decoder(io.BytesIO(prepared.data))
        return _data_uri(decode(image, image.size))
    except Exception:
        # Refused or corrupted: decoders raise whatever they are driven into, see `prepare_image`.
        return ""


def _data_uri(pixels: Image.Image) -> str:
    pixels.info.clear()  # Pillow writes comments and colour profiles found there
    for quality in _QUALITIES:
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= _MOST_BYTES:
            encoded = base64.b64encode(file.getvalue()).decode("ascii")
            return f"data:image/jpeg;base64,{encoded}"
    return ""
