"""The image formats that are accepted, recognised by their first bytes."""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..records import Kind, RowError
from .jpeg_structure import read_jpeg
from .other_structures import read_avif, read_bmp, read_gif, read_ppm, read_webp
from .png_structure import read_png
from .structure import Structure
from .tiff_structure import read_tiff


@dataclass(frozen=True, slots=True)
class Format:
    """How files of a format are read.

    Attributes:
        name: for messages.
        read: their structure, before they are decoded.
        decoder: Pillow's; None if they are decoded in another process.
        is_lossless: whether every pixel may count.
    """

    name: str
    read: Callable[[bytes], Structure]
    decoder: Callable[[io.BytesIO], ImageFile] | None
    is_lossless: bool = True


_JPEG = Format("JPEG", read_jpeg, JpegImageFile, is_lossless=False)
_PNG = Format("PNG", read_png, PngImageFile)
_WEBP = Format("WebP", read_webp, WebPImageFile, is_lossless=False)
_GIF = Format("GIF", read_gif, GifImageFile)
_BMP = Format("BMP", read_bmp, BmpImageFile)
_TIFF = Format("TIFF", read_tiff, TiffImageFile)
_AVIF = Format("AVIF", read_avif, None, is_lossless=False)
_PPM = Format("PPM", read_ppm, PpmImageFile)

# Pillow's other formats are left out: EPS runs Ghostscript, WMF is Windows only, and the rest
# (FITS, PSD, SGI, ...) are rarely used decoders, which an attacker would try first.
# The decoder classes are used instead of `Image.open`, which warns about large images through
# the process-wide warning filters and cannot distinguish a corrupted image from a non-image.
_SIGNATURES: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"\xff\xd8\xff", _JPEG),
    (0, b"\x89PNG\r\n\x1a\n", _PNG),
    (8, b"WEBP", _WEBP),
    (0, b"GIF87a", _GIF),
    (0, b"GIF89a", _GIF),
    (0, b"BM", _BMP),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (4, b"ftypavif", _AVIF),
    (4, b"ftypavis", _AVIF),
    # P1 to P3, the plain-text variants, are decoded byte by byte in Python: too slow to accept.
    (0, b"P4", _PPM),
    (0, b"P5", _PPM),
    (0, b"P6", _PPM),
)


def image_format(data: bytes) -> Format | None:
    """The format of an encoded image by its first bytes; None if it is none of those accepted."""
    for offset, signature, found in _SIGNATURES:
        if data.startswith(signature, offset):
            return found
    return None


def sniff(data: bytes) -> Format:
    """The format of an encoded image, by its first bytes.

    Raises:
        RowError: NOT_AN_IMAGE.
    """
    found = image_format(data)
    if found is None:
        raise RowError(
            Kind.NOT_AN_IMAGE,
            "not a JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM file "
            f"({_description(data)}); convert it or correct the image column",
        )
    return found


_OTHERS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (b"%PDF",), "a PDF file"),
    (0, (b"PK\x03\x04",), "a ZIP file"),
    (0, (b"\x1f\x8b",), "a gzip file"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS, whose file was not fetched"),
    (4, (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"), "a HEIC file"),
    (4, (b"ftyp",), "a video"),
    (0, (b"%!PS",), "a PostScript file"),
    (0, (b"P1", b"P2", b"P3"), "a PPM file in plain text"),
)


def _description(data: bytes) -> str:
    """What a file is that is no image. Its content is not shown: it may be anyone's secret."""
    if not data:
        return "it is empty"
    for offset, signatures, name in _OTHERS:
        if data.startswith(signatures, offset):
            return f"it is {name}"
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "it is an HTML page"
    if b"<svg" in start:
        return "it is an SVG drawing"
    if start.startswith((b"<?xml", b"<")):
        return "it is XML"
    control = sum(byte < 9 or 13 < byte < 32 for byte in data[:256])
    return "it is text" if not control else "its kind is unknown"
