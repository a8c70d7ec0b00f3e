"""Embedded colour profiles (Display P3, Adobe RGB, CMYK, ...) -> sRGB."""

import io
from functools import cache, lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageChops, ImageCms

_MAX_DIFFERENCE = 6
"""Of 255: a profile counts as sRGB if no colour differs by more. Those of Display P3 do by 40."""

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(pixels: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert RGB or CMYK pixels from the colours of a profile; CMYK ones always become RGB.

    Without a profile, or with a damaged one or one for other pixels, they are taken for sRGB, as
    viewers do.
    """
    if profile is not None and pixels.mode in ("RGB", "CMYK"):
        transform = _transform(profile, pixels.mode)
        if transform is not None:
            return transform.apply(pixels)
    return pixels.convert("RGB") if pixels.mode == "CMYK" else pixels


def is_srgb(profile: bytes | None) -> bool:
    """Whether RGB pixels with this profile may be taken for sRGB."""
    return profile is None or _transform(profile, "RGB") is None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None if there is none, or nothing to transform."""
    if b"mpet" in profile:  # chains of calculations without a limit, which no camera writes
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != mode:
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", _INTENT, _FLAGS)
        if mode == "RGB":
            change = ImageChops.difference(_all_colours(), transform.apply(_all_colours()))
            if np.asarray(change).max() <= _MAX_DIFFERENCE:
                return None
    except (OSError, ValueError, ImageCms.PyCMSError):  # ValueError: a name that is not ASCII
        return None
    return transform


@cache
def _all_colours() -> Image.Image:
    """Colours from all parts of the RGB cube."""
    values = bytes(value for colour in product(range(0, 256, 51), repeat=3) for value in colour)
    return Image.frombytes("RGB", (len(values) // 3, 1), values)
