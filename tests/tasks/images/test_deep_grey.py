import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from prefect_imageqa.tasks.images.prepare import ImageSettings, prepare_image


def encoded(values: npt.NDArray[np.generic], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def sent(data: bytes) -> tuple[npt.NDArray[np.int_], bool]:
    """The grey values that the model gets, and whether they were scaled."""
    prepared = prepare_image(data, ImageSettings())
    with Image.open(io.BytesIO(prepared.data)) as image:
        return np.asarray(image).astype(int), prepared.is_scaled


def ramp(dtype: str, low: float, high: float) -> npt.NDArray[np.generic]:
    return np.linspace(low, high, 256 * 16).reshape(16, 256).astype(dtype)


def with_missing(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The same with one pixel of 0 and one of 65,535, which mark missing depths."""
    values = values.copy()
    values[0, 0], values[-1, -1] = 0, 65535
    return values


DEEP = {
    "png-16": (encoded(ramp("uint16", 0, 65535), "PNG"), False),
    "tiff-16": (encoded(ramp("uint16", 0, 65535), "TIFF"), False),
    "pgm-16": (encoded(ramp("uint16", 0, 65535), "PPM"), False),
    "tiff-32": (encoded(ramp("int32", -1000, 1_000_000), "TIFF"), True),
    "tiff-float": (encoded(ramp("float32", -2.5, 0.5), "TIFF"), True),
    "tiff-float-huge": (encoded(ramp("float32", -3e38, 3e38), "TIFF"), True),
    "png-12": (encoded(ramp("uint16", 0, 4095), "PNG"), True),
    "tiff-12": (encoded(ramp("uint16", 0, 4095), "TIFF"), True),
    "tiff-big-endian-12": (encoded(ramp(">u2", 0, 4095), "TIFF"), True),
    "pgm-12": (b"P5 256 16 4095 " + ramp(">u2", 0, 4095).tobytes(), True),
    "millimetres": (encoded(with_missing(ramp("uint16", 412, 6000)), "PNG"), True),
    "thermal": (encoded(ramp("uint16", 7000, 8500), "PNG"), True),
    "int32-of-12-bit": (encoded(ramp("int32", 0, 4095), "TIFF"), True),
}


@pytest.mark.parametrize(("data", "is_scaled"), DEEP.values(), ids=DEEP.keys())
def test_deep_grey_is_scaled_to_what_the_image_holds(data: bytes, is_scaled: bool) -> None:
    values, scaled = sent(data)
    expected = np.linspace(0, 255, values.size).reshape(values.shape)
    assert np.abs(values - expected).max() <= 1.5
    assert scaled is is_scaled


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((16, 16), 65535, "uint16"), 255),
        (np.full((16, 16), 0, "uint16"), 0),
        (np.full((16, 16), 700, "uint16"), 255),
        (np.full((16, 16), 0.25, "float32"), 255),
        (np.full((16, 16), np.nan, "float32"), 0),
    ],
    ids=["white", "black", "dark", "float", "nan"],
)
def test_an_image_of_one_value(values: npt.NDArray[np.generic], expected: int) -> None:
    assert np.abs(sent(encoded(values, "TIFF"))[0] - expected).max() <= 1


def test_missing_floats_are_black_and_infinite_ones_white() -> None:
    pixels = np.full((16, 16), 2.0, np.float32)
    pixels[0, :3], pixels[8, 0] = (np.nan, np.inf, -np.inf), 1.0
    values, _ = sent(encoded(pixels, "TIFF"))
    assert [values[0, 0], values[0, 1], values[0, 2], values[8, 0]] == [0, 255, 0, 0]
    assert values[8, 8] == 255


def test_a_large_deep_image_is_scaled_as_a_whole() -> None:
    """Not each strip of it by its own range."""
    values = np.linspace(1, 4001, 1500).repeat(2000).reshape(1500, 2000).astype("uint16")
    prepared = prepare_image(encoded(values, "PNG"), ImageSettings(max_side=200))
    with Image.open(io.BytesIO(prepared.data)) as image:
        sent_values = np.asarray(image).astype(int)
    assert np.abs(sent_values[:, 100] - np.linspace(0, 255, 150)).max() <= 3
