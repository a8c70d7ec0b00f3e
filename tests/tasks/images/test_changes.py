"""Slight changes of an image."""

import io

import numpy as np
import pytest
from PIL import Image
from prefect_imageqa.tasks.images.changes import CHANGES, changed_image
from prefect_imageqa.tasks.images.prepare import ImageSettings, prepare_image
from prefect_imageqa.tasks.records import Kind, RowError


def encoded(mode: str, form: str, size: tuple[int, int] = (60, 40)) -> bytes:
    """A smooth picture with a dark square, so that every change shows."""
    pixels = np.full((size[1], size[0], 3), 150, np.uint8)
    pixels[8:20, 8:20] = (90, 30, 60)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("mode", "form"), [("RGB", "PNG"), ("L", "PNG"), ("RGB", "JPEG")])
def test_a_changed_image_differs_a_little_and_keeps_its_size(
    change: str, mode: str, form: str
) -> None:
    image = prepare_image(encoded(mode, form), ImageSettings())
    found = changed_image(image, change, ImageSettings())
    assert (found.width, found.height) == (60, 40)
    assert found.mime == image.mime
    before, after = (
        np.asarray(Image.open(io.BytesIO(each.data)).convert("RGB"), np.float64)
        for each in (image, found)
    )
    assert 0.2 < np.abs(before - after).mean() < 30
    assert found == changed_image(image, change, ImageSettings())


@pytest.mark.parametrize("change", CHANGES)
def test_the_smallest_image_can_be_changed(change: str) -> None:
    settings = ImageSettings(min_side=1)
    image = prepare_image(encoded("RGB", "PNG", (1, 1)), settings)
    assert changed_image(image, change, settings).width == 1


def test_an_unknown_change_is_a_problem_of_the_row() -> None:
    image = prepare_image(encoded("RGB", "PNG"), ImageSettings())
    with pytest.raises(RowError, match="mirrored") as error:
        changed_image(image, "mirrored", ImageSettings())
    assert error.value.problem.kind is Kind.BAD_ROW
