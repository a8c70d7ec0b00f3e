import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prefect_imageqa.tasks.images import prepare
from prefect_imageqa.tasks.images.prepare import ImageSettings, PreparedImage, prepare_image
from prefect_imageqa.tasks.records import Kind, RowError
from pydantic import ValidationError

DEFAULT = ImageSettings()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def _photo(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """A picture with a red left half, a blue right half and a little noise."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    pixels[:, :, 1] = np.random.default_rng(0).integers(0, 16, (height, width))
    return Image.fromarray(pixels).convert(mode)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A hand-made PNG file."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        parts.append(struct.pack(">I", len(body)) + kind + body + checksum)
    return b"".join(parts)


def _header(width: int, height: int, colour_type: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)


def _opened(prepared: PreparedImage) -> Image.Image:
    """Decode the prepared image, checking it against its declared type and size."""
    image = Image.open(io.BytesIO(prepared.data))
    image.load()
    assert Image.MIME[str(image.format)] == prepared.mime
    assert image.size == (prepared.width, prepared.height)
    assert image.mode in ("L", "RGB")
    return image


def _prepared(data: bytes, limits: ImageSettings = DEFAULT) -> Image.Image:
    return _opened(prepare_image(data, limits))


def _is(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    found = image.convert("RGB").getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(a - b) < 40 for a, b in zip(found, colour, strict=True))


def _refused(data: bytes, limits: ImageSettings = DEFAULT) -> RowError:
    with pytest.raises(RowError) as caught:
        prepare_image(data, limits)
    assert "\n" not in str(caught.value)
    return caught.value


UNCHANGED = {
    "jpeg": _encoded(_photo(), "JPEG"),
    "jpeg-progressive": _encoded(_photo(), "JPEG", progressive=True),
    "jpeg-grey": _encoded(_photo(mode="L"), "JPEG"),
    "jpeg-trailing-bytes": _encoded(_photo(), "JPEG") + b"\0" * 100,
    "jpeg-broken-exif": _encoded(_photo(), "JPEG", exif=b"Exif\0\0garbage"),
    "jpeg-largest": _encoded(_photo(1024, 768), "JPEG"),
    "png": _encoded(_photo(), "PNG"),
    "png-grey": _encoded(_photo(mode="L"), "PNG"),
    "png-trailing-bytes": _encoded(_photo(), "PNG") + b"\0" * 100,
}

# Files that must be re-encoded; all are red on the left and blue on the right.
CONVERTED = {
    "webp": _encoded(_photo(), "WEBP"),
    "webp-lossless": _encoded(_photo(), "WEBP", lossless=True),
    "webp-animated": _encoded(
        _photo(), "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))]
    ),
    "gif": _encoded(_photo(), "GIF"),
    "gif-animated": _encoded(
        _photo(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]
    ),
    "apng": _encoded(_photo(), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
    "bmp": _encoded(_photo(), "BMP"),
    "tiff": _encoded(_photo(), "TIFF"),
    "tiff-lzw": _encoded(_photo(), "TIFF", compression="tiff_lzw"),
    "tiff-pages": _encoded(
        _photo(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    ),
    "tiff-cmyk": _encoded(_photo(mode="CMYK"), "TIFF"),
    "avif": _encoded(_photo(), "AVIF"),
    "ppm": _encoded(_photo(), "PPM"),
    "png-palette": _encoded(_photo().quantize(16), "PNG"),
    "png-rgba": _encoded(_photo(mode="RGBA"), "PNG"),
    "jpeg-cmyk": _encoded(_photo(mode="CMYK"), "JPEG"),
    "jpeg-trailing-video": _encoded(_photo(), "JPEG") + b"film" * 1000,
}


@pytest.mark.parametrize("data", UNCHANGED.values(), ids=UNCHANGED.keys())
def test_a_plain_jpeg_or_png_is_passed_through_unchanged(data: bytes) -> None:
    prepared = prepare_image(data, DEFAULT)
    assert prepared.data == data
    _opened(prepared)


@pytest.mark.parametrize("data", CONVERTED.values(), ids=CONVERTED.keys())
def test_other_images_are_converted(data: bytes) -> None:
    prepared = prepare_image(data, DEFAULT)
    image = _opened(prepared)
    assert prepared.data != data
    assert image.size == (64, 48)
    assert _is(image, (16, 24), RED)
    assert _is(image, (48, 24), BLUE)


def test_the_repr_of_an_image_has_none_of_its_bytes() -> None:
    assert len(repr(prepare_image(UNCHANGED["png"], DEFAULT))) < 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image = _prepared(_encoded(_photo(), kind, exif=exif))
    assert image.size == (48, 64)
    assert _is(image, (24, 16), RED)  # the left half is now on top
    assert _is(image, (24, 48), BLUE)
    assert 0x0112 not in image.getexif()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_when_downscaling(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(_photo(200, 100), kind, exif=exif)
    image = _prepared(data, ImageSettings(max_side=50))
    assert image.size == ((50, 25) if orientation < 5 else (25, 50))
    left_or_top = (12, 12)
    right_or_bottom = (image.width - 12, image.height - 12)
    red_first = orientation in (1, 4, 5, 6)
    assert _is(image, left_or_top, RED if red_first else BLUE)
    assert _is(image, right_or_bottom, BLUE if red_first else RED)


def _half_transparent(mode: str) -> Image.Image:
    """A red (or dark) picture whose right half is transparent."""
    image = _photo(mode="RGBA")
    image.paste((255, 0, 0, 255), (0, 0, 64, 48))
    image.paste((0, 0, 0, 0), (32, 0, 64, 48))
    return image.convert(mode)


def _palette_with_transparency() -> bytes:
    image = Image.new("P", (64, 48), 0)
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.paste(1, (32, 0, 64, 48))
    return _encoded(image, "PNG", transparency=1)


TRANSPARENT = {
    "png-rgba": _encoded(_half_transparent("RGBA"), "PNG"),
    "png-la": _encoded(_half_transparent("LA"), "PNG"),
    "png-palette": _palette_with_transparency(),
    "png-rgb-key": _encoded(
        _half_transparent("RGBA").convert("RGB"), "PNG", transparency=(0, 0, 0)
    ),
    "gif": _encoded(_half_transparent("RGBA"), "GIF"),
    "webp": _encoded(_half_transparent("RGBA"), "WEBP"),
    "tiff": _encoded(_half_transparent("RGBA"), "TIFF"),
}


@pytest.mark.parametrize(
    "limits", [DEFAULT, ImageSettings(max_side=32)], ids=["full", "downscaled"]
)
@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_transparent_pixels_become_white(data: bytes, limits: ImageSettings) -> None:
    image = _prepared(data, limits)
    assert _is(image, (image.width * 3 // 4, 10), WHITE)
    assert not _is(image, (image.width // 4, 10), WHITE)


def test_one_bit_images_become_grey() -> None:
    image = Image.new("1", (16, 16), 1)
    assert _prepared(_encoded(image, "PNG")).getpixel((8, 8)) == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_large_images_are_downscaled_with_their_aspect_ratio(kind: str) -> None:
    image = _prepared(_encoded(_photo(800, 450), kind), ImageSettings(max_side=256))
    assert image.size == (256, 144)
    assert _is(image, (64, 72), RED)
    assert _is(image, (192, 72), BLUE)


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        ((400, 300), (100, 75)),
        ((401, 300), (101, 75)),
        ((416, 300), (103, 74)),
        ((392, 300), (103, 79)),
        ((206, 100), (103, 50)),
    ],
    ids=str,
)
def test_a_jpeg_is_sent_in_a_size_that_its_decoder_gives_if_that_is_near(
    size: tuple[int, int], sent: tuple[int, int]
) -> None:
    limits = ImageSettings(max_side=103)
    image = _prepared(_encoded(_photo(*size), "JPEG"), limits)
    assert image.size == sent
    assert _is(image, (sent[0] // 4, sent[1] // 2), RED)
    assert max(_prepared(_encoded(_photo(*size), "PNG"), limits).size) == 103


def test_a_jpeg_is_not_scaled_below_the_smallest_side() -> None:
    limits = ImageSettings(max_side=103, min_side=76)
    assert _prepared(_encoded(_photo(400, 300), "JPEG"), limits).size == (103, 77)


def test_small_lossless_images_stay_lossless_and_large_ones_become_jpeg() -> None:
    assert prepare_image(_encoded(_photo(256, 256), "BMP"), DEFAULT).mime == "image/png"
    assert prepare_image(_encoded(_photo(257, 256), "BMP"), DEFAULT).mime == "image/jpeg"
    assert prepare_image(CONVERTED["webp"], DEFAULT).mime == "image/jpeg"


def test_metadata_is_dropped_when_an_image_is_re_encoded() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret location"
    for kind, options in {
        "JPEG": {"comment": b"secret", "icc_profile": b"secret" * 50},
        "PNG": {"icc_profile": b"secret" * 50},
        "TIFF": {"icc_profile": b"secret" * 50},
    }.items():
        data = _encoded(_photo(200, 100), kind, exif=exif, **options)
        image = _prepared(data, ImageSettings(max_side=100))
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


NOT_IMAGES = {
    "it is empty": b"",
    "it is text": b"A cat.",
    "it is an HTML page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "it is an SVG drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "it is XML": b"<?xml version='1.0'?><a/>",
    "it is a PDF file": b"%PDF-1.7\n",
    "it is a PostScript file": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "its kind is unknown": b"\xd7\xcd\xc6\x9a\0\0",
    "it is a HEIC file": b"\0\0\0\x18ftypheic\0\0\0\0",
    "it is a video": b"\0\0\0\x18ftypisom\0\0\0\0",
    "it is a PPM file in plain text": b"P3\n9 9\n255\n",
    "it is a ZIP file": b"PK\x03\x04",
    "it is a gzip file": b"\x1f\x8b\x08",
    "it is a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:",
}


@pytest.mark.parametrize(("what", "data"), NOT_IMAGES.items(), ids=NOT_IMAGES.keys())
def test_a_file_that_is_no_image_is_refused(what: str, data: bytes) -> None:
    error = _refused(data)
    assert error.problem.kind is Kind.NOT_AN_IMAGE
    assert what in str(error)


def test_nothing_of_a_file_that_is_no_image_is_shown() -> None:
    for secret in (b"root:$6$secret:19000:0:99999:7:::\n", b"\1secret", b"<secret/>"):
        assert "secret" not in str(_refused(secret))


BOMB = zlib.compress(b"\0" * 80_000_000, 9)

NOTHING = ((b"IDAT", b""), (b"IEND", b""))
PIXELS = ((b"IDAT", zlib.compress(b"\0" * 8 * 25)),)

BROKEN = {
    "signature-only": b"\x89PNG\r\n\x1a\n",
    "jpeg-signature-only": b"\xff\xd8\xff",
    "text-like-bmp": b"BM is the start of this text",
    "png-no-pixels": _png(_header(8, 8), (b"IEND", b"")),
    "png-bad-pixels": _png(_header(8, 8, 6), (b"IDAT", b"not zlib"), (b"IEND", b"")),
    "png-few-pixels": _png(_header(800, 800, 6), (b"IDAT", BOMB[:20]), (b"IEND", b"")),
    "png-text-bomb": _png(
        _header(8, 8), (b"iTXt", b"x\0\1\0\0\0" + BOMB), (b"IDAT", b""), (b"IEND", b"")
    ),
    "png-ztxt-bomb": _png(
        _header(8, 8), (b"zTXt", b"x\0\0" + BOMB), (b"IDAT", b""), (b"IEND", b"")
    ),
    "tiff-no-directory": b"II*\0\xff\xff\xff\xff",
    "avif-empty": b"\0\0\0\x18ftypavif\0\0\0\0",
    "webp-empty": b"RIFF\x04\0\0\0WEBP",
    "gif-empty": b"GIF89a",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_corrupted_image_is_refused(data: bytes) -> None:
    assert _refused(data).problem.kind is Kind.IMAGE_BROKEN


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = b",\0\0\0\0\xff%c\xff%c\0\x08\0"
    bitmap = struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 54, 40, 50_000, 50_000, 1, 24, *[0] * 6)
    bombs = {
        "png": _png(_header(50_000, 50_000), (b"IDAT", BOMB), (b"IEND", b"")),
        "gif": b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + frame % (9, 9),
        "gif-frame": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + frame % (255, 255),
        "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
        "bmp": b"BM" + bitmap,
        "ppm": b"P6\n50000 50000\n255\n",
    }

    def fail(*_: object) -> None:
        raise AssertionError("decoded")  # this would be reported as IMAGE_BROKEN

    monkeypatch.setattr(prepare, "decode", fail)
    for name, data in bombs.items():
        tracemalloc.start()
        kind = _refused(data).problem.kind
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kind is Kind.IMAGE_TOO_LARGE, name
        assert peak < 1_000_000, name


def test_pillows_own_limit_is_not_changed() -> None:
    before = Image.MAX_IMAGE_PIXELS
    _refused(_png(_header(50_000, 50_000), (b"IEND", b"")))
    prepare_image(CONVERTED["gif"], DEFAULT)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("size", "limits", "kind"),
    [
        ((1, 1), DEFAULT, Kind.IMAGE_TOO_SMALL),
        ((3, 300), DEFAULT, Kind.IMAGE_TOO_SMALL),
        ((1, 5000), DEFAULT, Kind.IMAGE_TOO_SMALL),
        ((10, 2001), DEFAULT, Kind.IMAGE_TOO_SMALL),
        ((10, 1000), ImageSettings(max_side=100, min_side=2), Kind.IMAGE_TOO_SMALL),
        ((100, 100), ImageSettings(max_pixels=9_999), Kind.IMAGE_TOO_LARGE),
        ((100, 100), ImageSettings(max_file_bytes=100), Kind.IMAGE_TOO_LARGE),
    ],
    ids=["1x1", "narrow", "line", "aspect", "narrow-when-downscaled", "pixels", "bytes"],
)
@pytest.mark.parametrize("kind_of_file", ["PNG", "JPEG", "BMP"])
def test_images_outside_the_limits_are_refused(
    size: tuple[int, int], limits: ImageSettings, kind: Kind, kind_of_file: str
) -> None:
    assert _refused(_encoded(_photo(*size), kind_of_file), limits).problem.kind is kind


@pytest.mark.parametrize("size", [(4, 4), (4, 800), (10, 2000), (2000, 10)], ids=str)
def test_images_at_the_limits_are_accepted(size: tuple[int, int]) -> None:
    assert min(_prepared(_encoded(_photo(*size), "PNG")).size) >= DEFAULT.min_side


_fractions = st.floats(0, 1, exclude_max=True)
_FUZZING = ImageSettings(max_pixels=1_000_000)
"""A fuzzed header that declares more pixels would only cost time to decode."""


def _result(data: bytes) -> PreparedImage | None:
    """The prepared image, or None if the row is refused; anything else fails the test."""
    try:
        return prepare_image(data, _FUZZING)
    except RowError:
        return None


def _jpeg_with_thumbnail() -> bytes:
    """A JPEG whose header contains a complete small JPEG, including its end marker."""
    thumbnail = _encoded(_photo(16, 12), "JPEG")
    data = _encoded(_photo(), "JPEG")
    return data[:2] + b"\xff\xef" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]


COMPLETE = UNCHANGED | CONVERTED | {"jpeg-thumbnail": _jpeg_with_thumbnail()}
del COMPLETE["jpeg-largest"]  # slow, and otherwise like "jpeg"
_HEADS = [data[:size] for data in COMPLETE.values() for size in (4, 16, 64, 300)]


@pytest.mark.parametrize("data", COMPLETE.values(), ids=COMPLETE.keys())
@settings(deadline=None, max_examples=20)
@given(fraction=_fractions)
def test_a_truncated_file_is_refused_or_still_opens(data: bytes, fraction: float) -> None:
    result = _result(data[: int(len(data) * fraction)])
    assert result is None or _opened(result)


@pytest.mark.parametrize("kind", ["jpeg", "png", "jpeg-thumbnail"])
def test_files_truncated_in_the_middle_are_refused(kind: str) -> None:
    data = COMPLETE[kind]
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert _refused(data[: int(len(data) * fraction)]).problem.kind is Kind.IMAGE_BROKEN


@settings(deadline=None, max_examples=300)
@given(
    head=st.sampled_from([b"", *_HEADS]),
    tail=st.binary(max_size=400),
)
def test_random_bytes_only_raise_row_errors(head: bytes, tail: bytes) -> None:
    result = _result(head + tail)
    assert result is None or result.width <= DEFAULT.max_side


def test_the_same_file_gives_the_same_bytes_in_any_thread() -> None:
    files = list(CONVERTED.values()) * 4
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda data: prepare_image(data, DEFAULT), files))
    assert results == [prepare_image(data, DEFAULT) for data in files]


def test_settings_are_frozen_strict_and_described() -> None:
    with pytest.raises(ValidationError):
        DEFAULT.max_side = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ImageSettings.model_validate({"max_sides": 100})
    assert all(field.description for field in ImageSettings.model_fields.values())
