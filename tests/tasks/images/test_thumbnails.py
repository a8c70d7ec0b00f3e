"""Thumbnails of untrusted images."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image
from prefect_imageqa.tasks.images import prepare
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.thumbnails import thumbnail


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_could_be_sent_as_it_is_is_decoded_within_the_budget(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    class Budget:
        @contextmanager
        def hold(self, count: int) -> Iterator[None]:
            held.append(count)
            yield

    monkeypatch.setattr(prepare, "MEMORY", Budget())
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, kind)
    assert thumbnail(file.getvalue(), ImageSettings()).startswith("data:image/jpeg;base64,")
    assert len(held) == 1
    assert held[0] > 4 * 64 * 48
