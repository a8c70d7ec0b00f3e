"""The image formats that are accepted, recognised by their first bytes."""

import io
from collections.abc import Callable

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..records import Kind, RowError

Decoder = Callable[[io.BytesIO], ImageFile]


# Pillow's other formats are left out: EPS runs Ghostscript, WMF is Windows only, and the rest
# (FITS, PSD, SGI, ...) are rarely used decoders, which an attacker would try first.
# The decoder classes are used instead of `Image.open`, which warns about large images through
# the process-wide warning filters and cannot distinguish a corrupted image from a non-image.
_SIGNATURES: tuple[tuple[int, bytes, str, Decoder], ...] = (
    (0, b"\xff\xd8\xff", "JPEG", JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", PngImageFile),
    (8, b"WEBP", "WebP", WebPImageFile),
    (0, b"GIF87a", "GIF", GifImageFile),
    (0, b"GIF89a", "GIF", GifImageFile),
    (0, b"BM", "BMP", BmpImageFile),
    (0, b"II*\0", "TIFF", TiffImageFile),
    (0, b"MM\0*", "TIFF", TiffImageFile),
    (0, b"II+\0", "TIFF", TiffImageFile),
    (0, b"MM\0+", "TIFF", TiffImageFile),
    (4, b"ftypavif", "AVIF", AvifImageFile),
    (4, b"ftypavis", "AVIF", AvifImageFile),
    # P1 to P3, the plain-text variants, are decoded byte by byte in Python: too slow to accept.
    (0, b"P4", "PBM", PpmImageFile),
    (0, b"P5", "PGM", PpmImageFile),
    (0, b"P6", "PPM", PpmImageFile),
)


def sniff(data: bytes) -> tuple[str, Decoder]:
    """Name and decoder of an encoded image's format, by its first bytes.

    Raises:
        RowError: NOT_AN_IMAGE.
    """
    for offset, signature, name, decoder in _SIGNATURES:
        if data.startswith(signature, offset):
            return name, decoder
    found = f"it starts with {data[:16]!r}" if data else "it is empty"
    raise RowError(
        Kind.NOT_AN_IMAGE,
        f"not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM file ({found}); "
        "convert it or correct the image column",
    )
