import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_proxy import FaultProxy, s3_error
from PIL import Image
from prefect_imageqa.tasks.errors import StoreUnavailableError
from prefect_imageqa.tasks.images import local_images, untrusted_files
from prefect_imageqa.tasks.images import reader as reader_module
from prefect_imageqa.tasks.images.decoding_budget import MemoryBudget
from prefect_imageqa.tasks.images.file_digests import FileDigests
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.images.references import ImageBase, image_refs
from prefect_imageqa.tasks.object_store import patience, regular_files
from prefect_imageqa.tasks.object_store import s3 as s3_connection
from prefect_imageqa.tasks.object_store.credentials import S3Credentials
from prefect_imageqa.tasks.object_store.filesystems import open_filesystem
from prefect_imageqa.tasks.object_store.patience import Patience
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import ImageRef, Kind, RowError

Method = Callable[[ImageReader, ImageRef], bytes | str]
METHODS = pytest.mark.parametrize("method", [ImageReader.read, ImageReader.identify])


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def problem_of(method: Method, ref: ImageRef, max_bytes: int = 100) -> RowError:
    with ImageReader(max_bytes) as reader, pytest.raises(RowError) as caught:
        method(reader, ref)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written a minute ago, by a fake clock."""
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    return path


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the paths of the files that were read."""
    paths: list[str] = []
    read = untrusted_files.read_local

    def record(path: str, limit: int, root: str | None) -> Any:
        paths.append(path)
        return read(path, limit, root)

    monkeypatch.setattr(local_images, "read_local", record)
    return paths


def test_the_same_content_has_the_same_identity(tmp_path: Path) -> None:
    for name in ("a.png", "copy.png"):
        (tmp_path / name).write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    base = ImageBase(str(tmp_path))
    with ImageReader(1) as reader:
        for value in ("a.png", "copy.png", b"a", {"bytes": b"a"}, "data:;base64,YQ=="):
            (ref,) = image_refs(value, base)
            assert reader.identify(ref) == sha256(b"a")
            assert reader.read(ref) == b"a"
        (ref,) = image_refs("b.png", base)
        assert reader.identify(ref) == sha256(b"b")


@METHODS
def test_a_too_large_image_is_not_read(method: Method, tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    for ref in (ImageRef(path=f"{tmp_path}/huge.png"), ImageRef(data=b"x" * 11)):
        error = problem_of(method, ref, max_bytes=10)
        assert error.problem.kind is Kind.IMAGE_TOO_LARGE
        assert "larger than the limit" in str(error)


@METHODS
def test_only_regular_files_are_read(method: Method, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    paths = [f"{tmp_path}/{name}" for name in ("pipe.png", "loop.png", "missing.png", "")]
    for path in [*paths, "/dev/zero"]:
        assert problem_of(method, ImageRef(path=path)).problem.kind is Kind.IMAGE_MISSING


@pytest.mark.parametrize(
    "path",
    ["/proc/self/pagemap", "/proc/self/environ", "/proc/cpuinfo", "/sys/kernel/uevent_seqnum"],
)
@METHODS
def test_no_files_of_pseudo_file_systems_are_read(
    method: Method, path: str, tmp_path: Path
) -> None:
    (tmp_path / "link.png").symlink_to(path)
    for name in (path, str(tmp_path / "link.png")):
        error = problem_of(method, ImageRef(path=name), max_bytes=10**9)
        assert error.problem.kind is Kind.IMAGE_REFUSED
        assert "is a file of the operating system" in str(error)


@METHODS
def test_what_is_read_counts_and_not_the_size_that_is_stated(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 1000)
    fstat = os.fstat

    def state_nothing(number: int) -> os.stat_result:
        info = fstat(number)
        return os.stat_result((*info[:6], 0, *info[7:]), {"st_dev": info.st_dev})

    monkeypatch.setattr(os, "fstat", state_nothing)
    ref = ImageRef(path=f"{tmp_path}/a.png")
    with ImageReader(1000) as reader:
        assert method(reader, ref) in (b"x" * 1000, sha256(b"x" * 1000))
    with ImageReader(999) as reader, pytest.raises(RowError, match="larger than the limit"):
        method(reader, ref)


def test_scaled_images_are_counted_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    depths = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    Image.fromarray(depths).save(tmp_path / "depth.png")
    Image.fromarray(depths // 2).save(tmp_path / "other.png")
    Image.fromarray(depths * 16).save(tmp_path / "deep.png")
    with ImageReader() as reader:
        for name in ("depth.png", "depth.png", "other.png", "deep.png"):
            reader.prepare(ImageRef(path=f"{tmp_path}/{name}"), ImageSettings())
        assert not caplog.records
    reader.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("2 images with grey values of more than 8 bits")


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> MemoryBudget:
    """100 bytes for files of over 5 bytes."""
    files = MemoryBudget(100)
    for module in (reader_module, local_images):
        monkeypatch.setattr(module, "FILES", files)
        monkeypatch.setattr(module, "SMALL_BYTES", 5)
    return files


def test_large_files_wait_while_others_are_held(budget: MemoryBudget, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"x" * 60)
    (tmp_path / "small.png").write_bytes(b"12345")
    refs = [ImageRef(path=f"{tmp_path}/{name}.png") for name in ("large", "small")]

    def length(ref: ImageRef) -> int:
        with reader.reading(ref) as data:
            return len(data)

    with ImageReader() as reader:
        with reader.reading(refs[0]):
            waiting = [reader.executor.submit(length, refs[0]) for _ in range(3)]
            while budget.waiting < 3:
                time.sleep(0.001)
            assert reader.executor.submit(length, refs[1]).result(60) == 5
            assert not any(future.done() for future in waiting)
        assert [future.result(60) for future in waiting] == [60] * 3
    with ImageReader(59) as reader, pytest.raises(RowError, match="larger than the limit"):
        length(refs[0])


def test_large_images_on_s3_are_read_within_the_budget(
    budget: MemoryBudget, s3: str, tmp_path: Path
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("a.png", b"x" * 60)
    (ref,) = image_refs("a.png", ImageBase(store.uri))
    with ImageReader(60) as reader, reader.reading(ref) as data:
        assert data == b"x" * 60
        assert budget.free == 40
    assert budget.free == 100


def test_an_unchanged_file_is_read_once(
    old_file: Path, tmp_path: Path, files_read: list[str]
) -> None:
    ref = ImageRef(path=str(old_file))
    for _ in range(3):  # runs
        with ImageReader(9, digests=FileDigests(tmp_path / "d.sqlite")) as reader:
            assert [reader.identify(ref) for _ in range(3)] == [sha256(b"a")] * 3
    assert len(files_read) == 1
    with ImageReader(9) as reader:
        assert reader.identify(ref) == sha256(b"a")
    assert len(files_read) == 2


def test_a_changed_file_is_read_again(
    old_file: Path, tmp_path: Path, files_read: list[str]
) -> None:
    ref = ImageRef(path=str(old_file))
    info = old_file.stat()
    with ImageReader(9, digests=FileDigests(tmp_path / "d.sqlite")) as reader:
        assert reader.identify(ref) == sha256(b"a")
        time.sleep(0.02)
        (tmp_path / "new.png").write_bytes(b"b")
        (tmp_path / "new.png").rename(old_file)
        os.utime(old_file, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert reader.identify(ref) == sha256(b"b")
        old_file.unlink()
        with pytest.raises(RowError):
            reader.identify(ref)
    assert len(files_read) == 2


def test_the_digest_of_a_just_changed_file_is_not_cached(
    tmp_path: Path, files_read: list[str]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    with ImageReader(9, digests=FileDigests(tmp_path / "d.sqlite")) as reader:
        for _ in range(2):
            assert reader.identify(ImageRef(path=str(path))) == sha256(b"a")
    assert len(files_read) == 2


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_not_cached(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = regular_files._read

    time.sleep(0.02)  # the clock of ctime may tick only every 10 ms

    def change_first(descriptor: int, size: int, limit: int) -> bytes | None:
        old_file.write_bytes(b"b")
        return read(descriptor, size, limit)

    ref = ImageRef(path=str(old_file))
    with ImageReader(9, digests=FileDigests(tmp_path / "d.sqlite")) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(regular_files, "_read", change_first)
            assert reader.identify(ref) == sha256(b"b")
        old_file.write_bytes(b"c")
        assert reader.identify(ref) == sha256(b"c")


def test_a_file_with_a_cached_digest_can_still_be_too_large(old_file: Path, tmp_path: Path) -> None:
    old_file.write_bytes(b"12345")
    ref = ImageRef(path=str(old_file))
    with ImageReader(5, digests=FileDigests(tmp_path / "d.sqlite")) as reader:
        reader.identify(ref)
    with (
        ImageReader(4, digests=FileDigests(tmp_path / "d.sqlite")) as reader,
        pytest.raises(RowError, match="larger than"),
    ):
        reader.identify(ref)


def test_without_a_usable_database_files_are_hashed(
    old_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d.sqlite").write_bytes(b"not a database" * 1000)
    refs = [ImageRef(path=str(old_file))] * 20
    with (
        caplog.at_level(logging.WARNING),
        ImageReader(9, digests=FileDigests(tmp_path / "d.sqlite")) as reader,
        ThreadPoolExecutor(4) as pool,
    ):
        assert set(pool.map(reader.identify, refs)) == {sha256(b"a")}
    assert len(caplog.records) == 1


def test_nothing_is_started_before_it_is_needed(old_file: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with ImageReader(9, digests=FileDigests(tmp_path / "new" / "d.sqlite")) as reader:
        assert reader.read(ImageRef(path=str(old_file))) == b"a"
        assert reader.identify(ImageRef(data=b"a")) == sha256(b"a")
        assert not set(threading.enumerate()) - before
        assert not (tmp_path / "new").exists()
        with pytest.raises(RowError):
            reader.read(ImageRef(path="http://127.0.0.1:1/"))
        (thread,) = set(threading.enumerate()) - before
    assert not thread.is_alive()


def test_images_on_s3(s3: str, tmp_path: Path) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("img/a b#ü.png", b"12345")
    store.write("img/empty.png", b"")
    (ref,) = image_refs("img/a b#ü.png", ImageBase(store.uri))
    (empty,) = image_refs("img/empty.png", ImageBase(store.uri))
    tag = hashlib.md5(b"12345", usedforsecurity=False).hexdigest()
    with ImageReader(5) as reader:
        assert reader.read(ref) == b"12345"
        assert reader.identify(ref) == f"etag:{tag}:5"
        assert reader.read(empty) == b""
    for method in (ImageReader.read, ImageReader.identify):
        assert problem_of(method, ref, max_bytes=4).problem.kind is Kind.IMAGE_TOO_LARGE


def test_an_object_on_s3_is_found_under_another_spelling(s3: str, tmp_path: Path) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("u\u0308 a.png", b"12345")
    with ImageReader(5) as reader:
        for path in ("\u00fc a.png", "u\u0308%20a.png"):
            (ref,) = image_refs(path, ImageBase(store.uri))
            assert reader.read(ref) == b"12345"
            assert reader.identify(ref).endswith(":5")
    (out,) = image_refs("x/%2e%2e/u\u0308 a.png", ImageBase(store.uri))
    assert problem_of(ImageReader.read, out).problem.kind is Kind.IMAGE_MISSING


@METHODS
def test_images_on_s3_are_read_with_the_given_credentials(
    method: Method, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("a.png", b"12345")
    ref = ImageRef(path=f"{store.uri}/a.png")
    credentials = S3Credentials(
        "test-key", "test-secret", endpoint_url=os.environ["AWS_ENDPOINT_URL"]
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert problem_of(method, ref).problem.kind is Kind.CONNECTION
    with ImageReader(5, credentials=credentials) as reader:
        assert method(reader, ref)


@pytest.mark.parametrize(
    "path", ["img/missing.png", "img", "s3://imageqa-no-bucket/a.png", "s3://b@d/x"]
)
@METHODS
def test_a_missing_image_on_s3_fails_only_its_row(
    method: Method, s3: str, tmp_path: Path, path: str
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    store.write("img/a.png", b"12345")
    (ref,) = image_refs(path, ImageBase(store.uri))
    assert problem_of(method, ref).problem.kind is Kind.IMAGE_MISSING


def test_s3_that_denies_access_fails_only_the_row(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    error = problem_of(ImageReader.identify, ImageRef(path=f"{s3}/a.png"))
    assert error.problem.kind is Kind.CONNECTION


@METHODS
def test_s3_that_does_not_answer_is_no_problem_of_the_row(
    method: Method, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_connection, "_FIRST_BACKOFF", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with ImageReader(100) as reader, pytest.raises(StoreUnavailableError, match="refused"):
        method(reader, ImageRef(path=f"{s3}/a.png"))


@METHODS
def test_an_object_that_s3_never_delivers_fails_only_its_row(
    method: Method, s3: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_connection, "_FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.1)
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    for name in ("bad.png", "good.png"):
        store.write(name, b"12345")
    s3_proxy.set_rules([s3_error(500, "InternalError", path="bad")])
    credentials = S3Credentials(endpoint_url=s3_proxy.url, patience=Patience(60))
    with ImageReader(5, credentials=credentials) as reader, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(method, reader, ImageRef(path=store.uri_of("bad.png")))
        while not waiting.done():
            method(reader, ImageRef(path=store.uri_of("good.png")))
        error = waiting.exception()
    assert isinstance(error, RowError)
    assert error.problem.kind is Kind.CONNECTION
    assert "the S3 server failed" in error.problem.message


def test_a_closed_reader_fetches_nothing() -> None:
    reader = ImageReader(1000)
    reader.close()
    reader.close()
    with pytest.raises(RowError, match="the image reader is closed") as raised:
        reader.read(ImageRef("https://example.com/x.png"))
    assert raised.value.problem.kind is Kind.CONNECTION


def test_a_link_that_changes_after_the_check_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "sub", outside):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(folder.name.encode())
    (ref,) = image_refs("sub/a.png", ImageBase(image_root=str(root)))
    with ImageReader(1000, root=str(root)) as reader:
        assert reader.read(ref) == b"sub"
        (root / "sub").rename(root / "old-sub")
        (root / "sub").symlink_to(outside)
        for method in (reader.read, reader.identify):
            with pytest.raises(RowError, match="is not inside the image root") as raised:
                method(ref)
            assert raised.value.problem.kind is Kind.IMAGE_REFUSED


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, Kind.CONNECTION),
        (errno.ESTALE, Kind.CONNECTION),
        (errno.EMFILE, Kind.CONNECTION),
        (errno.ENOENT, Kind.IMAGE_MISSING),
        (errno.EACCES, Kind.IMAGE_MISSING),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
@METHODS
def test_local_io_errors_are_transient_or_permanent(
    method: Method, number: int, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    assert problem_of(method, ImageRef(path=str(path))).problem.kind is kind


def test_images_on_s3_without_etags_are_identified_by_content(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}")
    for name in ("a", "b"):
        store.write(name, name.encode())
    filesystem, _ = open_filesystem(store.uri)
    original = filesystem.info
    monkeypatch.setattr(filesystem, "info", lambda key: {**original(key), "ETag": ""})
    with ImageReader(10) as reader:
        found = [reader.identify(ImageRef(path=store.uri_of(name))) for name in ("a", "b")]
    assert found == [sha256(b"a"), sha256(b"b")]
