"""Thumbnails of untrusted images."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image
from prefect_imageqa.tasks.images import prepare
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.thumbnails import thumbnail, thumbnails


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the memory that each image was decoded within."""
    counts: list[int] = []

    class Budget:
        @contextmanager
        def hold(self, count: int) -> Iterator[None]:
            counts.append(count)
            yield

    monkeypatch.setattr(prepare, "MEMORY", Budget())
    return counts


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_could_be_sent_as_it_is_is_decoded_within_the_budget(
    kind: str, held: list[int]
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, kind)
    assert thumbnail(file.getvalue(), ImageSettings()).startswith("data:image/jpeg;base64,")
    assert len(held) == 1
    assert held[0] > 4 * 64 * 48


def test_thumbnails_of_several_sizes_take_one_decoding(held: list[int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", (640, 400), "red").save(file, "PNG")
    found = thumbnails(file.getvalue(), ImageSettings(), (160, 320, 1000))
    sizes = []
    for uri in found:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        sizes.append(image.size)
        red, green, blue = image.convert("RGB").resize((1, 1)).tobytes()
        assert red > 240 > 20 > max(green, blue)
    assert sizes == [(160, 100), (320, 200), (640, 400)]
    assert len(held) == 1
    assert thumbnails(b"no image", ImageSettings(), (160, 320)) == ["", ""]
