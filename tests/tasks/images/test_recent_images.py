import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect_imageqa.tasks.images import recent_images
from prefect_imageqa.tasks.images.prepare import ImageSettings, PreparedImage
from prefect_imageqa.tasks.images.recent_images import RecentImages
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError

SETTINGS = ImageSettings()


def image(size: int = 3) -> PreparedImage:
    return PreparedImage(bytes(size), "image/png", 1, 1)


def test_threads_that_need_an_image_at_once_share_it() -> None:
    recent, calls, started = RecentImages(), list[int](), threading.Event()

    def prepare() -> PreparedImage:
        calls.append(1)
        started.wait(5)
        return image()

    with ThreadPoolExecutor(4) as pool:
        refs = [ImageRef(path="a.png")] * 4
        futures = [pool.submit(recent.get, ref, SETTINGS, prepare) for ref in refs]
        started.set()
        found = {id(future.result()) for future in futures}
    assert (len(found), len(calls)) == (1, 1)


def test_another_size_or_other_bytes_are_another_image() -> None:
    recent = RecentImages()
    first = recent.get(ImageRef(data=b"a"), SETTINGS, image)
    assert recent.get(ImageRef(data=b"a"), SETTINGS, image) is first
    assert recent.get(ImageRef(data=b"b"), SETTINGS, image) is not first
    assert recent.get(ImageRef(data=b"a"), ImageSettings(max_side=64), image) is not first


def test_an_image_that_failed_is_tried_again() -> None:
    recent = RecentImages()

    def fail() -> PreparedImage:
        raise RowError(Kind.CONNECTION, "gone")

    with pytest.raises(RowError):
        recent.get(ImageRef(path="a.png"), SETTINGS, fail)
    assert recent.get(ImageRef(path="a.png"), SETTINGS, image).mime == "image/png"


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_images, "MAX_BYTES", 10)
    recent = RecentImages()
    images = [recent.get(ImageRef(path=f"{n}.png"), SETTINGS, lambda: image(4)) for n in range(5)]
    for number, kept in ((4, True), (3, True), (0, False)):
        again = recent.get(ImageRef(path=f"{number}.png"), SETTINGS, lambda: image(4))
        assert (again is images[number]) is kept


def test_an_image_of_another_version_is_another_image() -> None:
    recent, ref = RecentImages(), ImageRef("a.png", version="1")
    assert recent.find(ref, SETTINGS) is None
    first = image()
    recent.add(ref, SETTINGS, first)
    assert recent.find(ref, SETTINGS) is first
    assert recent.get(ref, SETTINGS, image) is first
    assert recent.find(ImageRef("a.png", version="2"), SETTINGS) is None


def test_the_bytes_of_embedded_images_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """They identify the prepared images, which may be far smaller."""
    monkeypatch.setattr(recent_images, "MAX_BYTES", 20)
    recent = RecentImages()
    first, second = (ImageRef(data=bytes([n] * 12)) for n in range(2))
    for ref in (first, second):
        recent.get(ref, SETTINGS, lambda: image(4))
    assert recent.find(first, SETTINGS) is None
    assert recent.find(second, SETTINGS)
