"""Decoding with Pillow: an opened image of any mode -> upright 8-bit pixels, in bounded memory."""

from collections.abc import Callable

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .colour_profiles import to_srgb
from .deep_grey import grey_range

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_STRIP_PIXELS = 1_000_000
"""Pixels of a large image that are converted at a time."""

_REDUCING_GAP = 2.0
"""Images are averaged down to no less than this many times their final size; see Pillow's
`Image.resize`."""


def upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied."""
    image.load()  # already rotates a TIFF
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Anything can be raised here, as in `prepare_image`; but a photo with an unreadable EXIF
        # block is still a good photo, and viewers show it as it is stored.
        return image
    rotation = _TO_UPRIGHT.get(orientation)
    return image.transpose(rotation) if rotation is not None else image


def jpeg_scale(full: tuple[int, int], size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4 and 8 that a JPEG can be divided by without being under a size."""
    fitting = (scale for scale in (8, 4, 2) if all(map(int.__ge__, scaled(full, scale), size)))
    return next(fitting, 1)


def scaled(full: tuple[int, int], scale: int) -> tuple[int, int]:
    """The size that a JPEG has when it is decoded at 1/`scale`."""
    return -(-full[0] // scale), -(-full[1] // scale)


def decode(
    image: Image.Image,
    size: tuple[int, int],
    orientation: int = 1,
    profile: bytes | None = None,
) -> tuple[Image.Image, bool]:
    """Decode an opened image (its first frame) to upright RGB or 8-bit grey pixels, on white.

    Args:
        image: the opened image.
        size: target width and height before rotation, at most `image.size`.
        orientation: as in EXIF; 1 for a TIFF file, which Pillow rotates itself.
        profile: the embedded colour profile.

    Returns:
        The pixels; and whether grey values were scaled to the range that the image holds.

    Raises:
        Exception: of any type, if the file is corrupted.
    """
    if isinstance(image, ImageFile):  # JPEG only
        scale = jpeg_scale(image.size, size)
        image.draft(None, (max(image.width // scale, 1), max(image.height // scale, 1)))
    image.load()
    _release(image)
    convert, is_scaled = _converter(image)
    pixels = _resized(image, size, convert)
    if pixels.mode == "RGBA":
        white = Image.new("RGBA", pixels.size, "white")
        pixels = Image.alpha_composite(white, pixels).convert("RGB")
    pixels = to_srgb(pixels, profile)
    rotation = _TO_UPRIGHT.get(orientation)
    return (pixels if rotation is None else pixels.transpose(rotation)), is_scaled


def _release(image: Image.Image) -> None:
    """Drop what a loaded WebP image still holds: two canvases, and a copy of its pixels."""
    if isinstance(image, WebPImageFile):
        image.fp = None
        vars(image).pop("_decoder", None)


def _resized(
    image: Image.Image, size: tuple[int, int], convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Convert and resize an image; a much larger one strip by strip, without a copy of it."""
    width, height = image.size
    across = int(width / size[0] / _REDUCING_GAP) or 1
    down = int(height / size[1] / _REDUCING_GAP) or 1
    if across == down == 1:
        pixels = convert(image)
    else:
        rows = down * max(1, _STRIP_PIXELS // (down * width))
        strips = [
            convert(image.crop((0, top, width, min(top + rows, height)))).reduce((across, down))
            for top in range(0, height, rows)
        ]
        pixels = Image.new(strips[0].mode, (strips[0].width, sum(s.height for s in strips)))
        for number, strip in enumerate(strips):
            pixels.paste(strip, (0, number * rows // down))
    if pixels.size == size:
        return pixels
    box = (0, 0, width / across, height / down)
    return pixels.resize(size, Image.Resampling.LANCZOS, box)


def _converter(image: Image.Image) -> tuple[Callable[[Image.Image], Image.Image], bool]:
    """How an image, or a part of it, becomes L, RGB, RGBA or CMYK; and whether that scales it."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        found = grey_range(image, max(1, _STRIP_PIXELS // image.width))
        return found.to_8_bit, found.is_scaled
    if mode in ("LA", "La", "RGBa") or image.has_transparency_data:
        return _to_rgba, False
    target = "L" if mode in ("1", "L") else "CMYK" if mode == "CMYK" else "RGB"
    return (lambda part: part if part.mode == target else part.convert(target)), False


def _to_rgba(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")
