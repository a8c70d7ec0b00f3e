import time

import pytest
from prefect_imageqa.tasks.images import read_ahead
from prefect_imageqa.tasks.images.read_ahead import ReadAhead


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> ReadAhead:
    """Keeps 10 bytes."""
    monkeypatch.setattr(read_ahead, "MAX_BYTES", 10)
    return ReadAhead()


def test_a_file_is_taken_once_and_in_the_version_that_was_read(kept: ReadAhead) -> None:
    kept.keep("a", "1", b"12345")
    assert kept.take("b", "1", 9) is None
    assert kept.take("a", "2", 9) is None
    assert kept.take("a", "1", 4) is None
    assert kept.take("a", "1", 5) == b"12345"
    assert kept.take("a", "1", 5) is None


def test_the_files_that_were_read_first_are_kept(kept: ReadAhead) -> None:
    for name in ("a", "b", "c"):
        kept.keep(name, "1", b"12345")
    kept.keep("a", "1", b"12345")  # again, which takes no more room
    assert kept.take("c", "1", 9) is None
    assert kept.take("a", "1", 9)
    kept.keep("d", "1", b"12345")
    assert kept.take("d", "1", 9)
    assert kept.take("b", "1", 9)


def test_files_that_nobody_takes_make_room(
    kept: ReadAhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.keep("a", "1", b"12345")
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 20)
    kept.keep("b", "1", b"12345")
    monkeypatch.setattr(time, "monotonic", lambda: now() + 40)
    kept.keep("c", "1", b"12345")
    assert [name for name in "abc" if kept.take(name, "1", 9)] == ["b", "c"]
