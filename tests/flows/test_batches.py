from collections.abc import Iterator
from typing import Any

import pytest
from prefect_imageqa.flows import batches
from prefect_imageqa.flows.batches import from_behind
from prefect_imageqa.tasks.records import Batch, ImageRef, Prompt


def made(count: int, image: ImageRef, given: list[int]) -> Iterator[Batch]:
    for number in range(count):
        given.append(number)
        yield Batch(number, "b", (Prompt(number, "k", "d", images=(image,)),), (0,))


def test_each_stretch_comes_from_its_end() -> None:
    given: list[int] = []
    batches: Any = from_behind(made(7, ImageRef("a.png"), given), 3)
    assert [batch.number for batch in batches] == [2, 1, 0, 5, 4, 3, 6]


def test_stretches_of_embedded_images_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "STRETCH_BYTES", 150)
    given: list[int] = []
    found: Any = from_behind(made(4, ImageRef(data=bytes(100)), given), 64)
    assert next(found).number == 1
    assert given == [0, 1]
    assert [batch.number for batch in found] == [0, 3, 2]
