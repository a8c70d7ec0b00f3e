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
from prefect_imageqa.tasks.object_store.prefect_results import RESULT_SERIALIZER, record_result
from prefect_imageqa.tasks.object_store.store import ObjectStore

PLAIN = RESULT_SERIALIZER.model_dump(mode="json")
METADATA = {
    "storage_key": "k",
    "expiration": None,
    "serializer": PLAIN,
    "prefect_version": "3.8.8",
    "storage_block_id": None,
}


class Touch:
    """Unpickling one creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def record(result: str = "[1]", **changes: Any) -> bytes:
    return json.dumps({"metadata": METADATA | changes, "result": result}).encode()


def planted(serializer: "Serializer[Any]", result: str) -> bytes:
    return record(result, serializer=serializer.model_dump(mode="json"))


def attacks(victim: Path) -> dict[str, bytes]:
    """Records that would create the file `victim` if Prefect deserialised them."""
    pickled = base64.encodebytes(cloudpickle.dumps(Touch(victim))).decode()
    squeezed = CompressedPickleSerializer().dumps(Touch(victim)).decode()
    made = {"__class__": "subprocess.Popen", "data": {"args": ["touch", str(victim)]}}
    evil = JSONSerializer(object_encoder=None, object_decoder="os.unlink")
    return {
        "pickle": planted(PickleSerializer(), pickled),
        "compressed/pickle": planted(CompressedPickleSerializer(), squeezed),
        "stock JSON decoder": planted(JSONSerializer(), json.dumps(made)),
        "another object_decoder": planted(evil, json.dumps(made)),
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
        "no JSON text": json.dumps({"metadata": METADATA, "result": made}).encode(),
    }


ATTACKS = sorted(attacks(Path()))


def test_the_attack_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "victim")))  # noqa: S301
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_records_of_other_kinds_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordRefusedError) as raised:
        record_result(attacks(tmp_path / "victim")[name])
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
def test_what_is_no_record_is_damaged(data: bytes) -> None:
    with pytest.raises(RecordCorruptedError) as raised:
        record_result(data)
    assert "\n" not in str(raised.value)


def test_a_record_cut_anywhere_is_damaged() -> None:
    whole = record('{"a": "ü"}')
    for end in range(len(whole)):
        with pytest.raises(RecordCorruptedError):
            record_result(whole[:end])


@pytest.mark.parametrize(
    "result",
    [[1, 2.5, None], {"a": "ü\ud800"}, "text", {"__class__": "os.system", "data": "true"}],
)
def test_a_result_comes_back_as_plain_data(result: Any) -> None:
    assert record_result(record(json.dumps(result), prefect_version="4.0")) == result


def test_a_record_is_checked_where_it_is_read(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    store.write_path("a", record())
    assert store.read_path("a") == record()
    store.write("b", b"x")
    with pytest.raises(RecordCorruptedError):
        store.read_path("b")


@pytest.mark.usefixtures("prefect_server")
def test_an_unsaved_store_is_refused_by_prefect_and_a_saved_one_is_not(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    made: Any = task  # its overloads have no call with both a function and a store
    with pytest.raises(TypeError, match="must be persisted"):
        made(lambda: 1, result_storage=store)
    made(lambda: 1, result_storage=store.saved())


@pytest.mark.usefixtures("prefect_server")
def test_no_planted_record_runs_and_each_is_replaced(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path / "out")).saved()
    victim = tmp_path / "victim"
    asked: list[str] = []
    for name, data in attacks(victim).items():
        store.write(name, data)

    @task(
        persist_result=True,
        cache_key_fn=lambda _, given: str(given["name"]),
        result_storage=store,
        result_serializer=RESULT_SERIALIZER,
        cache_result_in_memory=False,
    )
    def answer(name: str) -> list[str]:
        asked.append(name)
        return [name]

    @flow
    def run() -> list[list[str]]:
        return [answer.submit(name).result() for name in ATTACKS]

    assert run() == [[name] for name in ATTACKS]
    assert not victim.exists()
    assert sorted(asked) == ATTACKS
    for name in ATTACKS:
        assert record_result(store.read(name)) == [name]
    assert run() == [[name] for name in ATTACKS]
    assert sorted(asked) == ATTACKS, "the second run reads what the first one stored"


@pytest.mark.usefixtures("prefect_server")
def test_results_are_read_on_several_threads(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(uri=f"{s3}/{tmp_path.name}").saved()
    threads = set()
    read = ObjectStore.read

    def watched(self: ObjectStore, path: str) -> bytes:
        threads.add(threading.get_ident())
        return read(self, path)

    monkeypatch.setattr(ObjectStore, "read", watched)

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
        futures = double.map(range(8))
        wait(futures)
        return [future.result() for future in futures]

    assert run() == run() == [2 * number for number in range(8)]
    assert len(threads) > 1
