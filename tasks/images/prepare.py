"""Image bytes -> safe, upright, downscaled bytes with their true type.

The files are untrusted: the type is read from the content and never from the name, only a short
list of Pillow's decoders is used, and the declared size is checked before anything is decoded.
Embedded colour profiles are dropped, not converted: colours are read as sRGB.
"""

import base64
import io
import struct
from dataclasses import dataclass, field

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import BaseModel, ConfigDict, Field

from ..records import Kind, RowError
from .decoding import decode, orientation
from .formats import Decoder, sniff


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
        "Decoding takes up to 4 bytes of memory per pixel, twice that during conversion.",
    )
    max_side: int = Field(
        default=1024,
        ge=28,
        description="Images whose longer side exceeds this (in pixels) are downscaled before they "
        "are sent; smaller ones are never enlarged.",
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
    """

    data: bytes = field(repr=False)
    mime: str
    width: int
    height: int

    def data_uri(self) -> str:
        """The image as a `data:` URI for a chat request."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def prepare_image(data: bytes, settings: ImageSettings) -> PreparedImage:
    """Check an encoded image and convert it to a form that can be sent.

    A plain RGB or grey JPEG or PNG within `max_side` is passed through unchanged after checks of
    its header and its end: decoding it would cost far more than everything else, and the server
    decodes it anyway. Everything else is decoded (first frame, upright, on white, 8 bits) and
    re-encoded without metadata. The result depends only on the arguments and the Pillow version.

    Raises:
        RowError: NOT_AN_IMAGE, IMAGE_BROKEN, IMAGE_TOO_LARGE or IMAGE_TOO_SMALL.
    """
    if len(data) > settings.max_file_bytes:
        raise RowError(
            Kind.IMAGE_TOO_LARGE,
            f"the file has {len(data):,} bytes, over the {settings.max_file_bytes:,} of "
            "max_file_bytes; shrink it or raise the limit",
        )
    name, decoder = sniff(data)
    try:
        return _prepare(decoder, data, settings)
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RowError(Kind.IMAGE_TOO_LARGE, f"{error}; shrink it") from error
    except Exception as error:
        # On a hostile file Pillow's decoders raise almost anything (OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, TypeError, MemoryError ...), a list that changes
        # between versions. All mean the same here, and must cost no more than this row.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RowError(
            Kind.IMAGE_BROKEN,
            f"the {name} file is corrupted or of an unsupported kind ({reason}); replace it",
        ) from error


def _prepare(decoder: Decoder, data: bytes, settings: ImageSettings) -> PreparedImage:
    file = io.BytesIO(data)
    image = decoder(file)
    width, height = _checked_size(image.size, settings)
    if (width, height) == image.size:
        mime = _mime_if_plain(image, data, file.tell())
        if mime is not None:
            return PreparedImage(data, mime, width, height)
    lossless = not isinstance(image, JpegImageFile | WebPImageFile | AvifImageFile)
    return _encode(decode(image, (width, height)), lossless, settings)


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


def _mime_if_plain(image: ImageFile, data: bytes, header_end: int) -> str | None:
    """MIME type of a file that can be sent as it is; None if it must be decoded."""
    if isinstance(image, JpegImageFile):
        # Some cameras append a few bytes. A file with more than that after its end marker (a video,
        # say) or without one is decoded, which shows whether it is truncated. The search starts
        # after the header, because an embedded thumbnail has an end marker too.
        end = data.rfind(b"\xff\xd9", max(header_end, len(data) - 1024))
        plain = image.mode in ("L", "RGB") and orientation(image) == 1 and end != -1
        return "image/jpeg" if plain else None
    if isinstance(image, PngImageFile):
        depth, colour_type = data[24], data[25]
        plain = depth == 8 and colour_type in (0, 2) and _is_plain_png(data)
        return "image/png" if plain else None
    return None


# Chunks that change the picture (transparency, frames, orientation) or are compressed text.
_PNG_CHUNKS_TO_DECODE = frozenset((b"tRNS", b"acTL", b"eXIf", b"iTXt", b"zTXt"))


def _is_plain_png(data: bytes) -> bool:
    """Whether the chunks are complete and none of them requires decoding the file."""
    position, has_pixels = 8, False
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return has_pixels
        is_profile = kind == b"tEXt" and data.startswith(b"Raw profile", position + 8)
        if kind in _PNG_CHUNKS_TO_DECODE or is_profile:
            return False
        has_pixels |= kind == b"IDAT"
        position += 12 + length
    return False


# Up to this many pixels a PNG is small, and in an icon or a thumbnail every pixel counts.
_MAX_PNG_PIXELS = 256 * 256


def _encode(image: Image.Image, lossless: bool, settings: ImageSettings) -> PreparedImage:
    """Encode without metadata: small images from lossless files as PNG, all others as JPEG."""
    buffer = io.BytesIO()
    image.info.clear()  # Pillow would write comments, transparency and colour profiles found there
    if lossless and image.width * image.height <= _MAX_PNG_PIXELS:
        image.save(buffer, "PNG")
        return PreparedImage(buffer.getvalue(), "image/png", *image.size)
    # Full colour resolution keeps thin coloured lines and text readable (screenshots, charts).
    image.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling="4:4:4")
    return PreparedImage(buffer.getvalue(), "image/jpeg", *image.size)
