"""Workers as tasks of Ray and Dask. `make test-clusters` installs both, and runs these tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import Limits, ObjectStore, image_qa
from prefect_imageqa.flows.workers import hosted_engine
from prefect_imageqa.serving.errors import ImageQAError
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.runs.workers import Workers

COMMAND = Path(sys.executable).with_name("prefect-imageqa")
ROWS, BATCH_SIZE, IN_FLIGHT = 600, 32, 32
AT_RISK = 2 * (IN_FLIGHT + 2 * BATCH_SIZE)
"""Rows of the batches that two workers may have at any moment."""
NO_CLUSTER = "127.0.0.1:9"
CLUSTER_PROCESSES = {"ray": "ray::run_worker", "dask": "multiprocessing.spawn"}
"""What the command lines of processes contain that run tasks."""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        find_spec("ray") is None or find_spec("distributed") is None,
        reason="Ray and Dask are not installed: make test-clusters",
    ),
]
engines = pytest.mark.parametrize("engine", ["ray", "dask"])


@pytest.fixture
def dataset(write_rows: Callable[[list[str]], str]) -> str:
    """The stub answers each row with its own number."""
    answer = "STUB text **Question:** Which row?\n**Answer:** Row {}."
    return write_rows([answer.format(row) for row in range(ROWS)])


def limits() -> Limits:
    return Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT)


def two(engine: Any, address: str = "") -> Workers:
    return Workers(workers=2, engine=engine, engine_address=address)


def check_finished(output: str) -> None:
    """Every row once, in order, with its own answer; nothing is left of the workers."""
    store = ObjectStore(uri=output)
    rows = [json.loads(line) for line in store.read("qa.jsonl").splitlines()]
    assert [row["output"].rpartition("**")[2] for row in rows] == [
        f" Row {row}." for row in range(ROWS)
    ]
    assert not store.list("workers")
    assert not verify(store).problems


def command(engine: str, dataset: str, output: str, url: str) -> "subprocess.Popen[str]":
    flags = ["--output", output, "--endpoint", url, "--engine", engine, "--workers", "2"]
    flags += ["--batch-size", str(BATCH_SIZE), "--max-in-flight", str(IN_FLIGHT)]
    return subprocess.Popen(
        [str(COMMAND), "run", dataset, *flags, "--no-image-proof"],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes(run: int, mark: str) -> list[psutil.Process]:
    """Processes that a run has started, directly or not, with `mark` in their command lines."""
    found = psutil.Process(run).children(recursive=True)
    return [each for each in found if mark in " ".join(each.cmdline())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_asking(run: "subprocess.Popen[str]", stub: Any) -> None:
    """Until the workers have asked more than one batch of rows."""
    deadline = time.monotonic() + 120
    while stub.stats()["requests"] <= IN_FLIGHT:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until(reached: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@engines
def test_the_exports_are_those_of_a_run_without_workers(
    engine: str, dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub = start_stub(latency=0.05)
    alone, output = str(tmp_path / "alone"), str(tmp_path / "out")
    image_qa(dataset, alone, endpoint=stub.url, limits=limits())
    before = stub.stats()["requests"]
    children = set(psutil.Process().children(recursive=True))
    summary = image_qa(dataset, output, endpoint=stub.url, limits=limits(), workers=two(engine))
    assert (summary.ok, summary.requests, stub.stats()["requests"] - before) == (ROWS, ROWS, ROWS)
    for name in ("qa.jsonl", "pairs.parquet", "quarantine.jsonl"):
        assert ObjectStore(uri=output).read(name) == ObjectStore(uri=alone).read(name)
    check_finished(output)
    assert set(psutil.Process().children(recursive=True)) <= children


@engines
def test_a_killed_worker_is_replaced(
    engine: str, dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=0.5), str(tmp_path / "out")
    run = command(engine, dataset, output, stub.url)
    wait_until_asking(run, stub)
    workers = processes(run.pid, CLUSTER_PROCESSES[engine])
    workers[-1].send_signal(signal.SIGKILL)
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert "is lost (its process was killed)" in said
    assert ROWS <= stub.stats()["requests"] <= ROWS + AT_RISK
    check_finished(output)


@engines
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_nothing_is_left_of_a_run_that_ends_early(
    engine: str, end: signal.Signals, dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=1.0), str(tmp_path / "out")
    run = command(engine, dataset, output, stub.url)
    wait_until_asking(run, stub)
    started = processes(run.pid, "")
    run.send_signal(end)
    run.communicate(timeout=60)
    assert run.returncode != 0
    wait_until(lambda: not any(each.is_running() for each in started), 20)
    if end is not signal.SIGKILL:
        assert ObjectStore(uri=output).list("pairs/parts")  # the workers have stored what they had
    summary = image_qa(dataset, output, endpoint=stub.url, limits=limits())
    assert summary.ok == ROWS
    assert stub.stats()["requests"] <= ROWS + AT_RISK
    check_finished(output)


@engines
def test_a_lost_cluster_ends_the_run(
    engine: str, dataset: str, start_stub: Any, tmp_path: Path
) -> None:
    stub, output = start_stub(latency=1.0), str(tmp_path / "out")
    run = command(engine, dataset, output, stub.url)
    wait_until_asking(run, stub)
    started = processes(run.pid, "")
    [host] = processes(run.pid, "-m prefect_imageqa.flows.workers.engine_host")[1:]
    host.send_signal(signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 1, said
    assert f"the connection to a local {engine.capitalize()} cluster was lost" in said
    wait_until(lambda: not any(each.is_running() for each in started), 20)


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Starts clusters as their own commands do; gives the address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as running:

        def start(engine: str) -> str:
            programs = Path(sys.executable).parent
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            if engine == "ray":
                first, second = free_port(), free_port()
                address = f"ray://127.0.0.1:{second}"
                commands = [
                    f"ray start --head --num-cpus=2 --node-ip-address=127.0.0.1 --port={first} "
                    f"--ray-client-server-port={second} --include-dashboard=false --block"
                ]
            else:
                address = f"tcp://127.0.0.1:{(port := free_port())}"
                commands = [
                    f"dask scheduler --host 127.0.0.1 --port {port} --no-dashboard",
                    f"dask worker {address} --nworkers 2 --nthreads 1 --no-dashboard",
                ]
            for line in commands:
                program, *words = line.split()
                log = running.enter_context((tmp_path / f"{words[0]}.log").open("wb"))
                process = subprocess.Popen(
                    [sys.executable, str(programs / program), *words],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    cwd=tmp_path,
                )
                running.callback(process.wait, 60)
                running.callback(process.terminate)
            return address

        yield start


@engines
def test_a_cluster_that_exists_stays(
    engine: str,
    clusters: Callable[[str], str],
    dataset: str,
    start_stub: Any,
    tmp_path: Path,
) -> None:
    stub = start_stub()
    workers = two(engine, clusters(engine))
    for output in (str(tmp_path / "one"), str(tmp_path / "two")):
        before = stub.stats()["requests"]
        image_qa(dataset, output, endpoint=stub.url, limits=limits(), workers=workers)
        assert stub.stats()["requests"] - before == ROWS
        check_finished(output)


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("ray", NO_CLUSTER, f"the Ray cluster at {NO_CLUSTER} did not answer within 8 s"),
        ("ray", "nonsense", "no Ray cluster can be used at nonsense: Invalid address format"),
        ("dask", NO_CLUSTER, f"the Dask cluster at {NO_CLUSTER} did not answer within 8 s"),
        ("dask", "x://nonsense", "no Dask cluster can be used at x://nonsense: "),
    ],
)
def test_an_address_that_does_not_answer(
    engine: str,
    address: str,
    message: str,
    dataset: str,
    start_stub: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if address == NO_CLUSTER:
        monkeypatch.setattr(hosted_engine, "OPEN_SECONDS", 8)
    stub, output = start_stub(), str(tmp_path / "out")
    with pytest.raises(ImageQAError, match=message):
        image_qa(dataset, output, endpoint=stub.url, workers=two(engine, address))
    assert stub.stats()["requests"] <= 1  # whether the model sees images
