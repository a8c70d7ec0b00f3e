"""What the headers of an image file say, read before a decoder is trusted with it.

Files are untrusted. A decoder's work is bounded by the pixels of an image, but not by that alone:
thousands of passes over them, millions of empty segments, or text and profiles that unpack to
gigabytes cost minutes in a file of a few kilobytes. So each format's structure is walked first, in
bounded work, and what the decoder does not need is left out.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..records import Kind, RowError

MAX_PROFILE_BYTES = 4 * 2**20
"""Larger colour profiles are ignored; those of printers have up to about 3 MB."""

_MAX_EXIF_TAGS = 1000


@dataclass(frozen=True, slots=True)
class Structure:
    """An image file before it is decoded.

    Attributes:
        parts: the file for the decoder in parts, without metadata; they are joined only if it is
            decoded.
        size: declared width and height, before rotation.
        orientation: as in EXIF, 1 (upright) to 8.
        profile: the embedded colour profile, if there is one.
        mime: of a file that may be sent as it is; None if it must be decoded.
        seconds: estimated CPU time of the decoder at most, on a slow core.
        buffers: bytes that the decoder holds besides the pixels that it returns, until then.
        is_converted: whether the pixels may need another mode than the decoder returns.
    """

    parts: Sequence[bytes | memoryview]
    size: tuple[int, int]
    orientation: int = 1
    profile: bytes | None = None
    mime: str | None = None
    seconds: float = 0.0
    buffers: int = 0
    is_converted: bool = True

    @property
    def length(self) -> int:
        """Bytes of the file for the decoder."""
        return sum(map(len, self.parts))

    def joined(self) -> bytes:
        """The file for the decoder."""
        return b"".join(self.parts)


def broken(name: str, reason: str) -> RowError:
    """The error for a file that no decoder should get."""
    return RowError(
        Kind.IMAGE_BROKEN,
        f"the {name} file is corrupted or of an unsupported kind ({reason}); replace it",
    )


def exif_orientation(block: bytes) -> int | None:
    """The orientation in an EXIF block, which is a small TIFF file; None if it has none.

    A photo with an unreadable block is still a good photo, and viewers show it as it is stored.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, _MAX_EXIF_TAGS), 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == 0x0112:
                code = {3: "H", 4: "I"}.get(kind, "x")
                value = struct.unpack_from(f"{order}{code}", block, entry + 8)
                return value[0] if value and 1 <= value[0] <= 8 else 1
    except struct.error:
        pass
    return None


_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def xmp_orientation(block: bytes) -> int:
    """The orientation in an XMP packet; 1 if there is none."""
    found = _XMP_ORIENTATION.search(block)
    return int(found[1]) if found else 1
