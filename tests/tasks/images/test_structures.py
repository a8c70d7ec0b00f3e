"""Files whose structure asks for far more work than their size, or holds more than pixels."""

import base64
import io
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from prefect_imageqa.tasks.images import prepare
from prefect_imageqa.tasks.images.decoding_budget import MAX_BYTES, MemoryBudget
from prefect_imageqa.tasks.images.formats import sniff
from prefect_imageqa.tasks.images.prepare import ImageSettings, prepare_image
from prefect_imageqa.tasks.images.structure import exif_orientation
from prefect_imageqa.tasks.records import Kind, RowError

LIMITS = ImageSettings()
RED = Image.new("RGB", (64, 64), "red")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(*chunks: bytes, side: int = 64, depth: int = 8, colour_type: int = 2) -> bytes:
    """A PNG file with further chunks before its pixels, which are black."""
    header = struct.pack(">IIBBBBB", side, side, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 64 * 193)
    parts = chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    parts: int,
    rows: int,
    extra: Sequence[tuple[int, int]] = (),
    length: int = 8,
    repeated: Sequence[tuple[int, int]] = (),
) -> bytes:
    """A TIFF file of 64 x 64 grey pixels whose strips all are the same bytes."""
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 278: rows, **dict(extra)}
    offsets = struct.pack(f"<{2 * parts}I", *[8] * parts, *[length] * parts)
    single = *tags.items(), *repeated
    entries = [(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in single]
    start = 8 + 4096
    place = start + 2 + 12 * (len(entries) + 2) + 4
    for tag, at, value in ((273, place, 8), (279, place + 4 * parts, length)):
        entries.append((tag, struct.pack("<HHII", tag, 4, parts, value if parts == 1 else at)))
    directory = struct.pack("<H", len(entries)) + b"".join(entry for _, entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", start) + b"\7" * 4096 + directory + b"\0" * 4 + offsets


def segment(code: int, body: bytes = b"") -> bytes:
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def progressive(scans: int, between: bytes = b"") -> bytes:
    """A JPEG file of 1024 x 1024 pixels that repeats its last scan."""
    data = encoded(Image.new("RGB", (1024, 1024)), "JPEG", progressive=True)
    return data[:-2] + between + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


JPEG = encoded(RED, "JPEG")
LARGE = JPEG.replace(b"\x08\0\x40\0\x40", b"\x08\x33\xf4\x33\xf4", 1)
"""Declares 13,300 x 13,300 pixels."""
GIF = encoded(RED, "GIF")
FRAME = GIF.index(b",")
BITMAP = struct.pack("<IHHIIiiHHIIIIII", 0, 0, 0, 1078, 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)
AVIF = encoded(Image.new("RGB", (4000, 4000)), "AVIF", speed=10)
SIZE_AT = AVIF.index(b"ispe") + 8
AVIF_OF_256_MEGAPIXELS = zlib.decompress(
    base64.b64decode(
        "eNpjYGBQSCupLEgsy0xjAAIQnZuZZpibmZjm62joBBR6nZtaksgAAYoZKTlFUDZDQWZyCQMa4CvILMkFsxiBWC4zJz"
        "8ZxHEB8RkhoozCDAw8M4FsjczMvDS4WikgJ5UJykssMzB0zs/JB9uVlVlQVACkvTMLkvOBtEhmcUEq1D4HKBYoyKzI"
        "BAkwc3BwACmexDJD50Z5HpCQcHJ+TlFeck4F0GReBrYGoJB4ZkEuzE9Ah7EwMjWzADUtzE1JLBFi4OKW/15X//PvIi"
        "YpXg6jdkkBpeTDh40aWQT8FYCaE8+fC1yr+en+pvbTCbs7OzTWzp3WwdAtdvd3Zeizf02Ogi+DmUz0qhmW3ZTr2ayw"
        "qVUsZfIbR74n91I/cEwTsZ253a175/4ls3b9aJ7H2iK2uL9IUiDFXabkVf8SfStbETOmYHVl3c/J589FlDN9CbRLmH"
        "r02XFtxqPmL8o3pnJMqy39cDIm/m7TXZnj1QYPd9rlqD13OxBxL+eN8s3Fs1YkHnrilaVwPHrWxf6wyfNW7PL/+Hod"
        "W9K5GPFL4il3jWNvVu1PdvCoiBPTm+twr4g3jC6WJJFlSdLVqxPVUszOKcoXbn8weXfjDaFdARxvJfI3vdfzt7TqfN"
        "E1YYrL+8jIR1V9ph9ELYZPaI1GyWiUjEbJaJSMRslolIxGyWiUDNYoiaGhR2IbhrLptAv8iAYAlDOcew=="
    )
)
"""Declares 64 x 64 pixels."""

HOSTILE = {
    "jpeg-scans": (progressive(1000), "1,010 scans, more than 100"),
    "jpeg-hidden-scans": (progressive(1000, segment(0xFE, b"\xff\xd9")), "more than 100"),
    "jpeg-hidden-frame": (JPEG[:2] + b"\xff\xd0" + LARGE[2:] + JPEG[2:], "type D0"),
    "jpeg-hidden-in-a-segment": (
        JPEG[:2] + segment(0xD0, LARGE[2:]) + JPEG[2:],
        "a segment of type D0 before its first scan",
    ),
    "jpeg-hidden-by-marker-1": (JPEG[:2] + segment(1, LARGE[2:]) + JPEG[2:], "type 01"),
    "jpeg-no-length": (JPEG[:2] + b"\xff\xdb\0\0" + JPEG[2:], "type DB"),
    "jpeg-tables": (JPEG[:2] + segment(0xDB, b"\0" + b"\1" * 64) * 16_000 + JPEG[2:], "of tables"),
    "jpeg-tables-between": (progressive(1, segment(0xDB, b"\0" * 65_000) * 17), "of tables"),
    "jpeg-segments-between": (progressive(1, segment(0xFE) * 20_000), "over 20,000 segments"),
    "png-two-headers": (
        png(chunk(b"IHDR", struct.pack(">IIBBBBB", 13_300, 13_300, 8, 2, 0, 0, 0))),
        "two chunks of type IHDR",
    ),
    "png-two-palettes": (png(*[chunk(b"PLTE", bytes(3))] * 2, colour_type=3), "of type PLTE"),
    "jpeg-segments": (JPEG[:2] + b"\xff\xe1\0\2" * 200_000 + JPEG[2:], "over 20,000 segments"),
    "jpeg-fill": (JPEG[:2] + b"\xff" * 200_000 + JPEG[2:], "over 20,000 segments"),
    "jpeg-junk": (JPEG[:20] + b"\1" * 200_000 + JPEG[20:], "over 20,000 segments"),
    "jpeg-arithmetic": (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), "a segment of type C9"),
    "jpeg-12-bit": (JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "8 bits"),
    "jpeg-two-frames": (JPEG[:2] + b"\xff\xc0\0\x11" + b"\x08" * 15 + JPEG[2:], "type C0"),
    "png-chunks": (png(chunk(b"teSt") * 200_000), "over 100,000 chunks"),
    "png-empty-pixels": (png(chunk(b"IDAT") * 200_000), "over 100,000 chunks"),
    "gif-blocks": (GIF[:FRAME] + b"!\1\0" * 200_000 + GIF[FRAME:], "over 100,000 blocks"),
    "gif-comment": (GIF[:FRAME] + b"!\xfe" + b"\1x" * 200_000 + b"\0", "over 100,000 blocks"),
    "pgm-slow": (b"P5 64 64 254 " + b"\1" * 4096, "the maximum value 254; convert it to PNG"),
    "ppm-slow": (b"P6 64 64 65535 " + b"\1" * 24_576, "convert it to PNG"),
    "ppm-comment": (b"P6 #" + b"x" * 100_000 + b"\n64 64 255 ", "its header cannot be read"),
    "tiff-strips": (tiff(500, 63), "500 strips or tiles instead of 2"),
    "tiff-many-values": (tiff(300_000, 1), "300,000 values of tag 273"),
    "tiff-few-strips": (tiff(3, 1), "3 strips or tiles instead of 64"),
    "tiff-shared-strips": (
        tiff(64, 1, [(259, 8), (266, 2)], length=4000),
        "more bytes than the file",
    ),
    "tiff-two-tags": (tiff(1, 64, repeated=[(273, 8)]), "two tags 273"),
    "tiff-tiles": (
        tiff(1, 64, [(322, 40_000), (323, 40_000), (324, 8)]),
        "tiles of 40,000 x 40,000 pixels",
    ),
    "tiff-compression": (tiff(1, 64, [(259, 34925)]), "compression 34925"),
    "avif-hidden-size": (AVIF_OF_256_MEGAPIXELS, "AVIF file"),
}


@pytest.mark.parametrize(("data", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_would_cost_much_work_is_refused(data: bytes, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(RowError) as caught:
        prepare_image(data, LIMITS)
    assert caught.value.problem.kind is Kind.IMAGE_BROKEN
    assert reason in str(caught.value)
    assert time.process_time() - began < 0.5


TOO_MUCH = {
    "bmp-run-lengths": b"BM" + BITMAP + b"\1\7" * 2_500_000,
    "png-rgba-16": png(side=9_500, depth=16, colour_type=6),
    "webp": encoded(RED, "WEBP", lossless=True, exif=b"x").replace(
        b"\x3f\0\0\x3f\0\0", b"\x0f\x27\0\x0f\x27\0", 1
    ),
    "jpeg-progressive": encoded(
        RED, "JPEG", progressive=True, subsampling="4:4:4", keep_rgb=False
    ).replace(b"\x08\0\x40\0\x40", b"\x08\x26\x48\x26\x48", 1),
    "avif": AVIF[:SIZE_AT] + struct.pack(">II", 9_000, 9_000) + AVIF[SIZE_AT + 8 :],
}


@pytest.mark.parametrize("data", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_an_image_that_would_take_too_much_is_refused_before_it_is_decoded(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(RowError, match="that one image may; shrink it") as caught:
        prepare_image(data, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.problem.kind is Kind.IMAGE_TOO_LARGE
    assert peak < 1_000_000


WORKFLOW = b"{" + b"x" * 3_000_000
XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'

SOUND = {
    "png-text": png(chunk(b"tEXt", b"workflow\0" + WORKFLOW)),
    "png-international-text": png(chunk(b"iTXt", b"a\0\0\0\0\0" + WORKFLOW)),
    "png-packed-text": png(chunk(b"zTXt", b"a\0\0" + zlib.compress(WORKFLOW))),
    "png-packed-international": png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(WORKFLOW))),
    "png-profile": png(chunk(b"iCCP", b"a\0\0" + zlib.compress(WORKFLOW))),
    "png-broken-profile": png(chunk(b"iCCP", b"a\0\0no zlib")),
    "png-unknown-chunk": png(chunk(b"teSt", WORKFLOW)),
    "png-many-chunks": png(*[chunk(b"teSt")] * 5000),
    "jpeg-comments": JPEG[:2] + (b"\xff\xfe\xff\xff" + b"x" * 65533) * 30 + JPEG[2:],
    "jpeg-photoshop": JPEG[:2] + (b"\xff\xed\xff\xff" + b"x" * 65533) * 30 + JPEG[2:],
    "jpeg-film": JPEG + WORKFLOW,
    "gif-stray-bytes": GIF[:FRAME] + b"\0\0" + GIF[FRAME:],
    "gif-comment": GIF[:FRAME] + b"!\xfe" + (b"\xff" + b"x" * 255) * 10_000 + b"\0" + GIF[FRAME:],
    "webp-frames": encoded(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "tiff-one-strip": tiff(1, 64),
    "tiff-sixty-four-strips": tiff(64, 1),
    "pgm-comment": b"P5 # made by hand\n64\t64 # size\n255\n" + b"\1" * 4096,
    "bmp-run-lengths": encoded(RED.convert("P"), "BMP"),
}


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND.keys())
def test_a_sound_image_is_sent_without_what_else_is_in_its_file(data: bytes) -> None:
    began = time.process_time()
    prepared = prepare_image(data, LIMITS)
    assert (prepared.width, prepared.height) == (64, 64)
    assert len(prepared.data) < 20_000
    assert time.process_time() - began < 0.5


def exif(orientation: int, kind: int = 3) -> bytes:
    """An EXIF block that holds the orientation as 2 bytes (kind 3) or 4 (kind 4), or none (0)."""
    tag = 0x0112 if kind else 0x0100
    value = struct.pack(">I" if kind == 4 else ">HH", *[orientation, 0][: 1 if kind == 4 else 2])
    return b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", tag, kind or 3, 1) + value


def jpeg(*bodies: bytes) -> bytes:
    """A JPEG file, wider than high, with EXIF or XMP."""
    data = encoded(WIDE, "JPEG")
    return data[:2] + b"".join(segment(0xE1, body) for body in bodies) + data[2:]


def wide_png(*chunks: bytes) -> bytes:
    data = encoded(WIDE, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def webp(**metadata: object) -> bytes:
    frames = [Image.new("RGB", WIDE.size, "blue")]
    return encoded(WIDE, "WEBP", save_all=True, append_images=frames, **metadata)


WIDE = Image.new("RGB", (64, 32), "red")
DIGITS = b"\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode()
XMP_TEXT = b"XML:com.adobe.xmp\0"

TURNED = {
    "jpeg-xmp": jpeg(XMP),
    "jpeg-exif-without-it": jpeg(exif(0, kind=0), XMP),
    "jpeg-long": jpeg(exif(6, kind=4)),
    "jpeg-first-exif": jpeg(exif(6), exif(1)),
    "png-xmp": wide_png(chunk(b"iTXt", XMP_TEXT + b"\0\0\0\0" + XMP)),
    "png-packed-xmp": wide_png(chunk(b"iTXt", XMP_TEXT + b"\1\0en\0a\0" + zlib.compress(XMP))),
    "png-raw": wide_png(chunk(b"tEXt", b"Raw profile type exif\0" + DIGITS)),
    "png-packed-raw": wide_png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(DIGITS))
    ),
    "webp-frames": webp(exif=exif(6)),
    "webp-frames-xmp": webp(xmp=XMP),
}
UPRIGHT = {
    "jpeg-exif-before-xmp": jpeg(exif(1), XMP),
    "jpeg-first-exif": jpeg(exif(1), exif(6)),
    "png-exif-before-xmp": wide_png(
        chunk(b"eXIf", exif(1)[6:]), chunk(b"iTXt", XMP_TEXT + b"\0\0\0\0" + XMP)
    ),
    "webp-exif-before-xmp": webp(exif=exif(1), xmp=XMP),
}


@pytest.mark.parametrize("data", [*TURNED.values(), *UPRIGHT.values()], ids=[*TURNED, *UPRIGHT])
def test_orientation_is_read_as_by_pillow(data: bytes) -> None:
    prepared = prepare_image(data, LIMITS)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    sent = Image.open(io.BytesIO(prepared.data)).size
    assert (prepared.width, prepared.height) == sent == expected
    assert sent == ((32, 64) if data in TURNED.values() else (64, 32))


def test_only_the_first_packed_profile_and_text_are_unpacked() -> None:
    packed = b"a\0\0" + zlib.compress(b"\0" * 5 * 2**20)
    text = b"Raw profile type exif\0\0" + packed[3:]
    data = wide_png(*[chunk(b"iCCP", packed)] * 300, *[chunk(b"zTXt", text)] * 300)
    began = time.process_time()
    prepare_image(data, LIMITS)
    assert time.process_time() - began < 0.3


def test_pages_of_a_tiff_do_not_count_as_scans() -> None:
    page = Image.new("L", (64, 64), 200)
    pages: dict[str, Any] = {"save_all": True, "append_images": [page] * 150}
    data = encoded(page, "TIFF", compression="jpeg", tiffinfo={278: 64}, **pages)
    assert data.count(b"\xff\xda") > 100
    assert prepare_image(data, LIMITS).width == 64


def test_what_follows_a_progressive_jpeg_is_not_decoded() -> None:
    film = np.random.default_rng(0).bytes(1000) + b"\xff\xda\0\2" * 200
    assert prepare_image(encoded(RED, "JPEG", progressive=True) + film, LIMITS).width == 64


def declared(data: bytes, before: bytes, after: bytes) -> bytes:
    assert before in data
    return data.replace(before, after, 1)


@pytest.mark.parametrize(
    ("data", "side"),
    [
        # 8064 x 6048
        (declared(JPEG, b"\x08\0\x40\0\x40", b"\x08\x17\xa0\x1f\x80"), 4096),
        # 7000 x 4700
        (
            declared(encoded(RED, "WEBP", exif=b"x"), b"\x3f\0\0\x3f\0\0", b"\x57\x1b\0\x5b\x12\0"),
            1024,
        ),
        (declared(AVIF, struct.pack(">II", 4000, 4000), struct.pack(">II", 6000, 4000)), 4096),
    ],
    ids=["jpeg", "webp", "avif"],
)
def test_a_photo_of_a_good_camera_is_within_the_budget(data: bytes, side: int) -> None:
    found, limits = sniff(data), ImageSettings(max_side=side)
    file = found.read(data)
    assert prepare._checked_cost(found, file, prepare._checked_size(file.size, limits)) < MAX_BYTES


def test_an_unreadable_exif_block_means_upright() -> None:
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    block = b"II*\0\x08\0\0\0\x01\0" + tag
    assert exif_orientation(block) == exif_orientation(b"Exif\0\0" + block) == 6
    for broken in (b"", b"II*\0", block[:-6], block.replace(b"\6\0", b"\t\0")):
        assert exif_orientation(broken) in (None, 1)
    endless = b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHIHH", 1, 3, 1, 6, 0) * 65_535
    assert exif_orientation(endless) is None


def test_images_share_one_budget_of_memory() -> None:
    budget, held, most = MemoryBudget(100), 0, 0
    lock = threading.Lock()

    def decode(size: int) -> None:
        nonlocal held, most
        with budget.hold(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= min(size, 100)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(decode, [10, 60, 1000, 30, 5] * 20))
    assert 60 < most <= 100


def test_large_images_are_not_kept_waiting_by_small_ones() -> None:
    budget, order = MemoryBudget(100), list[int]()

    def decode(size: int) -> None:
        with budget.hold(size):
            order.append(size)

    with ThreadPoolExecutor(3) as pool, budget.hold(50):
        large = pool.submit(decode, 100)
        while not budget.waiting:
            time.sleep(0.001)
        small = pool.submit(decode, 1)
        time.sleep(0.02)
        assert not large.done()
        assert not small.done()
    assert order == [100, 1]


def test_a_large_image_is_averaged_strip_by_strip_as_if_at_once() -> None:
    values = np.random.default_rng(0).integers(0, 256, (601, 800, 4), np.uint8)
    image = Image.fromarray(values)
    limits = ImageSettings(max_side=80)
    sent = Image.open(io.BytesIO(prepare_image(encoded(image, "PNG"), limits).data))
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    expected = white.resize(sent.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(sent).astype(int) - np.asarray(expected)).mean() < 2
