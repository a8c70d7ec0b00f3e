"""A run of any size has a limited number of task runs, and its results do not depend on it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect_imageqa import Limits, image_qa
from prefect_imageqa.flows import task_runs
from prefect_imageqa.flows.progress import RunProgress, use_progress
from prefect_imageqa.flows.task_runs import StepRunner, call
from prefect_imageqa.tasks.concurrency import TASK_OPTIONS
from prefect_imageqa.tasks.errors import EndpointLostError, StoreError
from prefect_imageqa.tasks.generating.generate import BATCH_RETRIES, generate_batch

WriteRows = Callable[[list[str]], str]

LIMITS = Limits(batch_size=4, server_wait=0.5, max_in_flight=1)


def steps_of(run: FlowRun, expected: int) -> int:
    """How many task runs a flow run has for the steps of its passes, waiting for so many."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    deadline = time.monotonic() + 120
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:  # the server takes them in with a delay
            names = [each.name for each in client.read_task_runs(flow_run_filter=chosen)]
            steps = sum(not name.startswith(("load", "export")) for name in names)
            if "export" in names and steps >= expected:
                break
            time.sleep(0.1)
    return steps


def exported(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in ("qa.jsonl", "pairs.parquet")]


@pytest.mark.parametrize("limit", [0, 5])
def test_results_do_not_depend_on_the_number_of_task_runs(
    limit: int,
    stub: Any,
    write_rows: WriteRows,
    tmp_path: Path,
    runs_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = write_rows([f"row {row}" for row in range(30)])
    few, many = tmp_path / "few", tmp_path / "many"
    image_qa(dataset, str(many), endpoint=stub.url, limits=LIMITS)
    monkeypatch.setattr(task_runs, "MAX_TASK_RUNS", limit)
    summary = image_qa(dataset, str(few), endpoint=stub.url, limits=LIMITS)
    assert (summary.ok, summary.requests) == (30, 30)
    assert exported(few) == exported(many)
    (of_few,), (of_many,) = runs_of(few), runs_of(many)
    assert (steps_of(of_few, limit), steps_of(of_many, 20)) == (limit, 20)


@pytest.fixture
def without_task_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps have no task run from the first on."""
    monkeypatch.setattr(task_runs, "MAX_TASK_RUNS", 0)


@pytest.mark.usefixtures("without_task_runs")
def test_steps_without_task_runs_resume_where_the_servers_were_lost(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    mortal, stub, output = start_stub(), start_stub(), str(tmp_path / "out")
    texts = [f"row {row}" for row in range(30)]
    deadly = write_rows([*texts[:17], "STUB die", *texts[18:]])
    with pytest.raises(EndpointLostError):
        image_qa(deadly, output, endpoint=mortal.url, limits=LIMITS)
    summary = image_qa(write_rows(texts), output, endpoint=stub.url, limits=LIMITS)
    assert summary.ok == 30
    assert (summary.reused, summary.requests) == (17, 13)


@pytest.mark.usefixtures("without_task_runs")
def test_an_interrupted_run_stores_the_replies_of_steps_without_task_runs(
    start_stub: Any, write_rows: WriteRows, tmp_path: Path
) -> None:
    stub, output, answer = start_stub(), tmp_path / "out", tmp_path / "answer"
    texts = [f"row {row}" if row < 10 else f"STUB until {answer} {row}" for row in range(16)]
    limits, progress = Limits(batch_size=16, max_in_flight=16), RunProgress()

    def interrupt_when_answered() -> None:
        while progress.stats.completions < 10:
            time.sleep(0.02)
        time.sleep(0.1)  # for the batch to have the last of them, too
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_answered, daemon=True).start()
    with use_progress(progress), pytest.raises(KeyboardInterrupt):
        image_qa(write_rows(texts), str(output), endpoint=stub.url, limits=limits)
    answer.touch()
    summary = image_qa(write_rows(texts), str(output), endpoint=stub.url, limits=limits)
    assert (summary.ok, summary.requests) == (16, 6)


# --- single steps ---------------------------------------------------------------------------------


@task(**TASK_OPTIONS)
def double(number: int) -> int:
    """A step."""
    if number < 0:
        raise StoreError("negative")
    get_run_logger().info("doubled %s", number)
    return 2 * number


def test_a_step_takes_what_another_will_return(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether either has a task run or not; the third is the first without one."""
    monkeypatch.setattr(task_runs, "MAX_TASK_RUNS", 2)
    caplog.set_level(logging.INFO, "prefect_imageqa")

    @flow
    def run() -> list[int]:
        with StepRunner() as steps:
            futures = [steps.submit(double, 1)]
            futures += [steps.submit(double, futures[-1])]
            futures += [steps.submit(double, futures[-1])]
            futures += [steps.submit(double, futures[-1])]
            return [future.result() for future in futures]

    assert run() == [2, 4, 8, 16]
    logged = [record for record in caplog.records if "doubled" in record.getMessage()]
    names = ["task_runs", "task_runs", "flow_runs", "flow_runs"]
    assert [record.name.rpartition(".")[2] for record in logged] == names
    assert caplog.text.count("there are 2 task runs") == 1


@pytest.mark.usefixtures("without_task_runs")
def test_the_error_of_a_step_is_that_of_what_takes_its_result() -> None:
    @flow
    def run() -> None:
        with StepRunner() as steps:
            steps.submit(double, steps.submit(double, -1)).result()

    with pytest.raises(StoreError, match="negative"):
        run()


@pytest.mark.parametrize(
    ("errors", "calls", "ends"),
    [
        ([], 1, "returns"),
        ([ValueError("odd")] * 2, 3, "returns"),
        ([ValueError("odd")] * 3, 3, "raises"),
        ([StoreError("known")], 1, "raises"),
        ([ValueError("odd"), StoreError("known")], 2, "raises"),
    ],
    ids=["no error", "two errors", "three errors", "known error", "then a known error"],
)
def test_a_plain_call_is_retried_as_its_task_is(
    errors: list[Exception], calls: int, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    @task(
        retries=BATCH_RETRIES,
        retry_delay_seconds=0,
        retry_condition_fn=generate_batch.retry_condition_fn,
    )
    def step() -> str:
        seen.append(len(seen))
        if len(seen) <= len(errors):
            raise errors[len(seen) - 1]
        return "done"

    if ends == "returns":
        assert call(step) == "done"
    else:
        with pytest.raises(type(errors[-1]), match=str(errors[-1])):
            call(step)
    assert len(seen) == calls
    assert caplog.text.count("step failed and is called again: ValueError('odd')") == calls - 1
