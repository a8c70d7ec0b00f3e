"""The structure of a TIFF file: the tags of its first directory."""

import struct
from collections.abc import Sequence

from .structure import Structure, broken

_MAX_TAGS = 1000
_MAX_VALUES = 200_000
"""Values of one tag; a palette of 16 bits has 196,608."""

_MAX_PARTS = 65_536
"""Strips or tiles."""

_MAX_SCANS = 100
"""Scans of a part that is a JPEG file."""

_MAX_SHARED_BYTES = 2**16
"""Sums of the parts' lengths beyond twice the file's: some programs write lengths too large."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_ORIENTATION, _PLANES = 274, 284
_STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 273, 278, 322, 323, 324
_STRIP_BYTES, _TILE_BYTES = 279, 325
_SINGLE = {*range(256, 260), 273, 274, 277, 278, 279, 284, *range(322, 326)}
"""Decoders differ in which of two they take."""

_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 50000}
"""None, CCITT, LZW, JPEG, deflate, PackBits and Zstandard. Others are rare, slow or both."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value, by its type."""

_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTES = {1, 2, 6, 7}


def read_tiff(data: bytes) -> Structure:
    """Read the structure of a TIFF or BigTIFF file.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    try:
        tags = _Directory(data)
    except struct.error:
        raise broken("TIFF", "its directory lies outside of the file") from None
    width, height = tags.value(_WIDTH), tags.value(_HEIGHT)
    compression = tags.value(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise broken("TIFF", f"compression {compression}")
    samples = tags.value(_SAMPLES, 1)
    bits = tags.value(_BITS, 1)
    if not 1 <= samples <= 16 or not 1 <= bits <= 64:
        raise broken("TIFF", f"{samples} values of {bits} bits a pixel")
    is_tiled = tags.count(_TILES) > 0
    part_width = tags.value(_TILE_WIDTH) if is_tiled else width
    part_height = tags.value(_TILE_HEIGHT) if is_tiled else min(tags.value(_ROWS, height), height)
    if not (width and height and part_width and part_height):
        raise broken("TIFF", "a width or height of 0")
    needed = -(-width // part_width) * -(-height // part_height)
    parts = tags.count(_TILES if is_tiled else _STRIPS)
    if tags.value(_PLANES, 1) == 2:
        needed *= samples
    # More parts than needed would be decoded over and over again.
    if not needed <= parts <= _MAX_PARTS or (compression == 1 and parts > needed):
        raise broken("TIFF", f"{parts:,} strips or tiles instead of {needed:,}")
    pixels = part_width * part_height
    # A tile at the edge reaches beyond it; but tiles much larger than the image are an attack.
    if is_tiled and pixels > max(4 * width * height, 1024 * 1024):
        raise broken("TIFF", f"tiles of {part_width:,} x {part_height:,} pixels")
    lengths = tags.values(_TILE_BYTES if is_tiled else _STRIP_BYTES)
    # Each part is copied, and its bits may be turned; parts that share their bytes are an attack.
    if parts > 1 and sum(lengths) > 2 * len(data) + _MAX_SHARED_BYTES:
        raise broken("TIFF", "its strips or tiles have more bytes than the file")
    passes = 1
    if compression == 7:
        passes = _most_scans(data, tags.values(_TILES if is_tiled else _STRIPS), lengths)
        if passes > _MAX_SCANS:
            raise broken("TIFF", f"{passes:,} scans in one of its parts")
    upside = tags.value(_ORIENTATION, 1)
    turned = upside in range(5, 9)
    return Structure(
        parts=(data,),
        size=(height, width) if turned else (width, height),
        seconds=5e-9 * passes * needed * pixels * samples * bits / 8 + 20e-9 * len(data),
        buffers=(pixels * samples * bits // 8 if compression != 1 else 0)
        # Pillow turns the image when it has been decoded.
        + (4 * width * height if upside != 1 else 0),
    )


def _most_scans(data: bytes, offsets: Sequence[int], lengths: Sequence[int]) -> int:
    """The most scans of a part that is a JPEG file; without lengths, those of the whole file."""
    if len(lengths) != len(offsets):
        offsets, lengths = (0,), (len(data),)
    parts = zip(offsets, lengths, strict=True)
    return max((data.count(b"\xff\xda", start, start + length) for start, length in parts))


class _Directory:
    """The tags of the first directory.

    Raises:
        struct.error: it lies outside of the file.
        RowError: IMAGE_BROKEN.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._is_big = 43 in data[2:4]
        entry = f"{self._order}HHQ" if self._is_big else f"{self._order}HHI"
        (start,) = self._unpack("Q", 8) if self._is_big else self._unpack("I", 4)
        (count,) = self._unpack("Q" if self._is_big else "H", start)
        if count > _MAX_TAGS:
            raise broken("TIFF", f"{count:,} tags")
        size, position = (20, start + 8) if self._is_big else (12, start + 2)
        self._tags: dict[int, tuple[int, int, int]] = {}
        total = 0
        for at in range(position, position + size * count, size):
            tag, kind, values = struct.unpack_from(entry, data, at)
            if kind not in _BYTES and values > _MAX_VALUES:
                raise broken("TIFF", f"{values:,} values of tag {tag}")
            if tag in _SINGLE and tag in self._tags:
                raise broken("TIFF", f"two tags {tag}")
            total += _SIZES.get(kind, 1) * values
            self._tags.setdefault(tag, (kind, values, at + struct.calcsize(entry)))
        if total > len(data) + size * count:
            raise broken("TIFF", "more values of tags than the file has bytes")

    def _unpack(self, kind: str, position: int) -> Sequence[int]:
        return struct.unpack_from(f"{self._order}{kind}", self._data, position)

    def count(self, tag: int) -> int:
        """Number of values of a tag."""
        return self._tags.get(tag, (0, 0, 0))[1]

    def value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return next(iter(self.values(tag, 1)), default)

    def values(self, tag: int, limit: int = _MAX_VALUES) -> Sequence[int]:
        """The values of a tag, or the first of them."""
        kind, count, position = self._tags.get(tag, (0, 0, 0))
        if not count or kind not in _FORMATS:
            return ()
        if _SIZES[kind] * count > (8 if self._is_big else 4):
            (position,) = self._unpack("Q" if self._is_big else "I", position)
        return self._unpack(f"{min(count, limit)}{_FORMATS[kind]}", position)
