"""Decoding with Pillow: an opened image of any mode -> upright 8-bit pixels."""

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Anything can be raised here, as in `prepare_image`; but a photo with an unreadable EXIF
        # block is still a good photo, and viewers show it as it is stored.
        return 1
    return value if value in _TO_UPRIGHT else 1


def upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied."""
    image.load()  # already rotates a TIFF
    rotation = _TO_UPRIGHT.get(orientation(image))
    return image.transpose(rotation) if rotation is not None else image


def decode(image: ImageFile, size: tuple[int, int]) -> Image.Image:
    """Decode an opened image (its first frame) to upright RGB or 8-bit grey pixels, on white.

    Args:
        image: the opened image.
        size: target width and height before rotation, at most `image.size`.

    Raises:
        Exception: of any type, if the file is corrupted.
    """
    image.draft(None, size)  # JPEG only: decodes at 1/2, 1/4 or 1/8, down to no less than `size`
    image.load()
    rotation = _TO_UPRIGHT.get(orientation(image))  # after load, which already rotates a TIFF
    pixels = _to_8_bit(image)
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if pixels.mode == "RGBA":
        white = Image.new("RGBA", pixels.size, "white")
        pixels = Image.alpha_composite(white, pixels).convert("RGB")
    return pixels if rotation is None else pixels.transpose(rotation)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert any mode to L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return _grey_to_8_bit(np.asarray(image, dtype=np.float32))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data or image.mode in ("LA", "RGBa"):
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _grey_to_8_bit(values: npt.NDArray[np.float32]) -> Image.Image:
    """Scale grey values whose white point is not declared.

    Pillow may open 16-bit files as 32-bit integers; these keep the 16-bit scale. For anything else
    (heights, depths, radiances) the lowest value becomes black and the highest white.
    """
    values = np.nan_to_num(values, nan=0.0)
    low, high = float(values.min()), float(values.max())
    if 255 < high <= 65535 and low >= 0:
        low, high = 0.0, 65535.0
    scaled = (values - low) * (255.0 / max(high - low, 1e-30))
    return Image.fromarray(scaled.astype(np.uint8))
