"""Slight changes of a prepared image: what it shows stays the same."""

from collections.abc import Callable, Mapping

from PIL import Image, ImageEnhance

from ..records import Kind, RowError
from .decoding_budget import MEMORY
from .prepare import ImageSettings, PreparedImage, decode_image, encode

Change = Callable[[Image.Image], Image.Image]


def _cut(left: float, top: float, right: float, bottom: float) -> Change:
    """Without these parts of the width and height at each side, at the same size."""

    def cut(image: Image.Image) -> Image.Image:
        width, height = image.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        return image.resize(image.size, box=box)

    return cut


CHANGES: Mapping[str, Change] = {
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "cropped": _cut(0.01, 0.01, 0.01, 0.01),
    "moved_up": _cut(0, 0.02, 0, 0),
    "moved_left": _cut(0.02, 0, 0, 0),
}
"""Of those tried on the demo model, the ones that cost few right answers for the wrong ones that
they find. Brighter or darker by 15 %, blurred and coarser images cost more."""

_COPIES = 12
"""Bytes a pixel of the copies that a change makes at the same time."""


def changed_image(image: PreparedImage, change: str, settings: ImageSettings) -> PreparedImage:
    """A prepared image with one of `CHANGES`, encoded as `prepare_image` does.

    Raises:
        RowError: there is no such change, or the image is corrupted.
    """
    if change not in CHANGES:
        raise RowError(Kind.BAD_ROW, f"there is no change of an image {change!r:.60}")
    pixels = decode_image(image.data, settings)
    with MEMORY.hold(_COPIES * image.width * image.height):
        pixels = CHANGES[change](pixels)
        return encode(pixels, image.mime == "image/png", settings, image.is_scaled)
