"""Local files: how often each is read, and that what is sent is what was identified."""

import collections
import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.tasks.images import local_images
from prefect_imageqa.tasks.images import reader as reader_module
from prefect_imageqa.tasks.images.file_digests import FileDigests
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase, image_refs
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError

SETTINGS = ImageSettings()


def encoded(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, kind)
    return file.getvalue()


RED, BLUE = encoded("red"), encoded("blue")


def identity(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written a minute ago, by a fake clock."""
    path = tmp_path / "a.jpg"
    path.write_bytes(RED)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """Counts the calls of the operating system that look at files."""
    counts = collections.Counter[str]()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return call(*args, **options)

        return count

    for name in ("open", "read", "stat", "lstat", "fstat", "readlink", "getcwd"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return counts


def opened(tmp_path: Path, root: str | None = None) -> ImageReader:
    return ImageReader(digests=FileDigests(tmp_path / "d.sqlite"), root=root)


def found(path: Path, root: str | None = None) -> ImageRef:
    (ref,) = image_refs(path.name, ImageBase(str(path.parent), image_root=root))
    return ref


def touch(path: Path) -> None:
    time.sleep(0.02)  # the clock of ctime may tick only every 10 ms
    path.chmod(0o600)


def replace(path: Path, data: bytes) -> None:
    time.sleep(0.02)
    path.with_name("new").write_bytes(data)
    path.with_name("new").rename(path)


def test_a_known_file_is_not_read_to_identify_it(
    image: Path, tmp_path: Path, calls: collections.Counter[str]
) -> None:
    with opened(tmp_path) as reader:
        (tmp_path / "other").touch()
        reader.identify(ImageRef(path=f"{tmp_path}/other"))  # opens the database
        calls.clear()
        ref = found(image)
        assert reader.identify(ref) == identity(RED)
        prepared = reader.prepare_at_once(ref, SETTINGS)
        assert prepared is not None
        assert prepared.data == RED
        assert calls == {"stat": 1, "open": 2, "fstat": 2, "read": 2}
    with opened(tmp_path) as reader:
        reader.preload_digests([ref])
        calls.clear()
        assert reader.identify(found(image)) == identity(RED)
        assert calls == {"stat": 1}


def test_the_links_of_a_folder_are_resolved_once(
    tmp_path: Path, calls: collections.Counter[str]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "real" / name).write_bytes(RED)
    base = ImageBase(image_root=str(tmp_path / "root"))
    image_refs("a.jpg", base)
    calls.clear()
    (ref,) = image_refs("b.jpg", base)
    assert ref == ImageRef(path=str(tmp_path / "real" / "b.jpg"))
    assert calls == {"lstat": 1, "stat": 1}


def test_a_file_that_is_decoded_is_prepared_once(image: Path, tmp_path: Path) -> None:
    image.write_bytes(encoded("red", "GIF"))
    with opened(tmp_path) as reader:
        ref = found(image)
        assert reader.prepare_at_once(ref, SETTINGS) is None
        assert reader.prepare(ref, SETTINGS).is_converted
        assert reader.prepare_at_once(ref, SETTINGS) is reader.prepare(ref, SETTINGS)


def test_a_large_file_is_not_read_at_once(
    image: Path, tmp_path: Path, calls: collections.Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (local_images, reader_module):
        monkeypatch.setattr(module, "SMALL_BYTES", len(RED) - 1)
    with opened(tmp_path) as reader:
        ref = found(image)
        assert not reader.is_quick(ref)
        assert reader.prepare_at_once(ref, SETTINGS) is None
        assert not calls["read"]
        assert reader.identify(ref) == identity(RED)
        assert reader.prepare(ref, SETTINGS).data == RED


@pytest.mark.parametrize("is_known", [False, True])
def test_a_replaced_file_fails_its_row_for_now(
    image: Path, tmp_path: Path, *, is_known: bool
) -> None:
    if is_known:
        with opened(tmp_path) as reader:
            reader.identify(found(image))
    with opened(tmp_path) as reader:
        ref = found(image)
        assert reader.identify(ref) == identity(RED)
        replace(image, BLUE)
        for method in (reader.prepare, reader.prepare_at_once):
            with pytest.raises(RowError, match="has changed") as raised:
                method(ref, SETTINGS)
            assert raised.value.problem.kind is Kind.CONNECTION  # the next run finds the new one
        prepared = reader.prepare_at_once(found(image), SETTINGS)
        assert prepared is not None
        assert prepared.data == BLUE


def test_a_file_with_other_times_or_permissions_is_the_same(image: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as reader:
        ref = found(image)
        reader.identify(ref)
        touch(image)
        assert reader.prepare(ref, SETTINGS).data == RED


def test_a_link_in_the_root_that_changes_does_not_lead_out_of_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder, data in ((root / "sub", RED), (outside, BLUE)):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(data)
    base = ImageBase(image_root=str(root))
    (ref,) = image_refs("sub/a.jpg", base)
    (root / "sub").rename(root / "old")
    (root / "sub").symlink_to(outside)
    with ImageReader(root=str(root)) as reader:
        for again in (ref, *image_refs("sub/a.jpg", base)):
            for method in (reader.prepare, reader.prepare_at_once):
                with pytest.raises(RowError, match="is not inside the image root"):
                    method(again, SETTINGS)
    with pytest.raises(RowError, match="is not inside the image root"):
        image_refs("sub/a.jpg", ImageBase(image_root=str(root)))


def test_pipes_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    with ImageReader(10) as reader:
        with pytest.raises(RowError, match="is not a regular file"):
            reader.prepare_at_once(ImageRef(path=f"{tmp_path}/pipe.jpg"), SETTINGS)
        ref = found(tmp_path / "large.jpg")
        assert reader.prepare_at_once(ref, SETTINGS) is None
        with pytest.raises(RowError, match="larger than"):
            reader.prepare(ref, SETTINGS)


def test_only_images_without_latency_are_quick(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as reader:
        ref = found(image)
        assert reader.is_quick(ref)
        assert reader.is_quick(ImageRef(data=RED))
        for path in ("s3://bucket/a.jpg", "http://localhost/a.jpg"):
            assert not reader.is_quick(ImageRef(path=path))
            assert reader.prepare_at_once(ImageRef(path=path), SETTINGS) is None
        clock = iter(range(1000))
        with monkeypatch.context() as patch:
            patch.setattr(time, "perf_counter", lambda: next(clock))
            for _ in range(16):
                assert reader.is_quick(ref)
                reader.read(ref)
        assert not reader.is_quick(ref)  # a disk that takes a second for each
        patch.undo()
        monkeypatch.setattr(local_images, "_SLOW_SECONDS", 60)
        reader.read(ref)
        assert reader.is_quick(ref)
