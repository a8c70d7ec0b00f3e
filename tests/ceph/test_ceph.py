"""Tests on Ceph's S3 gateway, a complete S3 implementation that real clusters use."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs
from cluster import KEY, SECRET, CephCluster
from prefect_imageqa import Limits, ObjectStore, image_qa
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.errors import AccessDeniedError, ObjectMissingError, StoreError

pytestmark = pytest.mark.timeout(600)

BUCKET = "imageqa-tests"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """A cluster with one bucket."""
    with CephCluster(tmp_path_factory.mktemp("ceph")) as cluster:
        s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=cluster.url).mkdir(BUCKET)
        yield cluster


@pytest.fixture
def store(cluster: CephCluster, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A new prefix for each test; the credentials are in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cluster.url)
    return ObjectStore(uri=f"s3://{BUCKET}/{uuid.uuid4().hex}")


def test_objects_are_written_read_listed_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    large = bytes(range(256)) * (1 << 15)  # 8 MiB
    (tmp_path / "large").write_bytes(large)
    store.write("a/one", b"1")
    store.write("a/one", b"11")
    store.write("a/empty", b"")
    store.put("b/large", tmp_path / "large")
    assert store.sizes() == {"a/empty": 0, "a/one": 2, "b/large": len(large)}
    assert (store.read("a/one"), store.read("a/empty")) == (b"11", b"")
    with store.open("b/large") as file:
        file.seek(1000)
        assert file.read(10) == large[1000:1010]
    store.remove("a/one")
    store.remove("a/one")
    assert not store.exists("a/one")
    with pytest.raises(ObjectMissingError):
        store.read("a/one")
    store.check()


def test_readers_never_see_a_partial_object(store: ObjectStore) -> None:
    texts = [b"a" * 9_000_000, b"b" * 6_000_000]
    store.write("x", texts[0])
    with ThreadPoolExecutor(1) as writer:
        written = [writer.submit(store.write, "x", texts[turn % 2]) for turn in range(1, 20)]
        seen = {store.read("x")}
        while not written[-1].done():
            seen.add(store.read("x"))
    assert [done.exception() for done in written] == [None] * len(written)
    assert seen == set(texts)


def test_wrong_credentials_and_buckets_are_reported(
    store: ObjectStore, cluster: CephCluster
) -> None:
    store.write("x", b"x")
    valid = {"access_key_id": KEY, "secret_access_key": SECRET, "endpoint_url": cluster.url}
    for wrong in ({"access_key_id": "unknown"}, {"secret_access_key": "wrong"}):
        client = ObjectStore(uri=store.uri, **(valid | wrong))
        with pytest.raises(AccessDeniedError) as raised:
            client.read("x")
        assert SECRET not in str(raised.value)
    with pytest.raises(StoreError, match="the bucket does not exist"):
        ObjectStore(uri="s3://no-such-bucket/x").write("y", b"")


def test_objects_survive_a_crash_of_the_gateway(store: ObjectStore, cluster: CephCluster) -> None:
    store.write("x", b"k" * 100_000)
    cluster.kill_gateway()
    with pytest.raises(StoreError, match="cannot be reached"):
        store.read("x")
    cluster.start_gateway()
    assert store.read("x") == b"k" * 100_000


@pytest.mark.usefixtures("prefect_server")
def test_a_finished_run_on_ceph_sends_no_requests_again(
    store: ObjectStore, stub: Any, tmp_path: Path
) -> None:
    write_demo_dataset(tmp_path, 12, seed=5)
    for path in (tmp_path / "images").iterdir():
        store.write(f"data/images/{path.name}", path.read_bytes())
    store.write("data/dataset.json", (tmp_path / "dataset.json").read_bytes())

    def run() -> Any:
        dataset, output = f"{store.uri}/data/dataset.json", f"{store.uri}/out"
        return image_qa(dataset, output, endpoint=stub.url, limits=Limits(batch_size=5))

    first, again = run(), run()
    assert (first.ok, first.requests) == (12, 12)
    assert (again.ok, again.requests) == (12, 0)
    assert len(first.to_pandas()) == 12
