"""A run that is cancelled in Prefect: it stops soon, leaves nothing running, and can go on."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker
from prefect_imageqa import image_qa
from prefect_imageqa.serving import demo_model

pytestmark = pytest.mark.timeout(600)

ENTRYPOINT = "prefect_imageqa.flows.image_qa:image_qa"
CHECKPOINT = Path(demo_model.__file__).parent / "checkpoint"
STUB_SERVER = Path(__file__).resolve().parents[2] / "benchmarks" / "stub_server.py"
ROWS = 1200
IN_FLIGHT = 128
"""Requests in flight at most, by default; batches have 256 rows."""

QUIET_TASKS = {"PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING"}

# Plays an interpreter with vLLM: the stub serves, and there is a child as vLLM's engine is one.
STAND_IN = """#!{python}
import json, os, subprocess, sys
if sys.argv[1] == "-c":
    print(json.dumps([True, True]))
    sys.exit()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
given = lambda flag: sys.argv[sys.argv.index(flag) + 1]
told = ["--port", given("--port"), "--model", given("--served-model-name"), "--latency=0.5"]
told += ["--slots=64", "--count-texts={journal}", "--api-key=" + os.environ["VLLM_API_KEY"]]
os.execv(sys.executable, [sys.executable, "{stub}", *told])
"""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def pool(client: SyncPrefectClient) -> str:
    """A work pool of processes."""
    name = f"pool-{uuid.uuid4().hex[:8]}"
    template = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    return name


@pytest.fixture
def deployment(client: SyncPrefectClient, pool: str) -> uuid.UUID:
    """The flow, deployed by module path."""
    return client.create_deployment(
        flow_id=client.create_flow(image_qa),
        name=pool,
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        job_variables={"env": QUIET_TASKS},
    )


@pytest.fixture
def worker(pool: str, tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A worker of the pool, whose runs start the stand-in for vLLM."""
    stand_in = tmp_path / "python"
    told = {"python": sys.executable, "stub": STUB_SERVER, "journal": tmp_path / "asked"}
    stand_in.write_text(STAND_IN.format(**told))
    stand_in.chmod(0o755)
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_IMAGEQA_VLLM_PYTHON": str(stand_in),
    }
    command = [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", pool]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield process
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        process.kill()


def write_dataset(folder: Path) -> str:
    """Rows whose user text tells them apart."""
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    rows = [{"image": "red.png", "conversation": f"Row {number}?"} for number in range(ROWS)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def wait_until(reached: Callable[[], bool], seconds: float = 180) -> float:
    """Seconds until something is so."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + seconds
        time.sleep(0.05)
    return time.monotonic() - began


def state_of(client: SyncPrefectClient, run: FlowRun) -> str:
    state = client.read_flow_run(run.id).state
    assert state
    return str(state.name)


def test_a_cancelled_run_stops_soon_and_goes_on_later(
    client: SyncPrefectClient,
    deployment: uuid.UUID,
    worker: "subprocess.Popen[bytes]",
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    output, journal = tmp_path / "out", tmp_path / "asked"
    given = {"dataset": write_dataset(tmp_path), "output": str(output), "model": str(CHECKPOINT)}

    def asked() -> "Counter[str]":
        lines = journal.read_text().splitlines() if journal.exists() else []
        return Counter(json.loads(line)[0] for line in lines)

    run = client.create_flow_run_from_deployment(deployment, parameters=given)
    # In the middle of two batches: most of them is answered, but neither is stored.
    wait_until(lambda: asked().total() > 2 * 256 + 200)
    processes = psutil.Process(worker.pid).children(recursive=True)
    assert len(processes) >= 4  # the run, the supervisor, the server and its child
    client.set_flow_run_state(run.id, Cancelling())  # what the button in the UI does
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=10)
    gone = time.monotonic() - began
    assert alive == []
    # Prefect looks every three seconds, and starts a process for hooks before it says so.
    wait_until(lambda: state_of(client, run) == "Cancelled", seconds=30)
    cancelled = time.monotonic() - began
    assert psutil.Process(worker.pid).children(recursive=True) == []
    record = json.loads((output / "runs" / f"{run.id}.json").read_bytes())
    assert record["state"] == "interrupted"
    before = asked().total()
    assert before < ROWS

    again = client.create_flow_run_from_deployment(deployment, parameters=given)
    wait_until(lambda: state_of(client, again) == "Completed")
    twice = asked().total() - ROWS
    assert len(asked()) == ROWS
    assert max(asked().values()) == 2
    assert 0 < twice <= IN_FLIGHT
    assert len((output / "qa.jsonl").read_text().splitlines()) == ROWS
    chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[again.id]))
    assert not [log for log in client.read_logs(chosen, limit=200) if log.task_run_id]

    record_property("seconds_until_processes_gone", round(gone, 1))
    record_property("seconds_until_cancelled", round(cancelled, 1))
    record_property("asked_twice", twice)
    print(f"{gone:.1f} s until its processes were gone, {cancelled:.1f} s until Cancelled")
    print(f"{before} requests before, {twice} rows asked again")
