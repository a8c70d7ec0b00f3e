"""Tests of `rare_collections`: the collector's settings during a run, and after it."""

import gc
from collections.abc import Iterator

import pytest
from prefect_imageqa.flows.process_memory import rare_collections


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_garbage_is_collected_rarely_and_existing_objects_are_not_searched() -> None:
    gc.set_threshold(500, 5, 5)
    with rare_collections():
        assert gc.get_threshold()[0] > 10_000
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == (500, 5, 5)
    assert gc.get_freeze_count() == 0


def test_the_last_of_overlapping_runs_restores_the_settings() -> None:
    gc.set_threshold(500, 5, 5)
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] > 10_000
    second.__exit__(None, None, None)
    assert gc.get_threshold() == (500, 5, 5)


def test_objects_that_the_process_has_frozen_itself_stay_frozen() -> None:
    gc.freeze()
    with rare_collections():
        pass
    assert gc.get_freeze_count() > 0
