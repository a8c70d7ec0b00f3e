"""Workers as flow runs, executed by real Prefect workers that share only S3 and Prefect's API."""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pandas as pd
import psutil
import pytest
from fault_proxy import FaultProxy, Rule
from machines import Machines, Namespaces
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Crashed, Pending, Running
from prefect_imageqa import Limits, ObjectStore, image_qa
from prefect_imageqa.flows.workers import work_pool
from prefect_imageqa.flows.workers.job import WorkerJob
from prefect_imageqa.flows.workers.work_pool import open_work_pool
from prefect_imageqa.flows.workers.worker_flow import image_qa_worker
from prefect_imageqa.tasks.errors import PrefectServerError
from prefect_imageqa.tasks.runs.workers import Workers

pytestmark = pytest.mark.timeout(600)

ROWS, BATCH_SIZE, IN_FLIGHT = 600, 32, 32
ANSWER = "STUB text **Question:** Which row?\n**Answer:** Row {}."
TEXTS = [ANSWER.format(row) for row in range(ROWS)]
"""The stub answers each row with its own number."""

AT_RISK = 2 * (IN_FLIGHT + 2 * BATCH_SIZE)
"""Rows of the batches that two workers may have at any moment."""


@pytest.fixture
def pool(client: SyncPrefectClient, pool: str) -> str:
    """A work pool with a deployment each of the run and its workers, which have its name."""
    flows: dict[str, Flow[Any, Any]] = {
        "prefect_imageqa.flows.image_qa:image_qa": image_qa,
        "prefect_imageqa.flows.workers.worker_flow:image_qa_worker": image_qa_worker,
    }
    for entrypoint, flow in flows.items():
        client.create_deployment(
            flow_id=client.create_flow(flow),
            name=pool,
            entrypoint=entrypoint,
            work_pool_name=pool,
            parameter_openapi_schema=flow.__dict__["parameters"].model_dump(),
            enforce_parameter_schema=True,
        )
    return pool


@pytest.fixture
def machines(pool: str, s3: str, tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path, pool).running() as found:
        yield found


def png() -> bytes:
    image = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(image, "PNG")
    return image.getvalue()


def write_dataset(uri: str) -> str:
    """A dataset on S3."""
    store = ObjectStore(uri=uri)
    store.write("red.png", png())
    table = [{"image": "red.png", "conversation": text} for text in TEXTS]
    store.write("rows.json", json.dumps(table).encode())
    return store.uri_of("rows.json")


def exports(output: str) -> dict[str, bytes]:
    store = ObjectStore(uri=output)
    return {name: store.read(name) for name in ("qa.jsonl", "pairs.parquet", "quarantine.jsonl")}


def two(pool: str) -> Workers:
    return Workers(workers=2, engine="work-pool", engine_address=f"image-qa-worker/{pool}")


JOB = WorkerJob(output="s3://bucket/out", run="r", worker="1", key="0" * 64)
LIMITS = Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT)


def wait_until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def schedule(client: SyncPrefectClient, pool: str, dataset: str, output: str, url: str) -> FlowRun:
    """A run with two workers, itself executed by a worker of the pool."""
    return client.create_flow_run_from_deployment(
        client.read_deployment_by_name(f"image-qa/{pool}").id,
        parameters={
            "dataset": dataset,
            "output": output,
            "endpoint": url,
            "limits": LIMITS.model_dump(),
            "workers": two(pool).model_dump(),
        },
    )


def worker_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """The flow runs of workers."""
    of_pool = DeploymentFilter(name=DeploymentFilterName(any_=[pool]))
    found = client.read_flow_runs(deployment_filter=of_pool)
    return [run for run in found if "job" in run.parameters]


def state_of(client: SyncPrefectClient, run: FlowRun) -> str:
    return str(client.read_flow_run(run.id).state_name)


def states(client: SyncPrefectClient, pool: str) -> list[str]:
    return sorted(str(run.state_name) for run in worker_runs(client, pool))


def process_of(machines: Machines, run: FlowRun) -> psutil.Process:
    """The process that executes a flow run."""
    found = [
        each
        for each in machines.flow_runs()
        if each.is_running() and each.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
    ]
    return max(found, key=lambda each: len(each.parents()))  # Prefect starts it by another one


def running(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    return [run for run in worker_runs(client, pool) if run.state_name == "Running"]


def test_two_machines_answer_every_row_once(
    client: SyncPrefectClient, pool: str, machines: Machines, s3: str, start_stub: Any
) -> None:
    stub, base = start_stub(latency=0.2), f"{s3}/{pool}"
    dataset = write_dataset(f"{base}/data")
    machines.start(2)
    image_qa(dataset, f"{base}/alone", stub.url, limits=LIMITS)
    summary = image_qa(dataset, f"{base}/out", stub.url, limits=LIMITS, workers=two(pool))
    assert stub.stats()["requests"] == 2 * ROWS
    assert (summary.ok, summary.requests) == (ROWS, ROWS)
    assert exports(f"{base}/out") == exports(f"{base}/alone")
    wait_until(lambda: states(client, pool) == ["Completed", "Completed"])
    runs = worker_runs(client, pool)
    name = client.read_flow_run(UUID(runs[0].parameters["job"]["run"])).name
    assert {run.name for run in runs} == {f"worker 1 of {name}", f"worker 2 of {name}"}
    assert all(run.parent_task_run_id for run in runs)  # Prefect shows them under it
    assert not ObjectStore(uri=f"{base}/out").list("workers")


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ("worker", "'worker' names no deployment of workers: write it as image-qa-worker/worker"),
        ("image-qa-worker/none", "no deployment 'image-qa-worker/none': `prefect-imageqa deploy`"),
        ("image-qa/{pool}", r"rejects a flow run of 'image-qa/.* \(HTTP 409\): is it a deployment"),
    ],
)
def test_a_deployment_that_is_none_of_workers_is_refused(
    deployment: str, message: str, pool: str
) -> None:
    workers = Workers(engine="work-pool", engine_address=deployment.format(pool=pool))
    with pytest.raises(PrefectServerError, match=message), open_work_pool(workers) as engine:
        engine.start(JOB)


def test_a_paused_pool_and_a_temporary_server_are_refused(
    client: SyncPrefectClient, pool: str, tmp_path: Path
) -> None:
    client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    with pytest.raises(PrefectServerError, match=f"`prefect work-pool resume {pool}`"):
        open_work_pool(two(pool)).__enter__()
    unset = temporary_settings(restore_defaults={PREFECT_API_URL})
    with unset, pytest.raises(PrefectServerError, match="not the temporary one of this run"):
        open_work_pool(two(pool)).__enter__()


def test_workers_that_nobody_starts_say_so_and_are_cancelled(
    client: SyncPrefectClient, pool: str
) -> None:
    with open_work_pool(two(pool)) as engine:
        workers = [engine.start(JOB), engine.start(JOB.model_copy(update={"worker": "2"}))]
        note = f"waits for a worker of work pool '{pool}', which has none: `prefect worker start"
        assert all(note in worker.note for worker in workers)
        assert states(client, pool) == ["Scheduled", "Scheduled"]
        assert workers[0].ended is None
        workers[0].stop()
        assert workers[0].ended == "its flow run is Cancelled"
        assert (workers[0].note, workers[1].ended) == ("", None)
    assert states(client, pool) == ["Cancelled", "Cancelled"]


def test_a_stopped_flow_run_that_nobody_ends_frees_its_slot(
    client: SyncPrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_pool, "STOP_SECONDS", 1.0)
    with open_work_pool(two(pool)) as engine:
        worker = engine.start(JOB)
        (run,) = worker_runs(client, pool)
        client.set_flow_run_state(run.id, Pending())
        client.set_flow_run_state(run.id, Running())
        assert (worker.note, worker.ended) == ("", None)
        worker.stop()
        assert worker.ended is None
        assert states(client, pool) == ["Cancelling"]
    assert states(client, pool) == ["Cancelled"]


@pytest.fixture
def _polls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_pool, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(work_pool, "POLL_SHARE", 1.0)


@pytest.mark.usefixtures("_polls_at_once")
def test_a_lost_flow_run_is_named_in_one_line(client: SyncPrefectClient, pool: str) -> None:
    with open_work_pool(two(pool)) as engine:
        crashed, deleted = engine.start(JOB), engine.start(JOB.model_copy(update={"worker": "2"}))
        runs = {run.parameters["job"]["worker"]: run.id for run in worker_runs(client, pool)}
        client.set_flow_run_state(runs["1"], Crashed(message="killed\nby \x1b[31mme"), force=True)
        client.delete_flow_run(runs["2"])
        assert crashed.ended == r"its flow run is Crashed: killed by \x1b[31mme"
        assert deleted.ended == "its flow run is Crashed: somebody has deleted it"


@pytest.mark.usefixtures("_polls_at_once")
def test_while_prefects_server_is_away_workers_count_as_alive_and_are_created_later(
    client: SyncPrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = urlsplit(str(PREFECT_API_URL.value()))
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(str(server.hostname), int(server.port or 0)))
        stack.enter_context(temporary_settings({PREFECT_API_URL: f"{proxy.url}/api"}))
        engine = stack.enter_context(open_work_pool(two(pool)))
        first = engine.start(JOB)
        proxy.set_rules([Rule("reset")])
        second = engine.start(JOB.model_copy(update={"worker": "2"}))
        assert (first.ended, second.ended) == (None, None)
        assert (
            second.note == f"waits for the Prefect server at {proxy.url}/api, which does not answer"
        )
        assert len(worker_runs(client, pool)) == 1
        # A flow run is created, but the run does not hear of it: it may not create a second one.
        proxy.set_rules([Rule("drop_reply", method="POST", path="create_flow_run$", count=1)])
        assert second.ended is None
        assert len(worker_runs(client, pool)) == 2
        assert "waits for a worker of work pool" in second.note
        assert len(worker_runs(client, pool)) == 2
        proxy.set_rules([Rule("reset")])
        monkeypatch.setattr(work_pool, "START_SECONDS", 0.0)
        third = engine.start(JOB.model_copy(update={"worker": "3"}))
        assert str(third.ended).endswith("has not answered for 0 s")
        assert first.ended is None
        proxy.set_rules([])
    assert states(client, pool) == ["Cancelled", "Cancelled"]


@pytest.mark.workers
def test_in_namespaces_that_share_only_s3_and_the_servers(
    pool: str,
    s3: str,
    start_stub: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers have a network, processes and files of their own, and images only from the run."""
    stub, base = start_stub(latency=0.2), f"{s3}/{pool}"
    images = [{"bytes": png(), "path": None}] * ROWS
    rows = pd.DataFrame({"image": images, "conversation": TEXTS})
    with ExitStack() as stack:
        namespaces = stack.enter_context(Namespaces.opened(2))
        monkeypatch.setenv("AWS_ENDPOINT_URL", namespaces.relay(os.environ["AWS_ENDPOINT_URL"]))
        api = namespaces.relay(str(PREFECT_API_URL.value()))
        url = namespaces.relay(stub.url)
        machines = stack.enter_context(Machines(tmp_path, pool, namespaces).running())
        with temporary_settings({PREFECT_API_URL: api}):
            machines.start(2)
        image_qa(rows, f"{base}/alone", url, limits=LIMITS)
        summary = image_qa(rows, f"{base}/out", url, limits=LIMITS, workers=two(pool))
        assert (summary.ok, summary.requests, stub.stats()["requests"]) == (ROWS, ROWS, 2 * ROWS)
        assert exports(f"{base}/out") == exports(f"{base}/alone")


@pytest.mark.workers
def test_a_killed_worker_is_replaced(
    client: SyncPrefectClient,
    pool: str,
    machines: Machines,
    s3: str,
    start_stub: Any,
    record_property: Callable[[str, object], None],
) -> None:
    stub, base = start_stub(latency=1), f"{s3}/{pool}"
    dataset = write_dataset(f"{base}/data")
    machines.start(2)
    image_qa(dataset, f"{base}/alone", stub.url, limits=LIMITS)
    before = stub.stats()["requests"]
    with ThreadPoolExecutor() as threads:
        run = threads.submit(
            image_qa, dataset, f"{base}/out", stub.url, limits=LIMITS, workers=two(pool)
        )
        wait_until(lambda: len(running(client, pool)) == 2)
        wait_until(lambda: stub.stats()["requests"] > before + 2 * IN_FLIGHT)
        process_of(machines, running(client, pool)[0]).kill()
        assert run.result().ok == ROWS
    wait_until(lambda: set(states(client, pool)) <= {"Cancelled", "Completed", "Crashed"})
    assert states(client, pool).count("Crashed") == 1
    twice = stub.stats()["requests"] - before - ROWS
    assert 0 < twice <= AT_RISK
    assert exports(f"{base}/out") == exports(f"{base}/alone")
    record_property("sent_twice", twice)


@pytest.mark.workers
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_machine_that_goes_takes_no_row_with_it(
    sent: signal.Signals,
    client: SyncPrefectClient,
    pool: str,
    machines: Machines,
    s3: str,
    start_stub: Any,
    record_property: Callable[[str, object], None],
) -> None:
    stub, base = start_stub(latency=1), f"{s3}/{pool}"
    dataset = write_dataset(f"{base}/data")
    machines.start(3)
    with ThreadPoolExecutor() as threads:
        run = threads.submit(
            image_qa, dataset, f"{base}/out", stub.url, limits=LIMITS, workers=two(pool)
        )
        wait_until(lambda: len(running(client, pool)) == 2)
        wait_until(lambda: stub.stats()["requests"] > 2 * IN_FLIGHT)
        worker = process_of(machines, running(client, pool)[0]).parents()
        (machine,) = [each for each in machines.processes if psutil.Process(each.pid) in worker]
        machine.send_signal(sent)
        began = time.monotonic()
        assert run.result().ok == ROWS
    record_property("seconds", round(time.monotonic() - began, 1))
    twice = stub.stats()["requests"] - ROWS
    if sent == signal.SIGTERM:  # it kills its flow run, and reports nothing
        assert 0 < twice <= AT_RISK
    else:  # its flow run goes on
        assert twice == 0
    wait_until(lambda: set(states(client, pool)) <= {"Completed", "Cancelled"})


@pytest.mark.workers
def test_cancelled_as_by_the_ui_everything_ends(
    client: SyncPrefectClient,
    pool: str,
    machines: Machines,
    s3: str,
    start_stub: Any,
    record_property: Callable[[str, object], None],
) -> None:
    stub, base = start_stub(latency=1), f"{s3}/{pool}"
    dataset = write_dataset(f"{base}/data")
    machines.start(3)
    run = schedule(client, pool, dataset, f"{base}/out", stub.url)
    wait_until(lambda: stub.stats()["requests"] > 2 * IN_FLIGHT)
    processes = machines.flow_runs()
    client.set_flow_run_state(run.id, Cancelling())  # what the button in the UI does
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=20)
    record_property("seconds_until_stopped", round(time.monotonic() - began, 1))
    assert alive == []
    wait_until(lambda: state_of(client, run) == "Cancelled", seconds=60)
    record_property("seconds_until_cancelled", round(time.monotonic() - began, 1))
    assert set(states(client, pool)) <= {"Completed", "Cancelled"}
    assert machines.flow_runs() == []
    assert stub.stats()["requests"] < ROWS
    assert ObjectStore(uri=f"{base}/out").list("pairs/parts")  # what was in flight is stored


@pytest.mark.workers
def test_cancelled_before_its_workers_have_started_a_run_ends_at_once(
    client: SyncPrefectClient, pool: str, machines: Machines, s3: str, start_stub: Any
) -> None:
    stub, output = start_stub(), f"{s3}/{pool}/out"
    dataset = write_dataset(f"{s3}/{pool}/data")
    machines.start(1)  # which executes the run: nothing is left for its workers
    run = schedule(client, pool, dataset, output, stub.url)
    wait_until(lambda: len(worker_runs(client, pool)) == 2)
    record = f"runs/{run.id}.json"
    note = f"worker 1: its flow run waits for a worker of work pool '{pool}'".encode()
    wait_until(lambda: note in ObjectStore(uri=output).read(record))
    processes = machines.flow_runs()
    client.set_flow_run_state(run.id, Cancelling())
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
    assert states(client, pool) == ["Cancelled", "Cancelled"]


@pytest.mark.workers
def test_a_killed_run_ends_its_workers(
    client: SyncPrefectClient,
    pool: str,
    machines: Machines,
    s3: str,
    start_stub: Any,
    record_property: Callable[[str, object], None],
) -> None:
    stub, base = start_stub(latency=1), f"{s3}/{pool}"
    dataset = write_dataset(f"{base}/data")
    machines.start(3)
    run = schedule(client, pool, dataset, f"{base}/out", stub.url)
    wait_until(lambda: stub.stats()["requests"] > 2 * IN_FLIGHT)
    process_of(machines, run).kill()
    began = time.monotonic()
    wait_until(lambda: machines.flow_runs() == [], seconds=90)
    record_property("seconds", round(time.monotonic() - began, 1))
    assert states(client, pool) == ["Failed", "Failed"]
