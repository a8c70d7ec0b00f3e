"""The structure of a PNG file: its chunks."""

import binascii
import re
import struct
import zlib
from dataclasses import dataclass

from .structure import (
    MAX_PROFILE_BYTES,
    Structure,
    broken,
    exif_orientation,
    xmp_orientation,
)

_MAX_CHUNKS = 100_000
"""Encoders write the pixels in chunks of 8 kB and more: 64 MB in 8,000."""

_MAX_PLAIN_CHUNKS = 1000
_MAX_PLAIN_METADATA = 64 * 1024
"""Of a file that may be sent as it is; bytes."""

_NEEDED = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))

_READ = frozenset((b"iCCP", b"eXIf", b"iTXt", b"tEXt"))

_CHUNKS_TO_DECODE = frozenset((b"tRNS", b"acTL", b"eXIf", b"iTXt", b"zTXt"))
"""Chunks that change the picture (transparency, frames, orientation) or are compressed text."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 3, 6: 4}
"""Number of values of a pixel, by colour type; of grey with transparency, which becomes RGBA, one
more than there are."""

_RAW_EXIF = re.compile(rb"Raw profile type (?:exif|APP1)\0\0?\s*\S{1,20}\s+\d{1,9}\s")
_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_png(data: bytes) -> Structure:
    """Read the structure of a PNG file.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise broken("PNG", "it does not start with its header")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    kept: list[tuple[int, int]] = []
    pixels: list[tuple[int, int]] = []
    metadata = _Metadata()
    kinds: set[bytes] = set()
    position, chunks = 8, 0
    while chunks < _MAX_CHUNKS:
        if position + 12 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        kinds.add(kind)
        if kind == b"IDAT":
            pixels.append((position + 8, end - 4))
        elif kind in _NEEDED:
            kept.append((position, end))
        elif kind in _READ:
            metadata.read(kind, data, position + 8, end - 4)
        if kind == b"IEND":
            break
        position, chunks = end, chunks + 1
    else:
        raise broken("PNG", f"over {_MAX_CHUNKS:,} chunks")
    is_plain = (
        depth == 8
        and colour_type in (0, 2)
        and metadata.is_plain
        and {b"IDAT", b"IEND"} <= kinds
        and not kinds & _CHUNKS_TO_DECODE
        and chunks <= _MAX_PLAIN_CHUNKS
        and len(data) - sum(end - start for start, end in pixels) <= _MAX_PLAIN_METADATA
    )
    return Structure(
        data=data if is_plain else _rebuilt(data, kept, pixels),
        size=(width, height),
        orientation=metadata.orientation,
        profile=metadata.profile,
        mime="image/png" if is_plain else None,
        seconds=7.5e-9 * width * height * _CHANNELS.get(colour_type, 4) * depth / 8
        + 10e-9 * len(data),
    )


def _rebuilt(data: bytes, kept: list[tuple[int, int]], pixels: list[tuple[int, int]]) -> bytes:
    """The file with one chunk of pixels, and without what is not needed to decode them."""
    body = b"IDAT" + b"".join(data[start:end] for start, end in pixels)
    idat = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    before = (data[start:end] for start, end in kept if data[start + 4 : start + 8] != b"IEND")
    return b"".join((data[:8], *before, idat, _END))


@dataclass(slots=True)
class _Metadata:
    """What the chunks say that are read here and not by the decoder.

    Attributes:
        orientation: 1 to 8.
        profile: the colour profile.
        is_plain: whether nothing found asks for decoding the file.
    """

    orientation: int = 1
    profile: bytes | None = None
    is_plain: bool = True

    def read(self, kind: bytes, data: bytes, start: int, end: int) -> None:
        """Read one chunk; of long ones only the beginning."""
        body = data[start : min(end, start + MAX_PROFILE_BYTES)]
        if kind == b"iCCP":
            self.profile = _unpacked(body[body.find(b"\0") + 2 :])
        elif kind == b"eXIf":
            self.orientation = exif_orientation(body)
        elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
            if self.orientation == 1:
                self.orientation = xmp_orientation(body)
        elif kind == b"tEXt" and body.startswith(b"Raw profile"):  # written by ImageMagick
            self.is_plain = False
            self._read_raw_profile(body)

    def _read_raw_profile(self, body: bytes) -> None:
        found = _RAW_EXIF.match(body)
        digits = b"".join(body[found.end() :].split()) if found else b""
        try:
            self.orientation = exif_orientation(binascii.unhexlify(digits))
        except binascii.Error:
            return


def _unpacked(packed: bytes) -> bytes | None:
    """The colour profile; None if it is too large or damaged, which leaves a good picture."""
    try:
        profile = zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if len(profile) < MAX_PROFILE_BYTES else None
