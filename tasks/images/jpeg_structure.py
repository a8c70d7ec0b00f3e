"""The structure of a JPEG file: its segments up to the first scan, and the number of scans."""

import re
from dataclasses import dataclass, field

from .structure import (
    MAX_PROFILE_BYTES,
    Structure,
    broken,
    exif_orientation,
    xmp_orientation,
)

_MAX_STEPS = 20_000
"""Segments, and bytes between them, before the first scan; and segments after it. Long profiles
and extended XMP take hundreds."""

_MAX_TABLE_BYTES = 2**20
"""Segments that the decoder needs; files have a few kilobytes of them."""

_MAX_SCANS = 100
"""Scans of a progressive file; encoders write about 10."""

_MAX_TRAILER = 1024
"""Some cameras append a few bytes after the end marker."""

_FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive, with Huffman codes; arithmetic codes are slow and unused."""
_OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END = 0xDA, 0xD9
_NEEDED = {0xDB, 0xC4, 0xDD, 0xE0, 0xEE} | _FRAMES
"""Tables, restart interval, JFIF, Adobe (colour transform) and frame: what the decoder needs."""
_KNOWN = _NEEDED | {*range(0xE0, 0xF0), 0xFE}
"""Decoders differ in what they make of others, so a file with them is not sent as it is."""
_REFUSED = _OTHER_FRAMES | {0x01, *range(0xD0, 0xDA)}
"""Also markers without a length, in which a decoder looks for the next one."""
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""Ends the data of a scan; restart markers are part of it."""


@dataclass(slots=True)
class _Header:
    """What the segments before the first scan say.

    Attributes:
        kept: position and end of the segments that the decoder needs.
        frame: position of the frame's segment; 0 before it was found.
        is_progressive: by the frame.
        is_plain: whether all decoders find the same segments.
        has_exif: whether there is an EXIF block; only the first counts.
        orientation: by EXIF, if it says so.
        xmp: the orientation by XMP.
        profile: parts of the colour profile by their number, each with the count of all.
    """

    kept: list[tuple[int, int]] = field(default_factory=list)
    frame: int = 0
    is_progressive: bool = False
    is_plain: bool = True
    has_exif: bool = False
    orientation: int | None = None
    xmp: int = 1
    profile: dict[int, tuple[int, bytes]] = field(default_factory=dict)


def read_jpeg(data: bytes) -> Structure:
    """Read the structure of a JPEG file.

    Raises:
        RowError: IMAGE_BROKEN: it is damaged, or its structure would take too long to decode.
    """
    header = _Header()
    try:
        scan = _read_header(data, header)
        components = data[header.frame + 9]
        scan_components = data[scan + 4]
    except IndexError:
        raise broken("JPEG", "it ends before its first scan") from None
    frame = header.frame
    if not frame or data[frame + 4] != 8 or components not in (1, 3, 4):
        raise broken("JPEG", "no frame of 8 bits with 1, 3 or 4 components")
    height = data[frame + 5] << 8 | data[frame + 6]
    width = data[frame + 7] << 8 | data[frame + 8]
    orientation = header.xmp if header.orientation is None else header.orientation
    seconds, coefficients = 5e-9 * width * height + 10e-9 * len(data), 0
    end = len(data)
    if header.is_progressive or scan_components < components:
        scans, end = _count_scans(data, scan)
        samples = _samples(data, frame, components, width * height)
        seconds = 0.6e-9 * samples * scans + 35e-9 * (end - scan)
        coefficients = 2 * samples
    view = memoryview(data)
    parts = view[:2], *(view[start:stop] for start, stop in header.kept), view[scan:end]
    is_ended = data.rfind(b"\xff\xd9", max(scan, len(data) - _MAX_TRAILER)) != -1
    # A file with more than a few bytes after its end marker (a video, say) or without one is
    # decoded, which shows whether it is truncated. A thumbnail in the header has one too.
    is_plain = header.is_plain and components != 4 and orientation == 1 and is_ended
    return Structure(
        parts=parts,
        size=(width, height),
        orientation=orientation,
        profile=_joined(header.profile),
        mime="image/jpeg" if is_plain else None,
        seconds=seconds,
        buffers=coefficients,
        is_converted=False,
    )


def _read_header(data: bytes, header: _Header) -> int:
    """Collect what the segments say; returns the position of the first scan."""
    position, tables = 2, 0
    for _ in range(_MAX_STEPS):
        code = data[position + 1]
        if data[position] != 0xFF or code in (0x00, 0xFF):
            position += 1
            continue
        if code == _START_OF_SCAN:
            return position
        length = data[position + 2] << 8 | data[position + 3]
        end = position + 2 + length
        if length < 2 or code in _REFUSED or (code in _FRAMES and header.frame):
            raise broken("JPEG", f"a segment of type {code:02X} before its first scan")
        header.is_plain &= code in _KNOWN
        if code in _NEEDED:
            tables += length
            if tables > _MAX_TABLE_BYTES:
                raise broken("JPEG", f"over {_MAX_TABLE_BYTES:,} bytes of tables")
            header.kept.append((position, end))
            if code in _FRAMES:
                header.frame, header.is_progressive = position, code == 0xC2
        elif code == 0xE1:
            _read_orientation(data, position + 4, end, header)
        elif code == 0xE2 and data.startswith(b"ICC_PROFILE\0", position + 4):
            number, count = data[position + 16], data[position + 17]
            header.profile[number] = count, data[position + 18 : end]
        position = end
    raise broken("JPEG", f"over {_MAX_STEPS:,} segments before its first scan")


def _read_orientation(data: bytes, start: int, end: int, header: _Header) -> None:
    if data.startswith(b"Exif\0\0", start):
        if not header.has_exif:
            header.has_exif = True
            header.orientation = exif_orientation(data[start:end])
    elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
        header.xmp = xmp_orientation(data[start:end])


def _count_scans(data: bytes, position: int) -> tuple[int, int]:
    """Number of scans, and where the last one ends; what follows the end marker is not looked at.

    Args:
        data: the file.
        position: of the first scan.
    """
    scans = tables = 0
    for _ in range(_MAX_STEPS):
        found = _MARKER.search(data, position)
        if found is None or found[0][1] == _END or found.end() + 2 > len(data):
            end = found.end() if found else len(data)
            break
        length = data[found.end()] << 8 | data[found.end() + 1]
        position = found.end() + length
        if found[0][1] == _START_OF_SCAN:
            scans += 1
        else:
            tables += length
    else:
        raise broken("JPEG", f"over {_MAX_STEPS:,} segments after its first scan")
    if scans > _MAX_SCANS:
        raise broken("JPEG", f"{scans:,} scans, more than {_MAX_SCANS}")
    if tables > _MAX_TABLE_BYTES:
        raise broken("JPEG", f"over {_MAX_TABLE_BYTES:,} bytes of tables between its scans")
    return scans, end


def _joined(parts: dict[int, tuple[int, bytes]]) -> bytes | None:
    """The colour profile; None if parts are missing, as Pillow sees it."""
    if not parts or any(count != len(parts) for count, _ in parts.values()):
        return None
    profile = b"".join(part for _, (_, part) in sorted(parts.items()))
    return profile if len(profile) <= MAX_PROFILE_BYTES else None


def _samples(data: bytes, frame: int, components: int, pixels: int) -> int:
    """Number of values of all components, which may be subsampled."""
    factors = [data[frame + 11 + 3 * number] for number in range(components)]
    across, down = [factor >> 4 for factor in factors], [factor & 15 for factor in factors]
    if not all((*across, *down)):
        raise broken("JPEG", "a sampling factor of 0")
    parts = sum(h * v for h, v in zip(across, down, strict=True))
    return pixels * parts // (max(across) * max(down))
