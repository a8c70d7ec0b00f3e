"""What the headers of an image file say, read before a decoder is trusted with it.

Files are untrusted. A decoder's work is bounded by the pixels of an image, but not by that alone:
thousands of passes over them, millions of empty segments, or text and profiles that unpack to
gigabytes cost minutes in a file of a few kilobytes. So each format's structure is walked first, in
bounded work, and what the decoder does not need is left out.
"""

import re
import struct
from dataclasses import dataclass

from ..records import Kind, RowError

MAX_PROFILE_BYTES = 4 * 2**20
"""Larger colour profiles are ignored; those of printers have up to about 3 MB."""

_MAX_EXIF_TAGS = 1000


@dataclass(frozen=True, slots=True)
class Structure:
    """An image file before it is decoded.

    Attributes:
        data: the file for the decoder, without metadata.
        size: declared width and height, before rotation.
        orientation: as in EXIF, 1 (upright) to 8.
        profile: the embedded colour profile, if there is one.
        mime: of a file that may be sent as it is; None if it must be decoded.
        seconds: estimated CPU time of the decoder at most, on a slow core.
        buffers: bytes that the decoder holds besides the pixels that it returns.
    """

    data: bytes
    size: tuple[int, int]
    orientation: int = 1
    profile: bytes | None = None
    mime: str | None = None
    seconds: float = 0.0
    buffers: int = 0


def broken(name: str, reason: str) -> RowError:
    """The error for a file that no decoder should get."""
    return RowError(
        Kind.IMAGE_BROKEN,
        f"the {name} file is corrupted or of an unsupported kind ({reason}); replace it",
    )


def exif_orientation(block: bytes) -> int:
    """The orientation in an EXIF block, which is a small TIFF file; 1 if it is unreadable.

    A photo with an unreadable block is still a good photo, and viewers show it as it is stored.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, _MAX_EXIF_TAGS), 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def xmp_orientation(block: bytes) -> int:
    """The orientation in an XMP packet; 1 if there is none."""
    found = _XMP_ORIENTATION.search(block)
    return int(found[1]) if found else 1
