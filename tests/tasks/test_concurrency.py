"""Rows in bounded chunks."""

from typing import Any

import pytest
from prefect_imageqa.tasks.concurrency import MAX_CHUNK_BYTES, chunks, memory_of


def test_a_chunk_is_bounded_by_its_number_and_its_memory() -> None:
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []
    sizes = [1, 1, 1, 1, MAX_CHUNK_BYTES - 1, 1, MAX_CHUNK_BYTES, 5 * MAX_CHUNK_BYTES, 1]
    assert [len(chunk) for chunk in chunks(sizes, 3, lambda size: size)] == [3, 2, 2, 1, 1]


@pytest.mark.parametrize(
    "value",
    ["x" * 1000, b"x" * 1000, ["x" * 500] * 2, {"a": {"b": [b"x" * 1000]}}, {"x" * 1000: 1}],
    ids=["text", "bytes", "list", "nested", "name"],
)
def test_texts_count_wherever_they_are(value: Any) -> None:
    assert 1000 <= memory_of(value) < 1300
    assert 1000 <= memory_of({"image": "a.png", "x": value}) < 1500


def test_a_value_is_counted_with_bounded_work() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert memory_of(nested) == 100_001 * 64 + 100_000 * 8
    assert MAX_CHUNK_BYTES <= memory_of([["x"] * 1000] * 1_000_000) < 2 * MAX_CHUNK_BYTES
