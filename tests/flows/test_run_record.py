import json
import logging
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from prefect_imageqa import ImageQAError, VLLMEndpoint, image_qa
from prefect_imageqa.flows import run_record
from prefect_imageqa.flows.progress import RunProgress
from prefect_imageqa.flows.run_record import RowSource, RunRecord
from prefect_imageqa.flows.settings import Columns
from prefect_imageqa.tasks.object_store import ObjectStore
from prefect_imageqa.tasks.storing import write_run


def test_a_run_says_that_it_is_alive_while_a_batch_takes_long(
    start_stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "BEAT_SECONDS", 0.2)
    written: list[tuple[str, int]] = []

    def watch(store: Any, run_id: str, record: Any) -> None:
        written.append((record["state"], record["progress"]["requests"]))
        write_run(store, run_id, record)

    monkeypatch.setattr(run_record, "write_run", watch)
    slow = start_stub(latency=0.2, slots=1)
    image_qa(str(drawn / "dataset.json"), str(tmp_path / "out"), endpoint=slow.url)
    states = [state for state, _ in written]
    assert states[-1] == "completed"
    assert states.count("completed") == 1
    assert len({requests for state, requests in written if state == "running"}) >= 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["summary"]["ok"] == 12


def test_a_run_that_fails_says_why(keyed_stub: Any, drawn: Path, tmp_path: Path) -> None:
    rows = json.loads((drawn / "dataset.json").read_text())
    (drawn / "refused.json").write_text(
        json.dumps([row | {"conversation": "STUB status 401"} for row in rows])
    )
    endpoint = VLLMEndpoint(urls=[keyed_stub.url], api_key=keyed_stub.api_key)
    with pytest.raises(ImageQAError):
        image_qa(str(drawn / "refused.json"), str(tmp_path / "out"), endpoint=endpoint)
    [path] = (tmp_path / "out" / "runs").iterdir()
    record = json.loads(path.read_text())
    assert record["state"] == "failed"
    assert "refuses to answer" in record["error"]
    assert keyed_stub.api_key not in path.read_text()


def test_of_two_runs_that_begin_at_once_one_is_beside_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "get_run_logger", lambda: logging.getLogger("test"))
    chance = random.Random(4)

    def write(store: Any, run_id: str, record: Any) -> None:
        time.sleep(chance.uniform(0, 0.02))  # so that they meet in every order
        write_run(store, run_id, record)

    monkeypatch.setattr(run_record, "write_run", write)
    spec = SimpleNamespace(model="m", model_revision="", prompt="chat", sampling={}, images={})
    prompting: Any = SimpleNamespace(spec=spec, system_prompt="", user_prompt="")
    parsing: Any = SimpleNamespace(label="qa_pairs-v1")
    source = RowSource("d.json", Columns(), None, None)

    def begin(store: ObjectStore, both: Barrier) -> bool:
        record = RunRecord(store, "d.json", source, prompting, parsing, RunProgress())
        both.wait()
        with record.kept():
            beside = record.is_beside()
            both.wait()
        return beside

    with ThreadPoolExecutor(2) as pool:
        for number in range(30):
            store, both = ObjectStore(uri=str(tmp_path / str(number))), Barrier(2, timeout=30)
            runs = [pool.submit(begin, store, both) for _ in range(2)]
            assert sorted(run.result() for run in runs) == [False, True]
