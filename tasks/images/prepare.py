"""Image bytes -> safe, upright, downscaled bytes with their true type.

The files are untrusted: the type is read from the content and never from the name, only a short
list of Pillow's decoders is used, and the declared size is checked before anything is decoded.
So is the work that its structure asks for, and decoded images share one budget of memory. Colours
are converted to sRGB by the embedded profile, if there is one.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from ..records import Kind, RowError
from .avif_process import decode_avif
from .colour_profiles import is_srgb
from .decoding import decode, jpeg_scale, scaled
from .decoding_budget import MAX_BYTES, MAX_SECONDS, MEMORY
from .formats import Format, sniff
from .structure import Structure, broken

T = TypeVar("T")

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


class ImageSettings(BaseModel):
    """How images are checked and prepared. Part of the row key: a change regenerates all rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_file_bytes: int = Field(
        default=64 * 2**20, ge=1, description="Larger image files (in bytes) are refused."
    )
    max_pixels: int = Field(
        default=100_000_000,
        ge=1,
        description="Images that declare more pixels (width x height) are refused undecoded. "
        "So are those whose decoding would take over 2 s of CPU time or 512 MB of memory: 4 bytes "
        "per pixel, 16 for WebP and AVIF.",
    )
    max_side: int = Field(
        default=1024,
        ge=28,
        description="Images whose longer side exceeds this (in pixels) are downscaled before they "
        "are sent, to this or, for some JPEGs, up to 3 % less; smaller ones are never enlarged.",
    )
    # Image processors in transformers mistake a side of 1 or 3 pixels for the colour channels.
    min_side: int = Field(
        default=4, ge=1, description="Images narrower than this when sent (in pixels) are refused."
    )
    # The processor of Qwen2-VL and its successors raises beyond 200.
    max_aspect: float = Field(
        default=200.0,
        ge=1,
        description="Images whose longer side exceeds this many times the shorter one are refused.",
    )
    max_images: int = Field(default=32, ge=1, description="Maximum number of images per row.")
    jpeg_quality: int = Field(
        default=90,
        ge=1,
        le=95,
        title="JPEG quality",
        description="JPEG quality for images that must be re-encoded.",
    )


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it is sent to the model.

    Attributes:
        data: the encoded file.
        mime: its type, "image/jpeg" or "image/png".
        width: in pixels, as shown.
        height: in pixels, as shown.
        is_scaled: whether grey values of more than 8 bits were scaled to the range that it holds.
        is_converted: whether it is not the file itself.
    """

    data: bytes = field(repr=False)
    mime: str
    width: int
    height: int
    is_scaled: bool = False
    is_converted: bool = False


def prepare_image(data: bytes, settings: ImageSettings) -> PreparedImage:
    """Check an encoded image and convert it to a form that can be sent.

    A plain RGB or grey JPEG or PNG within `max_side` is passed through unchanged after checks of
    its header and its end: decoding it would cost far more than everything else, and the server
    decodes it anyway. Everything else is decoded (first frame, upright, sRGB, on white, 8 bits) and
    re-encoded without metadata. The result depends only on the arguments and the Pillow version.
    It waits while other threads decode images that need the memory.

    Raises:
        RowError: NOT_AN_IMAGE, IMAGE_BROKEN, IMAGE_TOO_LARGE or IMAGE_TOO_SMALL.
    """

    def prepared(found: Format, file: Structure, size: Size) -> PreparedImage:
        if unchanged := _unchanged(data, file, size):
            return unchanged
        pixels, is_scaled = _decoded(found, file, size, settings)
        return encode(pixels, found.is_lossless, settings, is_scaled)

    return _checked(data, settings, prepared)


def unchanged_image(data: bytes, settings: ImageSettings) -> PreparedImage | None:
    """An encoded image, if it may be sent as it is; None if `prepare_image` must convert it.

    Raises:
        RowError: as for `prepare_image`.
    """
    return _checked(data, settings, lambda _, file, size: _unchanged(data, file, size))


def decode_image(data: bytes, settings: ImageSettings) -> Image.Image:
    """Decode an encoded image as `prepare_image` does, but always.

    Raises:
        RowError: as for `prepare_image`.
    """
    return _checked(
        data, settings, lambda found, file, size: _decoded(found, file, size, settings)[0]
    )


def _checked(
    data: bytes, settings: ImageSettings, use: Callable[[Format, Structure, Size], T]
) -> T:
    """Use the format of a file, its structure and the size to send; errors become RowErrors."""
    if len(data) > settings.max_file_bytes:
        raise RowError(
            Kind.IMAGE_TOO_LARGE,
            f"the file has {len(data):,} bytes, over the {settings.max_file_bytes:,} of "
            "max_file_bytes; shrink it or raise the limit",
        )
    found = sniff(data)
    try:
        file = found.read(data)
        size = _checked_size(file.size, settings)
        if found.name == "JPEG":
            size = _decoder_size(file.size, size, settings.min_side)
        return use(found, file, size)
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError(Kind.IMAGE_TOO_LARGE, f"{error}; shrink it") from error
    except Exception as error:
        # On a hostile file Pillow's decoders raise almost anything (OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, TypeError, MemoryError ...), a list that changes
        # between versions. All mean the same here, and must cost no more than this row.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise broken(found.name, reason) from error


def _unchanged(data: bytes, file: Structure, size: tuple[int, int]) -> PreparedImage | None:
    if file.mime and size == file.size and _is_plain(file, data):
        return PreparedImage(data, file.mime, *size)
    return None


def _is_plain(file: Structure, data: bytes) -> bool:
    """Whether a file that needs no decoding has no more bytes than its pixels, in RGB."""
    width, height = file.size
    return len(data) <= 3 * width * height + _MAX_OVERHEAD and is_srgb(file.profile)


_MAX_OVERHEAD = 64 * 1024
"""Bytes of metadata in a file that is sent as it is."""


def _checked_cost(found: Format, file: Structure, size: tuple[int, int]) -> int:
    """Bytes of memory that decoding takes, estimated from the headers.

    Raises:
        RowError: IMAGE_TOO_LARGE: more than all images share, or too much time.
    """
    width, height = file.size
    if found.name == "JPEG":  # decoded at 1/2, 1/4 or 1/8 of its size
        width, height = scaled(file.size, jpeg_scale(file.size, size))
    pixels = width * height
    copies = 4 * _copied_pixels(file, size, (width, height))
    memory = 4 * pixels + max(file.buffers, copies) + file.length
    seconds = file.seconds + _CONVERT_SECONDS * pixels
    if memory > MAX_BYTES or seconds > MAX_SECONDS:
        cost = (
            f"{memory / 1e6:,.0f} MB of memory, over the {MAX_BYTES / 1e6:,.0f}"
            if memory > MAX_BYTES
            else f"about {seconds:.1f} s of CPU time, over the {MAX_SECONDS:g}"
        )
        raise RowError(
            Kind.IMAGE_TOO_LARGE,
            f"decoding the {found.name} file of {file.size[0]} x {file.size[1]} pixels would take "
            f"{cost} that one image may; shrink it, or save it as a baseline JPEG",
        )
    return memory


def _copied_pixels(file: Structure, size: tuple[int, int], decoded: tuple[int, int]) -> int:
    """Pixels of all copies that `decode` makes at the same time of an image decoded to a size."""
    pixels, target = decoded[0] * decoded[1], size[0] * size[1]
    if pixels > 16 * target:  # averaged strip by strip
        return 12 * target
    if file.is_converted:
        return 2 * pixels
    # It is first resized in width; then it is put on white, or its colours are converted.
    return (size[0] * decoded[1] if size != decoded else 0) + 3 * target


_CONVERT_SECONDS = 5e-9
"""For one pixel, in the slowest mode."""


def _decoded(
    found: Format, file: Structure, size: tuple[int, int], settings: ImageSettings
) -> tuple[Image.Image, bool]:
    """The pixels to send, and whether grey values were scaled."""
    with MEMORY.hold(_checked_cost(found, file, size)):
        if found.decoder is None:
            image, orientation, profile = decode_avif(file)
        else:
            opened = found.decoder(io.BytesIO(file.joined()))
            image, orientation = opened, file.orientation
            profile = file.profile or opened.info.get("icc_profile")
        # What the decoder says is what it decodes.
        if image.size != file.size:
            size = _checked_size(image.size, settings)
            if image.width * image.height > file.size[0] * file.size[1]:
                raise broken(found.name, "larger than its header says")
        return decode(image, size, orientation, profile)


def _checked_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """The size to send, computed from the size declared in the header."""
    width, height = size
    if width * height > settings.max_pixels:
        raise RowError(
            Kind.IMAGE_TOO_LARGE,
            f"{width} x {height} pixels are over the {settings.max_pixels:,} of max_pixels; "
            "shrink it or raise the limit",
        )
    if min(size) < 1 or max(size) > settings.max_aspect * min(size):
        raise RowError(
            Kind.IMAGE_TOO_SMALL,
            f"{width} x {height} pixels is too narrow: one side is over {settings.max_aspect:g} "
            "times the other (max_aspect); crop it",
        )
    scale = min(1.0, settings.max_side / max(size))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    if min(width, height) < settings.min_side:
        raise RowError(
            Kind.IMAGE_TOO_SMALL,
            f"{size[0]} x {size[1]} pixels would be sent as {width} x {height}, below the "
            f"{settings.min_side} of min_side; use a larger or less narrow image",
        )
    return width, height


_NEAR = 0.97
"""A JPEG that its decoder scales to a size so near the one to send is not resized: that would take
as long as decoding, for the 12 megapixels of most phones."""


def _decoder_size(full: tuple[int, int], size: tuple[int, int], min_side: int) -> tuple[int, int]:
    """The size to send of a JPEG: one that its decoder gives, if that is near and not larger."""
    if size == full:
        return size
    for scale in (2, 4, 8):
        found = scaled(full, scale)
        if _NEAR * max(size) <= max(found) <= max(size) and min(found) >= min_side:
            return found
    return size


# Up to this many pixels a PNG is small, and in an icon or a thumbnail every pixel counts.
_MAX_PNG_PIXELS = 256 * 256


def encode(
    image: Image.Image, lossless: bool, settings: ImageSettings, is_scaled: bool
) -> PreparedImage:
    """Encode without metadata: small images from lossless files as PNG, all others as JPEG."""
    buffer = io.BytesIO()
    image.info.clear()  # Pillow would write comments, transparency and colour profiles found there
    if lossless and image.width * image.height <= _MAX_PNG_PIXELS:
        image.save(buffer, "PNG")
        return PreparedImage(
            buffer.getvalue(), "image/png", *image.size, is_scaled, is_converted=True
        )
    # Full colour resolution keeps thin coloured lines and text readable (screenshots, charts).
    image.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling="4:4:4")
    return PreparedImage(buffer.getvalue(), "image/jpeg", *image.size, is_scaled, is_converted=True)
