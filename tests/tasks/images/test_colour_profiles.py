import io
import struct
import zlib

import pytest
from PIL import Image, ImageCms
from prefect_imageqa.tasks.images.colour_profiles import is_srgb, to_srgb
from prefect_imageqa.tasks.images.prepare import ImageSettings, prepare_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3() -> bytes:
    """sRGB's profile with the primary colours of Display P3, adapted to D50."""
    profile = bytearray(SRGB)
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    (count,) = struct.unpack_from(">I", profile, 128)
    for entry in range(132, 132 + 12 * count, 12):
        name, offset, _ = struct.unpack_from(">4sII", profile, entry)
        if name in primaries:
            values = [round(value * 65536) for value in primaries[name]]
            struct.pack_into(">3i", profile, offset + 8, *values)
    return bytes(profile)


P3 = display_p3()
SRGB_RED_IN_P3 = (234, 51, 35)


def encoded(kind: str, mode: str = "RGB", profile: bytes = P3) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", (64, 64), SRGB_RED_IN_P3)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(file, kind, icc_profile=profile, **({"quality": 95} if kind != "PNG" else {}))
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("AVIF", "RGB"),
    ],
)
def test_colours_of_display_p3_are_converted(kind: str, mode: str) -> None:
    prepared = prepare_image(encoded(kind, mode), ImageSettings())
    with Image.open(io.BytesIO(prepared.data)) as image:
        assert "icc_profile" not in image.info
        found = image.convert("RGB").getpixel((32, 32))
    assert isinstance(found, tuple)
    assert all(abs(a - b) <= 6 for a, b in zip(found, (255, 0, 0), strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_with_the_profile_of_srgb_is_sent_as_it_is(kind: str) -> None:
    data = encoded(kind, profile=SRGB)
    assert prepare_image(data, ImageSettings()).data == data


@pytest.mark.parametrize(
    "profile",
    [
        None,
        b"",
        b"garbage" * 50,
        P3[:200],
        SRGB,
        P3.replace(b"RGB ", b"GRAY", 1),
        P3.replace(b"RGB ", b"RG\x9b ", 1),
        P3 + b"mpet",
    ],
    ids=["none", "empty", "garbage", "truncated", "srgb", "grey", "not-ascii", "calculations"],
)
def test_without_a_usable_profile_pixels_are_taken_for_srgb(profile: bytes | None) -> None:
    pixels = Image.new("RGB", (4, 4), SRGB_RED_IN_P3)
    assert is_srgb(profile)
    assert to_srgb(pixels, profile).getpixel((0, 0)) == SRGB_RED_IN_P3
    assert to_srgb(Image.new("CMYK", (4, 4)), profile).getpixel((0, 0)) == (255, 255, 255)
    assert to_srgb(Image.new("L", (4, 4), 7), profile).getpixel((0, 0)) == 7


def test_a_packed_profile_of_a_png_file_is_read_within_limits() -> None:
    data = encoded("PNG")
    at = data.index(b"iCCP")
    assert P3 in zlib.decompressobj().decompress(data[at + 4 + len("ICC Profile") + 2 :])
    assert prepare_image(data, ImageSettings()).data != data
