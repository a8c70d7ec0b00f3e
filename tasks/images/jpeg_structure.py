"""The structure of a JPEG file: its segments up to the first scan, and the number of scans."""

from dataclasses import dataclass, field

from .structure import (
    MAX_PROFILE_BYTES,
    Structure,
    broken,
    exif_orientation,
    xmp_orientation,
)

_MAX_STEPS = 20_000
"""Segments, and bytes between them, before the first scan. Long profiles and extended XMP take
hundreds."""

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


@dataclass(slots=True)
class _Header:
    """What the segments before the first scan say.

    Attributes:
        kept: position and end of the segments that the decoder needs.
        frame: position of the frame's segment; 0 before it was found.
        is_progressive: by the frame.
        orientation: by EXIF, or else by XMP.
        profile: parts of the colour profile by their number, each with the count of all.
    """

    kept: list[tuple[int, int]] = field(default_factory=list)
    frame: int = 0
    is_progressive: bool = False
    orientation: int = 1
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
    seconds, coefficients = 5e-9 * width * height + 10e-9 * len(data), 0
    if header.is_progressive or scan_components < components:
        scans = data.count(b"\xff\xda", scan)
        if scans > _MAX_SCANS:
            raise broken("JPEG", f"{scans:,} scans, more than {_MAX_SCANS}")
        samples = _samples(data, frame, components, width * height)
        seconds = 0.6e-9 * samples * scans + 35e-9 * len(data)
        coefficients = 2 * samples
    end = data.rfind(b"\xff\xd9", max(scan, len(data) - _MAX_TRAILER))
    # A file with more than a few bytes after its end marker (a video, say) or without one is
    # decoded, which shows whether it is truncated. A thumbnail in the header has one too.
    is_plain = components != 4 and header.orientation == 1 and end != -1
    return Structure(
        data=b"".join((data[:2], *(data[start:end] for start, end in header.kept), data[scan:])),
        size=(width, height),
        orientation=header.orientation,
        profile=_joined(header.profile),
        mime="image/jpeg" if is_plain else None,
        seconds=seconds,
        buffers=coefficients,
    )


def _read_header(data: bytes, header: _Header) -> int:
    """Collect what the segments say; returns the position of the first scan."""
    position, xmp = 2, b""
    for _ in range(_MAX_STEPS):
        code = data[position + 1]
        if data[position] != 0xFF or code in (0x00, 0xFF):
            position += 1
            continue
        if code == _START_OF_SCAN:
            if header.orientation == 1 and xmp:
                header.orientation = xmp_orientation(xmp)
            return position
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if code == _END or code in _OTHER_FRAMES or (code in _FRAMES and header.frame):
            raise broken("JPEG", f"a segment of type {code:02X} before its first scan")
        if code in _NEEDED:
            header.kept.append((position, end))
            if code in _FRAMES:
                header.frame, header.is_progressive = position, code == 0xC2
        elif code == 0xE1:
            if data.startswith(b"Exif\0\0", position + 4):
                header.orientation = exif_orientation(data[position + 4 : end])
            elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", position + 4):
                xmp = data[position + 4 : end]
        elif code == 0xE2 and data.startswith(b"ICC_PROFILE\0", position + 4):
            number, count = data[position + 16], data[position + 17]
            header.profile[number] = count, data[position + 18 : end]
        position = end
    raise broken("JPEG", f"over {_MAX_STEPS:,} segments before its first scan")


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
