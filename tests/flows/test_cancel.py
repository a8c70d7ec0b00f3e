"""A run cancelled in Prefect stops soon, leaves no process running, and can be resumed."""

import json
import logging
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
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from prefect_imageqa import image_qa
from prefect_imageqa.serving import demo_model

pytestmark = pytest.mark.timeout(600)

ENTRYPOINT = "prefect_imageqa.flows.image_qa:image_qa"
CHECKPOINT = Path(demo_model.__file__).parent / "checkpoint"
STUB_SERVER = Path(__file__).resolve().parents[2] / "benchmarks" / "stub_server.py"
ROWS = 300
BATCH_SIZE, IN_FLIGHT = 32, 16

QUIET_TASKS = {"PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING"}

# Acts as an interpreter with vLLM: serves the stub, and has a child process as vLLM's engine is.
FAKE_PYTHON = """#!{python}
import json, os, pathlib, subprocess, sys
if sys.argv[1] == "-c":
    print(json.dumps([True, True]))
    sys.exit()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
value = lambda flag: sys.argv[sys.argv.index(flag) + 1]
options = ["--port", value("--port"), "--model", value("--served-model-name")]
options += ["--latency", pathlib.Path("{folder}/latency").read_text(), "--slots=64"]
options += ["--count-texts={folder}/texts", "--api-key=" + os.environ["VLLM_API_KEY"]]
del os.environ["PYTHONSAFEPATH"]  # the stub imports its neighbours
os.execv(sys.executable, [sys.executable, "{stub}", *options])
"""


@pytest.fixture
def deployment(client: SyncPrefectClient, pool: str) -> uuid.UUID:
    """The flow, deployed by its module path."""
    return client.create_deployment(
        flow_id=client.create_flow(image_qa),
        name=pool,
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        job_variables={"env": QUIET_TASKS},
    )


@pytest.fixture
def worker(pool: str, tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A worker of the pool, whose runs start the stub instead of vLLM."""
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON.format(python=sys.executable, stub=STUB_SERVER, folder=tmp_path))
    fake.chmod(0o755)
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_IMAGEQA_VLLM_PYTHON": str(fake),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
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


def wait_until(reached: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_of(client: SyncPrefectClient, run: FlowRun) -> str:
    state = client.read_flow_run(run.id).state
    assert state
    return str(state.name)


def warnings_of(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """What the run and its tasks have logged at least as a warning."""
    chosen = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run.id]), level=LogFilterLevel(ge_=logging.WARNING)
    )
    return [log.message for log in client.read_logs(chosen)]


def test_a_cancelled_run_stops_soon_and_can_be_resumed(
    client: SyncPrefectClient,
    deployment: uuid.UUID,
    worker: "subprocess.Popen[bytes]",
    write_rows: Callable[[list[str]], str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    output, texts, answer = tmp_path / "out", tmp_path / "texts", tmp_path / "answer"
    # Two batches are not stored before the end: rows of theirs are held, the others are answered.
    held = [row for row in range(BATCH_SIZE, 3 * BATCH_SIZE) if row % BATCH_SIZE >= 24]
    rows = [f"Row {number}?" for number in range(ROWS)]
    for number in held:
        rows[number] = f"STUB until {answer} {number}"
    parameters = {
        "dataset": write_rows(rows),
        "output": str(output),
        "model": str(CHECKPOINT),
        "limits": {"batch_size": BATCH_SIZE, "max_in_flight": IN_FLIGHT},
    }

    def times_sent() -> "Counter[str]":
        lines = texts.read_text().splitlines() if texts.exists() else []
        found = Counter(json.loads(line)[0] for line in lines)
        return Counter({text: found[text] for text in rows if text in found})  # no test requests

    (tmp_path / "latency").write_text("0.02")
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    wait_until(lambda: times_sent().keys() >= {*rows[: 3 * BATCH_SIZE]})
    processes = psutil.Process(worker.pid).children(recursive=True)
    assert len(processes) >= 4  # the run, the supervisor, the server and its child
    client.set_flow_run_state(run.id, Cancelling())  # what the button in the UI does
    started = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=60)
    stopped = time.monotonic() - started
    assert alive == []
    # Prefect polls every 3 s, and starts a process for hooks before it sets the state.
    wait_until(lambda: state_of(client, run) == "Cancelled")
    cancelled = time.monotonic() - started
    wait_until(lambda: psutil.Process(worker.pid).children(recursive=True) == [], seconds=30)
    record = json.loads((output / "runs" / f"{run.id}.json").read_bytes())
    assert record["state"] == "interrupted"
    expected = ["cancelled: run it again with the same parameters to resume"]
    wait_until(lambda: warnings_of(client, run) == expected, seconds=60)
    before = times_sent().total()

    answer.touch()
    again = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    wait_until(lambda: state_of(client, again) == "Completed")
    sent = times_sent()
    twice = sent.total() - ROWS
    assert len(sent) == ROWS
    assert max(sent.values()) == 2
    assert len(held) <= twice <= len(held) + IN_FLIGHT
    assert len((output / "qa.jsonl").read_text().splitlines()) == ROWS
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[again.id]))
    assert not [log for log in client.read_logs(of_run, limit=200) if log.task_run_id]

    record_property("seconds_until_stopped", round(stopped, 1))
    record_property("seconds_until_cancelled", round(cancelled, 1))
    record_property("sent_twice", twice)
    print(f"{stopped:.1f} s until its processes had ended, {cancelled:.1f} s until Cancelled")
    print(f"{before} requests before, {twice} rows sent again")
