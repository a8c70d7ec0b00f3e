"""The structure of WebP, GIF, BMP, PPM and AVIF files, as far as it bounds their decoders' work."""

import re
import struct

from .structure import MAX_PROFILE_BYTES, Structure, broken, exif_orientation, xmp_orientation

_MAX_CHUNKS = 1000
"""Chunks of a WebP file, or of an animation up to its first frame."""

_MAX_FRAMES = 20_000
"""Chunks of a WebP animation that are passed over to find EXIF and XMP after its frames."""

_MAX_BLOCKS = 100_000
"""Blocks of at most 255 bytes before the first frame of a GIF file."""


def read_webp(data: bytes) -> Structure:
    """Read the structure of a WebP file; of an animation only its first frame is kept.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    position, size, profile, after_frame = 12, None, None, 0
    orientations: dict[bytes, int | None] = {}
    for number in range(_MAX_FRAMES):
        if position + 8 > len(data):
            break
        if number >= _MAX_CHUNKS and not after_frame:
            raise broken("WebP", f"over {_MAX_CHUNKS:,} chunks")
        kind, length = struct.unpack_from("<4sI", data, position)
        body, end = position + 8, position + 8 + length + (length & 1)
        if size is None:
            size = _webp_size(kind, data[body : body + 10])
        if kind == b"ICCP" and length <= MAX_PROFILE_BYTES and not after_frame:
            profile = data[body : body + length]
        elif kind == b"EXIF" and kind not in orientations:
            orientations[kind] = exif_orientation(data[body : body + length])
        elif kind == b"XMP " and kind not in orientations:
            orientations[kind] = xmp_orientation(data[body : body + length])
        elif kind == b"ANMF" and not after_frame:
            after_frame = end
        position = end
    if size is None:
        raise broken("WebP", "it declares no size")
    pixels = size[0] * size[1]
    parts: tuple[bytes | memoryview, ...] = (data,)
    if after_frame:
        frames = memoryview(data)[12:after_frame]
        parts = b"RIFF" + struct.pack("<I", len(frames) + 4) + b"WEBP", frames
    found = map(orientations.get, (b"EXIF", b"XMP "))
    return Structure(
        parts=parts,
        size=size,
        orientation=next((value for value in found if value is not None), 1),
        profile=profile,
        seconds=20e-9 * pixels + 27e-9 * sum(map(len, parts)),
        buffers=12 * pixels,  # two canvases, and a copy in Python
        is_converted=False,
    )


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """The canvas or picture size that a chunk declares."""
    if kind == b"VP8X" and len(body) == 10:
        return (
            int.from_bytes(body[4:7], "little") + 1,
            int.from_bytes(body[7:10], "little") + 1,
        )
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and body[:1] == b"\x2f":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def read_gif(data: bytes) -> Structure:
    """Read the structure of a GIF file up to its first frame, without comments.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        head = position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        control = b""
        blocks = 0
        while (kind := data[position]) != ord(","):
            if blocks >= _MAX_BLOCKS:
                raise broken("GIF", f"over {_MAX_BLOCKS:,} blocks before its first frame")
            if kind == ord(";"):
                raise broken("GIF", "it has no frame")
            start, position, blocks = position, position + 1, blocks + 1
            if kind != ord("!"):  # a stray byte, which viewers skip
                continue
            position += 1
            while (length := data[position]) and blocks < _MAX_BLOCKS:
                position, blocks = position + 1 + length, blocks + 1
            position += 1
            if data[start + 1] == 0xF9:
                control = data[start:position]
        left, top, across, down = struct.unpack_from("<HHHH", data, position + 1)
    except (IndexError, struct.error):
        raise broken("GIF", "it ends before its first frame") from None
    # Pillow enlarges the canvas to a frame that reaches beyond it.
    size = max(width, left + across), max(height, top + down)
    view = memoryview(data)
    parts = view[:head], control, view[position:]
    return Structure(parts, size, seconds=10e-9 * size[0] * size[1])


def read_bmp(data: bytes) -> Structure:
    """Read the structure of a BMP file.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    try:
        (header,) = struct.unpack_from("<I", data, 14)
        if header == 12:
            width, height = struct.unpack_from("<HH", data, 18)
            compression = 0
        else:
            width, height, _, compression = struct.unpack_from("<iiII", data, 18)
    except struct.error:
        raise broken("BMP", "it ends in its header") from None
    width, height = abs(width), abs(height)
    # Pillow decodes run-length codes in Python.
    seconds = 150e-9 * width * height + 500e-9 * len(data) if compression in (1, 2) else 0.0
    return Structure((data,), (width, height), seconds=seconds)


_SPACE = rb"(?:[ \t\r\n\x0b\x0c]|#[^\r\n]{0,4096}[\r\n])++"
_PPM_HEADER = re.compile(
    rb"P([456])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})(?:[ \t\r\n\x0b\x0c]|(?=#))"
)
_PPM_MAXIMUM = re.compile(rb"(?:" + _SPACE + rb")?(\d{1,5})[ \t\r\n\x0b\x0c]")
_MAX_PPM_HEADER = 8192


def read_ppm(data: bytes) -> Structure:
    """Read the header of a PBM, PGM or PPM file.

    Only values up to 255 or (grey) 65,535 are decoded fast. Grey ones with another maximum above
    255 are read as if it were 65,535, since they are scaled to what they hold anyway.

    Raises:
        RowError: IMAGE_BROKEN.
    """
    head = data[:_MAX_PPM_HEADER]
    found = _PPM_HEADER.match(head)
    if found is None:
        raise broken("PPM", "its header cannot be read")
    kind, size, end = found[1], (int(found[2]), int(found[3])), found.end()
    header = b"P%b\n%d %d\n" % (kind, *size)
    if kind != b"4":
        maximum = _PPM_MAXIMUM.match(head, end)
        if maximum is None:
            raise broken("PPM", "its header has no maximum value")
        highest, end = int(maximum[1]), maximum.end()
        if kind == b"5" and 255 < highest <= 65535:
            highest = 65535
        elif highest != 255:
            raise broken("PPM", f"the maximum value {highest}; convert it to PNG")
        header += b"%d\n" % highest
    return Structure((header, memoryview(data)[end:]), size)


_AVIF_SIZE = re.compile(rb"ispe\0\0\0\0(.{4})(.{4})", re.DOTALL)
_MAX_AVIF_SIZES = 10_000


def read_avif(data: bytes) -> Structure:
    """Read the largest size that an AVIF file declares.

    The frames inside may be larger than that; so it is decoded in a process of its own, with
    limits (see `avif_process`).

    Raises:
        RowError: IMAGE_BROKEN.
    """
    sizes = [
        (int.from_bytes(found[1]), int.from_bytes(found[2]))
        for found, _ in zip(_AVIF_SIZE.finditer(data), range(_MAX_AVIF_SIZES), strict=False)
    ]
    if not sizes:
        raise broken("AVIF", "it declares no size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Structure((data,), (width, height), buffers=12 * width * height, is_converted=False)
