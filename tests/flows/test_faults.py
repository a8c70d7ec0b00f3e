"""Runs against a faulty model server or store: no row is lost, and no error becomes an answer."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule, s3_error
from prefect_imageqa import ImageQAError, Limits, ObjectStore, VLLMEndpoint, image_qa

ROWS, BATCH_SIZE, IN_FLIGHT = 48, 8, 8
AT_RISK = 2 * (IN_FLIGHT + BATCH_SIZE)
"""Most rows sent but not stored: those in flight, and as many whose replies wait to be stored."""

READ_TIMEOUT = 3
"""Seconds after which a hang counts as one. A reply takes milliseconds, even on a busy machine."""

MAX_SECONDS = 60
"""Guards against a run that hangs; the slowest takes about 10 s."""

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("quick_retries")]


@dataclass(frozen=True)
class Result:
    """How a run ended: with a summary, or with an error of one line."""

    summary: Any
    error: str
    seconds: float


@pytest.fixture(scope="module")
def add_result(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Collects what users see of each fault, as a table in `build/faults.md`."""
    head = "| fault | result | ok | quarantined | requests | seconds |"
    lines = [head, "|---|---|---|---|---|---|"]

    def add(fault: str, result: Result, requests: int) -> None:
        summary, error = result.summary, result.error
        counts = (summary.ok, summary.quarantined) if summary else ("", "")
        cells = (fault, error or str(summary), *counts, requests, f"{result.seconds:.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")

    yield add
    folder = request.config.rootpath / "build"
    folder.mkdir(exist_ok=True)
    (folder / "faults.md").write_text("\n".join(lines) + "\n")


@pytest.fixture
def dataset(write_rows: Callable[[list[str]], str]) -> str:
    """Rows that the stub answers with the row's own number."""
    return write_rows([f"STUB text {answer_to(row)}" for row in range(ROWS)])


def answer_to(row: int) -> str:
    return f"**Question:** Which?\n**Answer:** Row {row}."


def run(dataset: str, output: str, url: str, caplog: pytest.LogCaptureFixture) -> Result:
    """Run, and check that it ends soon, logs no traceback, and fails, if at all, with one line."""
    started = time.monotonic()
    summary, message = None, ""
    with caplog.at_level(logging.INFO):
        try:
            summary = image_qa(
                dataset,
                output,
                endpoint=VLLMEndpoint(urls=[url], read_timeout=READ_TIMEOUT, connect_timeout=2),
                limits=Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT),
            )
        except ImageQAError as error:
            message = str(error)
            assert message
            assert "\n" not in message
    seconds = time.monotonic() - started
    assert seconds < MAX_SECONDS
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
    return Result(summary, message, seconds)


def check_answers(output: str) -> int:
    """Check that every exported answer is the row's own; returns how many there are."""
    rows = [json.loads(line) for line in ObjectStore(uri=output).read("qa.jsonl").splitlines()]
    assert all(row["conversation"] == f"STUB text {row['output']}" for row in rows)
    assert len({row["output"] for row in rows}) == len(rows)
    return len(rows)


MODEL_FAULTS = {
    "429 sometimes": Rule("respond", status=429, probability=0.1),
    "503 for a while": Rule("respond", status=503, first=10, count=5),
    "500 sometimes": Rule("respond", status=500, probability=0.1),
    "reset sometimes": Rule("reset", probability=0.1),
    "reply truncated sometimes": Rule("truncate_reply", probability=0.1),
    "reply dropped sometimes": Rule("drop_reply", probability=0.1),
    "request truncated sometimes": Rule("truncate_request", probability=0.1),
    "slow": Rule("slow", seconds=0.3),
    "hangs sometimes": Rule("hang", first=20, count=3),
    "429 always": Rule("respond", status=429, first=20),
    "500 always": Rule("respond", status=500, first=2),
    "reset always": Rule("reset", first=20),
    "hangs always": Rule("hang", first=40),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_faulty_model_server(
    fault: str,
    stub: Any,
    dataset: str,
    tmp_path: Path,
    add_result: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = urlsplit(stub.url)
    before = stub.stats()["requests"]
    output = str(tmp_path / "out")
    with FaultProxy(server.hostname, server.port, seed=3) as proxy:
        proxy.set_rules([replace(MODEL_FAULTS[fault], path="/chat/")])
        result = run(dataset, output, proxy.url, caplog)
        add_result(f"model: {fault}", result, proxy.requests["POST"])
        assert proxy.faults.total()
        if result.summary:
            assert result.summary.ok + result.summary.quarantined == ROWS
            assert check_answers(output) == result.summary.ok
        # A reply that is lost on its way is requested again; one that has arrived is not.
        lost = sum(proxy.faults[kind] for kind in ("truncate_reply", "drop_reply"))
        lost += proxy.faults["truncate_request"]
        if not result.summary or result.summary.quarantined:
            proxy.set_rules([])
            result = run(dataset, output, proxy.url, caplog)
    assert (result.summary.ok, result.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    assert ROWS <= stub.stats()["requests"] - before <= ROWS + lost


STORE_FAULTS = {
    "SlowDown sometimes": s3_error(503, "SlowDown", probability=0.1),
    "InternalError sometimes": s3_error(500, "InternalError", probability=0.1),
    "reset sometimes": Rule("reset", probability=0.1),
    "reply truncated": Rule("truncate_reply", method="GET", first=4, count=2),
    "request truncated": Rule("truncate_request", method="PUT", first=4, count=3),
    "slow": Rule("slow", seconds=0.05),
    "hangs once": Rule("hang", first=40, count=1),
    "SlowDown always": s3_error(503, "SlowDown", first=40),
    "reset always": Rule("reset", first=40),
    "access denied": s3_error(403, "AccessDenied", method="PUT", path="/pairs/", first=4),
    "disk full": s3_error(507, "InsufficientStorage", method="PUT", path="/pairs/", first=4),
    "completions cannot be written": s3_error(
        500, "InternalError", method="PUT", path="/completions/"
    ),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_faulty_store(
    fault: str,
    stub: Any,
    dataset: str,
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    add_result: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    monkeypatch.setattr("prefect_imageqa.tasks.object_store.s3._READ_TIMEOUT", READ_TIMEOUT)
    before = stub.stats()["requests"]
    output = f"{s3}/faults-{tmp_path.name}"
    s3_proxy.set_rules([STORE_FAULTS[fault]])
    first = run(dataset, output, stub.url, caplog)
    requests = stub.stats()["requests"] - before
    add_result(f"store: {fault}", first, requests)
    assert s3_proxy.faults.total()
    if first.summary:
        assert (first.summary.ok, requests) == (ROWS, ROWS)
    s3_proxy.set_rules([])
    second = run(dataset, output, stub.url, caplog)
    assert (second.summary.ok, second.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    at_risk = 0 if first.summary else AT_RISK
    print(f"at risk: {stub.stats()['requests'] - before - ROWS}")
    assert stub.stats()["requests"] - before <= ROWS + at_risk
