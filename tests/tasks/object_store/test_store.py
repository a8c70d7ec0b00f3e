import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from prefect_imageqa.tasks.errors import (
    AccessDeniedError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from prefect_imageqa.tasks.object_store.filesystems import open_filesystem, store_errors
from prefect_imageqa.tasks.object_store.store import ObjectStore


def test_an_object_is_written_read_replaced_and_deleted(store: ObjectStore) -> None:
    assert not store.exists("parts/a b+ü#.json")
    store.write("parts/a b+ü#.json", b"one")
    store.write("parts/a b+ü#.json", b"two")
    assert store.read("parts/a b+ü#.json") == b"two"
    assert store.exists("parts/a b+ü#.json")
    store.remove("parts/a b+ü#.json")
    store.remove("parts/a b+ü#.json")
    assert not store.exists("parts/a b+ü#.json")


def test_a_missing_object_is_told_from_other_failures(store: ObjectStore) -> None:
    with pytest.raises(ObjectMissingError, match=r"parts/none\.json: not found"):
        store.read("parts/none.json")


def test_list_names_what_read_takes(store: ObjectStore) -> None:
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


def test_an_opened_object_is_read_in_pieces(store: ObjectStore) -> None:
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


def test_one_column_of_a_parquet_object_is_read_without_the_others(
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


def test_what_is_no_parquet_is_not_blamed_on_the_store(store: ObjectStore) -> None:
    store.write("x", b"not parquet at all")
    with store.open("x") as file, pytest.raises(pa.ArrowInvalid):
        pq.read_table(file)


def test_a_check_finds_nothing_and_leaves_nothing(store: ObjectStore) -> None:
    store.check()
    assert store.list() == []


def test_many_threads_and_a_pickled_store(store: ObjectStore) -> None:
    copy: ObjectStore = pickle.loads(pickle.dumps(store))  # noqa: S301
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"t/{i:02}", b"%d" % i), range(40)))
        assert list(pool.map(lambda i: copy.read(f"t/{i:02}"), range(40))) == [
            b"%d" % i for i in range(40)
        ]


def test_readers_never_see_half_an_object(tmp_path: Path) -> None:
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


def test_a_killed_writer_leaves_the_old_object_and_no_new_name(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path / "out"))
    store.write("x", b"old")
    code = (
        "import os, sys; from prefect_imageqa.tasks.object_store.store import ObjectStore\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "ObjectStore(uri=sys.argv[1]).write('x', b'new')"
    )
    killed = subprocess.run([sys.executable, "-c", code, store.uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.read("x") == b"old"
    assert store.list() == ["x"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    with pytest.raises(StoreError, match="not found"):
        store.put("x", tmp_path / "no such file")
    assert list(tmp_path.iterdir()) == []


def test_local_stores_are_absolute_and_know_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = ObjectStore(uri="out")
    assert store.uri == f"{tmp_path}/out"
    assert store.uri_of("a/b") == f"{tmp_path}/out/a/b"
    assert ObjectStore(uri="~/out").uri == f"{tmp_path}/home/out"
    assert store.is_local


def test_an_output_below_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="a part of the path is a file, not a folder"):
        ObjectStore(uri=str(tmp_path / "file" / "out")).write("x", b"")


def test_a_full_disk_is_told() -> None:
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
def test_other_uris_are_refused_with_what_is_supported(uri: str) -> None:
    with pytest.raises(StoreError, match="s3://bucket/prefix") as caught:
        open_filesystem(uri)
    assert "secret" not in str(caught.value)


def test_a_missing_bucket_is_not_a_missing_object(s3: str) -> None:
    store = ObjectStore(uri=f"{s3}-not-there/out")
    for use in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        lambda: store.list(),
        lambda: store.exists("x"),
    ):
        with pytest.raises(StoreError, match="bucket does not exist") as caught:
            use()
        assert not isinstance(caught.value, ObjectMissingError)


def test_a_wrong_key_is_told_without_the_key(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    store = ObjectStore(uri=f"{s3}/out")
    for use in (lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.list("x")):
        with pytest.raises(AccessDeniedError) as caught:
            use()
        assert "wrong-secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_credentials_are_told(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AccessDeniedError, match="set AWS_ACCESS_KEY_ID"):
        ObjectStore(uri=f"{s3}/out").read("x")


def test_an_unknown_profile_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDeniedError, match="profile"):
        ObjectStore(uri=f"{s3}/out").read("x")


def test_an_unreachable_server_is_told_and_may_pass_later(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        ObjectStore(uri=f"{s3}/out").write("x", b"")


def test_local_use_does_not_import_s3fs(tmp_path: Path) -> None:
    code = (
        "import sys; from prefect_imageqa.tasks.object_store.store import ObjectStore\n"
        "ObjectStore(uri=sys.argv[1]).write('x', b'new')\n"
        "sys.exit('s3fs' in sys.modules or 'aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
