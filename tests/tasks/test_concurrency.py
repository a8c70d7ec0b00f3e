"""Rows in bounded chunks, and results that do not outlive their use."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from prefect import flow, task
from prefect_imageqa.tasks.concurrency import (
    MAX_CHUNK_BYTES,
    chunks,
    freed_when_done,
    memory_of,
)
from prefect_imageqa.tasks.errors import DatasetError


def test_a_chunk_is_bounded_by_its_number_and_its_memory() -> None:
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunks([], 3)) == []
    sizes = [1, 1, 1, 1, MAX_CHUNK_BYTES - 1, 1, MAX_CHUNK_BYTES, 5 * MAX_CHUNK_BYTES, 1]
    assert [len(chunk) for chunk in chunks(sizes, 3, lambda size: size)] == [3, 2, 2, 1, 1]


def test_the_items_before_an_error_come_first() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise DatasetError("the file is cut off")

    found: list[list[int]] = []
    with pytest.raises(DatasetError, match="cut off"):
        found.extend(chunks(items(), 3))
    assert found == [[0, 1, 2], [3, 4]]


def test_chunks_grow_up_to_a_limit() -> None:
    def sizes(rows: int, **limits: int) -> list[int]:
        return [len(chunk) for chunk in chunks(range(rows), 3, lambda _: 1, **limits)]

    assert sizes(60, grows_to=20) == [3, 6, 12, 20, 19]
    assert sizes(9, grows_to=2) == [3, 3, 3]
    assert sizes(21, grows_to=20, max_bytes=5) == [3, 5, 5, 5, 3]


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
    assert memory_of([Image.new("RGB", (10, 20))]) >= 3 * 10 * 20  # of a DataFrame


class _Result:
    """Unlike a list, it can be referred to weakly."""


@pytest.mark.usefixtures("prefect_server")
def test_results_are_freed_without_the_garbage_collector() -> None:
    called = threading.Semaphore(0)

    @task(persist_result=False)
    def give() -> _Result:
        return _Result()

    def result() -> "weakref.ref[_Result]":
        future = freed_when_done(give.submit())
        future.add_done_callback(lambda _: called.release())
        return weakref.ref(future.result())

    @flow
    def run() -> int:
        results = [result() for _ in range(6)]
        for _ in results:
            assert called.acquire(timeout=60)
        deadline = time.monotonic() + 30  # a task's thread may still be at its last lines
        alive = 6
        while alive > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            alive = sum(ref() is not None for ref in results)
        return alive

    gc.disable()
    try:
        # Threads that Prefect starts within a task keep the context of that one.
        assert run() <= 2
    finally:
        gc.enable()
