import base64
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.futures import wait
from prefect.serializers import (
    CompressedPickleSerializer,
    JSONSerializer,
    PickleSerializer,
    Serializer,
)
from prefect_imageqa.tasks.errors import RecordCorruptedError, RecordRefusedError
from prefect_imageqa.tasks.object_store.prefect_results import (
    RESULT_SERIALIZER,
    parse_result_record,
)
from prefect_imageqa.tasks.object_store.store import ObjectStore, load_store

PLAIN = RESULT_SERIALIZER.model_dump(mode="json")
METADATA = {
    "storage_key": "k",
    "expiration": None,
    "serializer": PLAIN,
    "prefect_version": "3.8.8",
    "storage_block_id": None,
}


class Touch:
    """Unpickling an instance creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def saved(uri: Path | str) -> ObjectStore:
    """A store that Prefect takes as result storage."""
    ObjectStore(uri=str(uri)).save("results", overwrite=True)
    return load_store("results")


def record(result: str = "[1]", **changes: Any) -> bytes:
    return json.dumps({"metadata": METADATA | changes, "result": result}).encode()


def forged(serializer: "Serializer[Any]", result: str) -> bytes:
    return record(result, serializer=serializer.model_dump(mode="json"))


def attacks(victim: Path) -> dict[str, bytes]:
    """Records that would create the file `victim` if Prefect deserialised them."""
    pickled = base64.encodebytes(cloudpickle.dumps(Touch(victim))).decode()
    compressed = CompressedPickleSerializer().dumps(Touch(victim)).decode()
    instance = {"__class__": "subprocess.Popen", "data": {"args": ["touch", str(victim)]}}
    evil = JSONSerializer(object_encoder=None, object_decoder="os.unlink")
    return {
        "pickle": forged(PickleSerializer(), pickled),
        "compressed/pickle": forged(CompressedPickleSerializer(), compressed),
        "stock JSON decoder": forged(JSONSerializer(), json.dumps(instance)),
        "another object_decoder": forged(evil, json.dumps(instance)),
        "another jsonlib": record(pickled, serializer=PLAIN | {"jsonlib": "cloudpickle"}),
        "loads_kwargs": record(serializer=PLAIN | {"loads_kwargs": {"parse_int": "eval"}}),
        "no serializer": json.dumps({"metadata": {}, "result": pickled}).encode(),
        "older form": json.dumps(
            {"metadata": METADATA, "result": pickled, "serializer": {"type": "pickle"}}
        ).encode(),
        "two serializers": record(pickled).replace(
            b'"serializer":', b'"serializer": {"type": "pickle"}, "serializer":'
        ),
        "two metadata": record(pickled).replace(
            b'"metadata":', b'"metadata": {"serializer": {"type": "pickle"}}, "metadata":'
        ),
        "result is no JSON text": json.dumps({"metadata": METADATA, "result": instance}).encode(),
    }


ATTACKS = sorted(attacks(Path()))


def test_unpickling_would_run_the_attack(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "victim")))  # noqa: S301
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_records_of_other_serializers_are_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordRefusedError) as raised:
        parse_result_record(attacks(tmp_path / "victim")[name])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"metadata": 1, "result": "1"}',
        record("[1"),
        record(""),
        record().decode().encode("utf-16"),
    ],
)
def test_data_that_is_no_record_is_corrupted(data: bytes) -> None:
    with pytest.raises(RecordCorruptedError) as raised:
        parse_result_record(data)
    assert "\n" not in str(raised.value)


def test_a_record_truncated_anywhere_is_corrupted() -> None:
    complete = record('{"a": "ü"}')
    for end in range(len(complete)):
        with pytest.raises(RecordCorruptedError):
            parse_result_record(complete[:end])


@pytest.mark.parametrize(
    "result",
    [[1, 2.5, None], {"a": "ü\ud800"}, "text", {"__class__": "os.system", "data": "true"}],
)
def test_a_result_is_returned_as_plain_data(result: Any) -> None:
    assert parse_result_record(record(json.dumps(result), prefect_version="4.0")) == result


def test_a_record_is_checked_when_it_is_read(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    store.write_path("a", record())
    assert store.read_path("a") == record()
    store.write("b", b"x")
    with pytest.raises(RecordCorruptedError):
        store.read_path("b")


@pytest.mark.usefixtures("prefect_server")
def test_prefect_accepts_only_a_saved_store_as_result_storage(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    untyped_task: Any = task  # no overload accepts both a function and a store
    with pytest.raises(TypeError, match="must be persisted"):
        untyped_task(lambda: 1, result_storage=store)
    untyped_task(lambda: 1, result_storage=saved(tmp_path))


@pytest.mark.usefixtures("prefect_server")
def test_forged_records_are_never_run_and_are_replaced(tmp_path: Path) -> None:
    store = saved(tmp_path / "out")
    victim = tmp_path / "victim"
    calls: list[str] = []
    for name, data in attacks(victim).items():
        store.write(name, data)

    @task(
        persist_result=True,
        cache_key_fn=lambda _, inputs: str(inputs["name"]),
        result_storage=store,
        result_serializer=RESULT_SERIALIZER,
        cache_result_in_memory=False,
    )
    def call(name: str) -> list[str]:
        calls.append(name)
        return [name]

    @flow
    def run() -> list[list[str]]:
        return [call.submit(name).result() for name in ATTACKS]

    assert run() == [[name] for name in ATTACKS]
    assert not victim.exists()
    assert sorted(calls) == ATTACKS
    for name in ATTACKS:
        assert parse_result_record(store.read(name)) == [name]
    assert run() == [[name] for name in ATTACKS]
    assert sorted(calls) == ATTACKS, "the second run reads the results of the first"


@pytest.mark.usefixtures("prefect_server")
def test_results_are_read_on_several_threads(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(f"{s3}/{tmp_path.name}")
    threads: set[int] = set()
    has_two_threads = threading.Event()
    read = ObjectStore.read

    def read_on_two_threads(self: ObjectStore, path: str) -> bytes:
        threads.add(threading.get_ident())
        if len(threads) > 1:
            has_two_threads.set()
        has_two_threads.wait(30)
        return read(self, path)

    monkeypatch.setattr(ObjectStore, "read", read_on_two_threads)

    @task(
        persist_result=True,
        cache_policy=INPUTS,
        result_storage=store,
        result_serializer=RESULT_SERIALIZER,
        cache_result_in_memory=False,
    )
    def double(number: int) -> int:
        return 2 * number

    @flow
    def run() -> list[int]:
        futures = double.map(range(4))
        wait(futures)
        return [future.result() for future in futures]

    assert run() == run() == [2 * number for number in range(4)]
    assert len(threads) > 1
