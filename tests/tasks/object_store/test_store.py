import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from prefect_imageqa.tasks.errors import (
    AccessDeniedError,
    ObjectCorruptedError,
    ObjectMissingError,
    StoreError,
)
from prefect_imageqa.tasks.object_store.filesystems import open_filesystem
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.object_store.store_errors import store_errors


def test_an_object_is_written_read_replaced_and_deleted(store: ObjectStore) -> None:
    assert not store.exists("parts/a b+ü#.json")
    store.write("parts/a b+ü#.json", b"one")
    store.write("parts/a b+ü#.json", b"two")
    assert store.read("parts/a b+ü#.json") == b"two"
    assert store.exists("parts/a b+ü#.json")
    store.remove("parts/a b+ü#.json")
    store.remove("parts/a b+ü#.json")
    assert not store.exists("parts/a b+ü#.json")


def test_reading_a_missing_object_raises_its_own_error(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError, match=r"parts/none\.json: not found"):
        store.read("parts/none.json")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "proc").symlink_to("/proc/self/environ")
    (tmp_path / "folder").mkdir()
    reasons = {
        "pipe": "is not a regular file",
        "device": "is not a regular file",
        "proc": "is a file of the operating system",
        "folder": "it is a folder",
    }
    for name, reason in reasons.items():
        for read in (store.read, store.open, lambda name: next(store.lines(name))):
            with pytest.raises(StoreError) as caught:
                read(name)
            assert str(caught.value) == f"{tmp_path}/{name}: {reason}"


def test_an_object_is_read_up_to_a_limit(store: ObjectStore) -> None:
    for size in (0, 1, 1 << 20):
        store.write("record", b"x" * size)
        assert len(store.read("record", 1 << 20)) == size
    store.write("record", b"x" * ((1 << 20) + 1))
    with pytest.raises(ObjectCorruptedError, match="record is larger than the 1 MiB that it may"):
        store.read("record", 1 << 20)
    with pytest.raises(ObjectMissingError):
        store.read("none", 1 << 20)


def test_list_returns_names_that_read_accepts(store: ObjectStore) -> None:
    for name in ("parts/b", "parts/a", "parts/deep/c", "parts-of-others/d", "manifest.json"):
        store.write(name, name.encode())
    assert store.list("parts") == ["parts/a", "parts/b", "parts/deep/c"]
    assert [store.read(name).decode() for name in store.list()] == store.list()
    assert len(store.list()) == 5
    assert store.list("none") == []
    assert not store.exists("parts")


def test_put_moves_a_file(store: ObjectStore, tmp_path: Path) -> None:
    export = tmp_path / "export.bin"
    content = os.urandom(12 << 20)
    export.write_bytes(content)
    store.put("export/qa.bin", export)
    assert store.read("export/qa.bin") == content
    assert not export.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "", "a//b", "a/", "./a", "\0"])
def test_names_stay_inside_the_store(store: ObjectStore, name: str) -> None:
    with pytest.raises(StoreError, match="not the name of an object"):
        store.write(name, b"x")
    with pytest.raises(StoreError, match="not the name of an object"):
        store.read(name)


def test_sizes_are_those_of_the_objects(store: ObjectStore) -> None:
    store.write("parts/a", b"123")
    store.write("parts/deep/b", b"")
    store.write("c", b"1")
    assert store.sizes("parts") == {"parts/a": 3, "parts/deep/b": 0}
    assert store.sizes() == {"parts/a": 3, "parts/deep/b": 0, "c": 1}
    assert store.sizes("none") == {}
    assert store.sizes(deep=False) == {"c": 1}
    assert store.sizes("parts", deep=False) == {"parts/a": 3}
    assert store.sizes("none", deep=False) == {}


def test_more_objects_are_listed_than_a_reply_of_s3_has(store: ObjectStore) -> None:
    names = [f"many/{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.write(name, b"x"), names))
    assert store.sizes("many") == dict.fromkeys(names, 1)
    assert store.list() == names


def test_an_open_object_can_be_read_in_parts(store: ObjectStore) -> None:
    store.write("x", bytes(range(200)))
    with store.open("x") as file:
        assert (file.seek(-10, os.SEEK_END), file.read(4), file.tell()) == (
            190,
            b"\xbe\xbf\xc0\xc1",
            194,
        )
        file.seek(1)
        assert file.read(2) == b"\x01\x02"
        assert file.read() == bytes(range(3, 200))
        assert file.read(1) == b""
    with pytest.raises(ObjectMissingError):
        store.open("none")


def test_reading_one_parquet_column_does_not_fetch_the_others(
    s3: str, tmp_path: Path, s3_proxy: FaultProxy
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}", endpoint_url=s3_proxy.url)
    table = pa.table({"small": range(1000), "large": [os.urandom(4000) for _ in range(1000)]})
    pq.write_table(table, tmp_path / "t.parquet")
    store.put("t.parquet", tmp_path / "t.parquet")
    before = s3_proxy.bytes_sent
    with store.open("t.parquet") as file:
        assert pq.read_table(file, columns=["small"]).column(0).to_pylist() == list(range(1000))
    assert s3_proxy.bytes_sent - before < 200_000


def test_an_invalid_parquet_file_is_not_a_store_error(store: ObjectStore) -> None:
    store.write("x", b"not parquet at all")
    with store.open("x") as file, pytest.raises(pa.ArrowInvalid):
        pq.read_table(file)


def test_the_check_leaves_no_objects_behind(store: ObjectStore) -> None:
    store.check()
    assert store.list() == []


def test_a_pickled_store_works_with_many_threads(store: ObjectStore) -> None:
    copy: ObjectStore = pickle.loads(pickle.dumps(store))  # noqa: S301
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"t/{i:02}", b"%d" % i), range(40)))
        assert list(pool.map(lambda i: copy.read(f"t/{i:02}"), range(40))) == [
            b"%d" % i for i in range(40)
        ]


def test_readers_never_see_a_partial_object(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path / "out"))
    texts = [b"a" * 3_000_000, b"b" * 1_000_000]
    store.write("x", texts[0])
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.write("x", texts[turn % 2])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = {store.read("x") for _ in range(30)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(texts)


@pytest.fixture(scope="module")
def killed_writer(
    tmp_path_factory: pytest.TempPathFactory,
) -> "tuple[ObjectStore, subprocess.CompletedProcess[str]]":
    """A process that writes an object, prints its imports, and dies while replacing it."""
    store = ObjectStore(uri=str(tmp_path_factory.mktemp("killed") / "out"))
    code = (
        "import os, sys; from prefect_imageqa.tasks.object_store.store import ObjectStore\n"
        "store = ObjectStore(uri=sys.argv[1])\n"
        "store.write('x', b'old')\n"
        "print(*sys.modules, flush=True)\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "store.write('x', b'new')"
    )
    command = [sys.executable, "-c", code, store.uri]
    return store, subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_leaves_the_old_object_and_no_new_name(
    killed_writer: "tuple[ObjectStore, subprocess.CompletedProcess[str]]",
) -> None:
    store, writer = killed_writer
    assert writer.returncode == -signal.SIGKILL
    assert store.read("x") == b"old"
    assert store.list() == ["x"]


def test_a_local_store_does_not_import_s3fs(
    killed_writer: "tuple[ObjectStore, subprocess.CompletedProcess[str]]",
) -> None:
    modules = set(killed_writer[1].stdout.split())
    assert "prefect_imageqa.tasks.object_store.store" in modules
    assert {"s3fs", "aiohttp"}.isdisjoint(modules)


def test_a_failed_write_leaves_no_files(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    with pytest.raises(StoreError, match="not found"):
        store.put("x", tmp_path / "no such file")
    assert list(tmp_path.iterdir()) == []


def test_local_paths_are_made_absolute_and_expand_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = ObjectStore(uri="out")
    assert store.uri == f"{tmp_path}/out"
    assert store.uri_of("a/b") == f"{tmp_path}/out/a/b"
    assert ObjectStore(uri="~/out").uri == f"{tmp_path}/home/out"
    assert store.is_local


def test_a_store_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="a part of the path is a file, not a folder"):
        ObjectStore(uri=str(tmp_path / "file" / "out")).write("x", b"")


def test_a_full_disk_is_reported() -> None:
    with (
        pytest.raises(StoreError, match=r"out/x: the disk is full"),
        store_errors("out/x"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


@pytest.mark.parametrize(
    "uri",
    ["gs://bucket/x", "http://host/x", "file:///tmp/x", "s3://", "s3://key:secret@bucket", "", " "],
)
def test_other_uris_are_rejected_with_the_supported_ones(uri: str) -> None:
    with pytest.raises(StoreError, match="s3://bucket/prefix") as caught:
        open_filesystem(uri)
    assert "secret" not in str(caught.value)


def test_a_missing_bucket_is_not_a_missing_object(s3: str) -> None:
    store = ObjectStore(uri=f"{s3}-not-there/out")
    for action in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        lambda: store.list(),
        lambda: store.exists("x"),
    ):
        with pytest.raises(StoreError, match="bucket does not exist") as caught:
            action()
        assert not isinstance(caught.value, ObjectMissingError)


def test_a_wrong_secret_is_reported_without_showing_it(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = ObjectStore(uri=f"{s3}/out")
    for action in (lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.list()):
        with pytest.raises(AccessDeniedError) as caught:
            action()
        assert "wrong-secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_credentials_are_reported(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AccessDeniedError, match="set AWS_ACCESS_KEY_ID"):
        ObjectStore(uri=f"{s3}/out").read("x")


def test_an_unknown_profile_is_reported(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "unknown")
    with pytest.raises(AccessDeniedError, match="profile"):
        ObjectStore(uri=f"{s3}/out").read("x")


def test_a_stamp_changes_with_the_object(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError):
        store.stamp("a/b")
    store.write("a/b", b"one")
    first = store.stamp("a/b")
    assert store.stamp("a/b") == first
    store.write("a/b", b"two")
    assert store.stamp("a/b") != first


def test_a_stamp_shows_an_edit_that_keeps_size_and_times(local: ObjectStore) -> None:
    local.write("a", b"one")
    path, stamp = Path(local.uri_of("a")), local.stamp("a")
    times = path.stat()
    time.sleep(0.02)  # the clock of ctime may tick only every 10 ms
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert local.stamp("a") != stamp


def test_a_stamp_needs_no_etag(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SimpleNamespace(info=lambda _: {"size": 3, "LastModified": "now"})
    monkeypatch.setattr(ObjectStore, "_call", lambda _, path, action: action(server, path))
    assert ObjectStore(uri="s3://bucket/out").stamp("a") == "3 now"
