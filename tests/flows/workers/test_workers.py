"""Runs on several workers: the same exports as without, every row asked once, through kills."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_proxy import FaultProxy
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import (
    Asking,
    Caching,
    Checks,
    Limits,
    ObjectStore,
    VLLMEndpoint,
    Workers,
    image_qa,
)
from prefect_imageqa.flows.workers import member
from prefect_imageqa.flows.workers.job import WorkerJob
from prefect_imageqa.flows.workers.worker import work
from prefect_imageqa.serving.errors import EndpointError, ImageQAError
from prefect_imageqa.tasks.exporting.verify_output import verify

COMMAND = Path(sys.executable).with_name("prefect-imageqa")
ROWS = 400
BATCH_SIZE, IN_FLIGHT = 32, 32
AT_RISK = 2 * (IN_FLIGHT + 2 * BATCH_SIZE)
"""Rows of the batches that two workers may have at any moment."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_imageqa.tasks.object_store.patience.MAX_PAUSE", 0.5)


@pytest.fixture
def dataset(write_rows: Callable[[list[str]], str]) -> str:
    """The stub answers each row with its own number."""
    answer = "STUB text **Question:** Which row?\n**Answer:** Row {}."
    return write_rows([answer.format(row) for row in range(ROWS)])


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    """A file: without it, the last row of `held` is not answered."""
    return tmp_path / "go-on"


@pytest.fixture
def held(dataset: str, go_on: Path) -> str:
    """The same rows, but the run does not end before a test allows it."""
    rows = json.loads(Path(dataset).read_text())
    rows[-1]["conversation"] = f"STUB until {go_on} Row {ROWS - 1}."
    Path(dataset).write_text(json.dumps(rows))
    return dataset


def limits(**changed: Any) -> Limits:
    return Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT, **changed)


def two(engine: str) -> Workers:
    return Workers(workers=2, engine=engine)


def exports(output: str) -> dict[str, bytes]:
    store = ObjectStore(uri=output)
    return {name: store.read(name) for name in ("qa.jsonl", "pairs.parquet", "quarantine.jsonl")}


def check_finished(output: str, dataset: str) -> None:
    """Every row once, in order, with its own answer; nothing is left of the workers."""
    rows = [json.loads(line) for line in ObjectStore(uri=output).read("qa.jsonl").splitlines()]
    assert [row["conversation"] for row in rows] == [
        row["conversation"] for row in json.loads(Path(dataset).read_text())
    ]
    assert [row["output"].rpartition("Row ")[2] for row in rows[:-1]] == [
        f"{number}." for number in range(ROWS - 1)
    ]
    store = ObjectStore(uri=output)
    assert not store.list("workers")
    assert not verify(store).problems


def command(dataset: str, output: str, url: str, *more: str) -> "subprocess.Popen[str]":
    flags = ["--output", output, "--endpoint", url, "--engine", "processes", "--workers", "2"]
    flags += ["--batch-size", str(BATCH_SIZE), "--max-in-flight", str(IN_FLIGHT)]
    return subprocess.Popen(
        [str(COMMAND), "run", dataset, *flags, "--no-image-proof", *more],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker_processes(run: int) -> list[psutil.Process]:
    children = filter(is_running, psutil.Process(run).children())
    return [each for each in children if "prefect_imageqa.flows.workers.process" in each.cmdline()]


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_the_exports_are_those_of_a_run_without_workers(
    engine: str, dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub = start_stub(latency=0.05)
    alone, output = str(tmp_path / "alone"), str(tmp_path / "out")
    expected = image_qa(dataset, alone, endpoint=stub.url, limits=limits())
    before = stub.stats()["requests"]
    summary = image_qa(dataset, output, endpoint=stub.url, limits=limits(), workers=two(engine))
    assert stub.stats()["requests"] - before == ROWS
    assert (summary.rows, summary.ok, summary.requests) == (ROWS, ROWS, ROWS)
    assert summary.prompt_tokens == expected.prompt_tokens
    assert exports(output) == exports(alone)
    check_finished(output, dataset)

    again = image_qa(dataset, output, endpoint=stub.url, limits=limits(), workers=two(engine))
    assert (again.reused, again.requests) == (ROWS, 0)


def test_on_s3(s3: str, dataset: str, start_stub: Any) -> None:
    stub, output = start_stub(), f"{s3}/workers"
    image_qa(dataset, output, endpoint=stub.url, limits=limits(), workers=two("threads"))
    assert stub.stats()["requests"] == ROWS
    check_finished(output, dataset)


def test_each_pass_of_a_table_in_memory_is_given_to_workers(
    told: dict[str, Any], start_stub: Any, tmp_path: Path
) -> None:
    stub, summaries = start_stub(), []
    told["dataset"]["image"] = [Path(path).read_bytes() for path in told["dataset"]["image"]]
    told |= {"endpoint": stub.url, "asking": Asking(answer="separately")}
    told |= {"checks": Checks(names=("consistency", "form"))}
    for name, workers in (("alone", Workers()), ("out", two("threads"))):
        summary = image_qa(**told | {"output": str(tmp_path / name), "workers": workers})
        summaries.append(summary.model_dump(exclude={"seconds", "output"}, mode="json"))
    assert summaries[0] == summaries[1]
    assert (summaries[0]["pairs"], summaries[0]["unanswered"]) == (3, 1)
    assert exports(str(tmp_path / "out")) == exports(str(tmp_path / "alone"))


def test_an_outage_of_the_output_loses_no_worker(
    s3: str,
    s3_proxy: FaultProxy,
    held: str,
    go_on: Path,
    start_stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(member, "SILENT_SECONDS", 6.0)
    stub = start_stub(latency=0.2)
    direct = ObjectStore(uri=f"{s3}/outage", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)

    def go_away() -> None:
        wait_until(lambda: bool(direct.list("pairs/parts")))
        with s3_proxy.away():
            go_on.touch()
            time.sleep(8)

    outage = threading.Thread(target=go_away)
    outage.start()
    image_qa(held, direct.uri, endpoint=stub.url, limits=limits(), workers=two("threads"))
    outage.join()
    assert "is lost" not in caplog.text
    assert "answers again after" in caplog.text
    assert stub.stats()["requests"] == ROWS
    check_finished(direct.uri, held)


def test_there_are_no_more_workers_than_requests_in_flight(
    write_rows: Callable[[list[str]], str],
    start_stub: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub, output = start_stub(latency=0.2), tmp_path / "out put"
    summary = image_qa(
        write_rows([f"Row {row}?" for row in range(5)]),
        str(output),
        endpoint=stub.url,
        limits=Limits(batch_size=1, max_in_flight=2),
        workers=Workers(workers=8),
    )
    assert "max_in_flight 2: only 2 of 8 workers are started" in caplog.text
    assert summary.ok == stub.stats()["requests"] == 5
    assert not (output / "workers").exists()


def test_what_is_asked_again_is_what_a_run_would_ask_again(
    write_rows: Callable[[list[str]], str], start_stub: Any, tmp_path: Path
) -> None:
    stub = start_stub()
    dataset = write_rows([*(f"Row {row}?" for row in range(30)), "STUB finish length"])

    def asked(name: str, **caching: Any) -> int:
        before = stub.stats()["requests"]
        summary = image_qa(
            dataset,
            str(tmp_path / name),
            endpoint=stub.url,
            limits=Limits(batch_size=8),
            caching=Caching(cache=str(tmp_path / "cache"), **caching),
            workers=two("threads"),
        )
        assert (summary.rows, summary.quarantined) == (31, 1)
        assert summary.requests == stub.stats()["requests"] - before
        return summary.requests

    first = asked("a")
    assert first >= 31
    assert asked("b") == 0
    assert asked("a", retry_quarantined=True) == first - 30
    assert asked("a", refresh=True) == first


@pytest.mark.workers
def test_a_row_that_crashes_the_server_is_found(
    write_rows: Callable[[list[str]], str], start_stub: Any, tmp_path: Path
) -> None:
    stub = start_stub("--respawn=0.3", latency=0.1)
    dataset = write_rows(["STUB die" if row == 40 else f"Row {row}?" for row in range(80)])
    told = Limits(batch_size=16, max_in_flight=16)
    output = str(tmp_path / "out")
    summary = image_qa(dataset, output, endpoint=stub.url, limits=told, workers=two("threads"))
    assert (summary.rows, summary.ok, summary.reasons) == (80, 79, {"crash": 1})


def test_a_worker_that_hangs_is_replaced(
    held: str,
    go_on: Path,
    start_stub: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(member, "SILENT_SECONDS", 4.0)
    stub, output, stopped = start_stub(latency=0.5), str(tmp_path / "out"), []

    def stop_one() -> None:
        wait_until(lambda: stub.stats()["requests"] > 3 * IN_FLIGHT)
        stopped.append(worker_processes(os.getpid())[0])
        stopped[0].suspend()
        wait_until(lambda: "is lost" in caplog.text)
        go_on.touch()

    hanging = threading.Thread(target=stop_one)
    hanging.start()
    image_qa(held, output, endpoint=stub.url, limits=limits(), workers=two("processes"))
    hanging.join()
    assert not is_running(stopped[0])
    assert "is lost (it has said nothing for" in caplog.text
    assert ROWS <= stub.stats()["requests"] <= ROWS + AT_RISK
    check_finished(output, held)


def test_killed_workers_are_replaced(
    held: str, go_on: Path, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=0.5), str(tmp_path / "out")
    run = command(held, output, stub.url)
    wait_until(lambda: stub.stats()["requests"] > IN_FLIGHT)
    first = worker_processes(run.pid)
    assert len(first) == 2
    first[0].send_signal(signal.SIGKILL)
    wait_until(lambda: len(worker_processes(run.pid)) == 2 and not is_running(first[0]))
    first[1].send_signal(signal.SIGTERM)  # it stores what it has
    go_on.touch()
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert "is lost" in said
    assert ROWS <= stub.stats()["requests"] <= ROWS + AT_RISK
    check_finished(output, held)


def test_a_killed_run_ends_its_workers(
    held: str, go_on: Path, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=0.5), str(tmp_path / "out")
    run = command(held, output, stub.url)
    wait_until(lambda: stub.stats()["requests"] > IN_FLIGHT)
    workers = worker_processes(run.pid)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until(lambda: not any(map(is_running, workers)))
    go_on.touch()
    said, _ = (again := command(held, output, stub.url)).communicate(timeout=120)
    assert again.returncode == 0, said
    assert stub.stats()["requests"] <= ROWS + AT_RISK
    check_finished(output, held)


def test_a_cancelled_run_stores_what_its_workers_have(
    dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=2.0), str(tmp_path / "out")
    run = command(dataset, output, stub.url)
    wait_until(lambda: stub.stats()["requests"] >= IN_FLIGHT * 2)
    workers = worker_processes(run.pid)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode not in (0, None), said
    assert not any(map(is_running, workers))
    stored = ObjectStore(uri=output).list("pairs/parts")
    assert stored
    assert stub.stats()["requests"] < ROWS


def test_workers_that_cannot_work_end_the_run_with_their_reason(
    dataset: str, keyed_stub: Any, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    block = VLLMEndpoint(urls=[keyed_stub.url], api_key="stub-api-key-5f2c")
    with pytest.raises(ImageQAError, match="save the vllm-endpoint block and give its name"):
        image_qa(dataset, output, endpoint=block, workers=two("processes"))
    store = ObjectStore(uri="s3://bucket", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ImageQAError, match="save the image-qa-store block and give its name"):
        image_qa(dataset, output, endpoint=keyed_stub.url, store=store, workers=two("threads"))
    with pytest.raises(ImageQAError, match="give --endpoint, or leave out --workers"):
        image_qa(dataset, output, model="owner/name", workers=two("processes"))
    assert not Path(output).exists()
    block.save("keyed-workers", overwrite=True)
    image_qa(dataset, output, "keyed-workers", max_rows=40, workers=two("threads"))


@pytest.mark.parametrize("is_deployed", [False, True])
def test_the_key_of_the_environment_goes_to_no_url_that_a_deployments_user_has_chosen(
    is_deployed: bool, keyed_stub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_IMAGEQA_API_KEY", "stub-api-key-5f2c")
    job = WorkerJob(
        output=str(tmp_path),
        run="r",
        worker="1",
        key="00" * 32,
        endpoint=(keyed_stub.url,),
        model="stub",
        is_deployed=is_deployed,
    )
    ObjectStore(uri=str(tmp_path)).write(job.folder.end, b"")
    if is_deployed:
        with pytest.raises(EndpointError, match="401"):
            work(job)
    else:
        work(job)  # it is told to end at once
