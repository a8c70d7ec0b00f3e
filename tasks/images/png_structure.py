"""The structure of a PNG file: its chunks."""

import binascii
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

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

_SINGLE = frozenset((b"IHDR", b"PLTE"))
"""Decoders differ in which of two they take."""

_READ = frozenset((b"iCCP", b"eXIf", b"iTXt", b"tEXt", b"zTXt"))

_CHUNKS_TO_DECODE = frozenset((b"tRNS", b"acTL", b"eXIf", b"iTXt", b"zTXt"))
"""Chunks that change the picture (transparency, frames, orientation) or are compressed text."""

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 3, 6: 4}
"""Number of values of a pixel, by colour type; of grey with transparency, which becomes RGBA, one
more than there are."""

_MAX_TEXT_BYTES = 2**20
"""Of an EXIF block in hexadecimal digits (128 kB), or of XMP, when unpacked."""

_RAW_PROFILE = re.compile(rb"Raw profile type (?:exif|APP1)\0")
_RAW_EXIF = re.compile(rb"\s*\S{1,20}\s+\d{1,9}\s")
_END = b"\0\0\0\0IEND\xaeB`\x82"


def read_png(data: bytes) -> Structure:
    """Read the structure of a PNG file.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
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
        if kind in _SINGLE and kind in kinds:
            raise broken("PNG", f"two chunks of type {kind.decode()}")
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
        parts=(data,) if is_plain else _rebuilt(data, kept, pixels),
        size=(width, height),
        orientation=metadata.orientation,
        profile=metadata.profile,
        mime="image/png" if is_plain else None,
        seconds=7.5e-9 * width * height * _CHANNELS.get(colour_type, 4) * depth / 8
        + 10e-9 * len(data),
    )


def _rebuilt(
    data: bytes, kept: list[tuple[int, int]], pixels: list[tuple[int, int]]
) -> Sequence[bytes | memoryview]:
    """The file with one chunk of pixels, and without what is not needed to decode them."""
    view = memoryview(data)
    before = (view[start:end] for start, end in kept if data[start + 4 : start + 8] != b"IEND")
    body = [view[start:end] for start, end in pixels]
    length = struct.pack(">I4s", sum(map(len, body)), b"IDAT")
    checksum = zlib.crc32(b"IDAT")
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return view[:8], *before, length, *body, struct.pack(">I", checksum), _END


@dataclass(slots=True)
class _Metadata:
    """What the chunks say that are read here and not by the decoder.

    Only the first of each kind is read: unpacking thousands would take long.

    Attributes:
        profile: the colour profile.
        is_plain: whether nothing found asks for decoding the file.
    """

    profile: bytes | None = None
    is_plain: bool = True
    _orientations: dict[str, int | None] = field(default_factory=dict)
    _has_profile: bool = False

    @property
    def orientation(self) -> int:
        """By EXIF, as a chunk or in text, or else by XMP; 1 (upright) to 8."""
        found = map(self._orientations.get, ("eXIf", "raw", "XMP"))
        return next((value for value in found if value is not None), 1)

    def read(self, kind: bytes, data: bytes, start: int, end: int) -> None:
        """Read one chunk; of long ones only the beginning."""
        body = data[start : min(end, start + MAX_PROFILE_BYTES)]
        if kind == b"iCCP" and not self._has_profile:
            self._has_profile = True
            self.profile = _unpacked(body[body.find(b"\0") + 2 :], MAX_PROFILE_BYTES)
        elif kind == b"eXIf" and "eXIf" not in self._orientations:
            self._orientations["eXIf"] = exif_orientation(body)
        elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
            if "XMP" not in self._orientations:
                self._orientations["XMP"] = xmp_orientation(_international_text(body))
        elif kind in (b"tEXt", b"zTXt") and (found := _RAW_PROFILE.match(body)):  # of ImageMagick
            self.is_plain = False
            if "raw" not in self._orientations:
                text = body[found.end() :]
                unpacked = text if kind == b"tEXt" else _unpacked(text[1:], _MAX_TEXT_BYTES)
                self._orientations["raw"] = _raw_orientation(unpacked or b"")


def _international_text(body: bytes) -> bytes:
    """The text of an iTXt chunk, with its keyword if it is not packed."""
    _, _, rest = body.partition(b"\0")
    if rest[:1] != b"\1":
        return body
    packed = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    return _unpacked(packed, _MAX_TEXT_BYTES) or b""


def _raw_orientation(text: bytes) -> int | None:
    """The orientation in an EXIF block as hexadecimal digits, after its kind and its length."""
    found = _RAW_EXIF.match(text)
    digits = b"".join(text[found.end() :].split()) if found else b""
    try:
        return exif_orientation(binascii.unhexlify(digits))
    except binascii.Error:
        return None


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """What was packed; None if it is too large or damaged, which leaves a good picture."""
    try:
        unpacked = zlib.decompressobj().decompress(packed, limit)
    except zlib.error:
        return None
    return unpacked if len(unpacked) < limit else None
