"""Runs against a faulty model server or store: no row is lost, and no error becomes an answer.

What passes is waited for; what lasts ends the run after the wait that was asked for.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy, Rule, s3_error
from prefect_imageqa import ImageQAError, Limits, ObjectStore, VLLMEndpoint, image_qa
from prefect_imageqa.serving.client import pool, sender, transport, watchdog
from prefect_imageqa.tasks.object_store import s3 as s3_module

ROWS, BATCH_SIZE, IN_FLIGHT = 48, 8, 8
AT_RISK = 2 * (IN_FLIGHT + BATCH_SIZE)
"""Most rows sent but not stored: those in flight, and as many whose replies wait to be stored."""

WAIT, LONG_WAIT = 2, 60
"""Seconds that a run waits for a server or a store that does not answer: one that is away for good,
and one that only seems to be on a busy machine."""

REQUEST_TIMEOUT, LONG_TIMEOUT = 3, 60
"""Seconds until a reply counts as late: where one hangs, and elsewhere, on a busy machine."""

MAX_SECONDS = 120
"""Guards against a run that hangs; the slowest takes about 10 s.

A single request to Prefect's server can take 60 s: so long does its database wait for a lock.
"""

pytestmark = pytest.mark.timeout(300)


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


@pytest.fixture(scope="module")
def model_server(start_stub: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A stub of vLLM that counts its requests by text."""
    return start_stub(f"--count-texts={tmp_path_factory.mktemp('model') / 'texts'}")


@pytest.fixture
def times_sent(model_server: Any) -> Callable[[], int]:
    """How many requests for rows have reached the model server since the start of the test.

    Without the requests by which the client tests whether a server is alive.
    """

    def count() -> int:
        texts = Counter(model_server.stats()["texts"])
        return sum(number for text, number in texts.items() if text.startswith("STUB"))

    before = count()
    return lambda: count() - before


@pytest.fixture
def dataset(write_rows: Callable[[list[str]], str]) -> str:
    """Rows that the stub answers with the row's own number."""
    return write_rows([f"STUB text {answer_to(row)}" for row in range(ROWS)])


def answer_to(row: int) -> str:
    return f"**Question:** Which?\n**Answer:** Row {row}."


def run(
    dataset: str,
    output: str,
    url: str,
    caplog: pytest.LogCaptureFixture,
    wait: float = LONG_WAIT,
    request_timeout: float = LONG_TIMEOUT,
) -> Result:
    """Run, and check that it ends soon, logs no traceback, and fails, if at all, with one line."""
    started = time.monotonic()
    summary, message = None, ""
    with caplog.at_level(logging.INFO):
        try:
            summary = image_qa(
                dataset,
                output,
                endpoint=VLLMEndpoint(urls=[url]),
                limits=Limits(
                    batch_size=BATCH_SIZE,
                    max_in_flight=IN_FLIGHT,
                    request_timeout=request_timeout,
                    server_wait=wait,
                    store_wait=wait,
                ),
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


PASSING_MODEL_FAULTS = {
    "429 for a while": Rule("respond", status=429, first=10, count=2),
    "500 sometimes": Rule("respond", status=500, probability=0.1),
    "reply truncated sometimes": Rule("truncate_reply", probability=0.1),
    "reply dropped sometimes": Rule("drop_reply", probability=0.1),
    "slow": Rule("slow", seconds=0.3),
    "hangs sometimes": Rule("hang", first=20, count=3),
}

LASTING_MODEL_FAULTS = {
    "429 always": (Rule("respond", status=429, first=20), "rejects every request: waited 2 s"),
    "500 always": (
        Rule("respond", status=500, first=2),
        r"answers no request \(HTTP 500: no message\): waited 2 s",
    ),
    "reset always": (
        Rule("reset", first=20),
        r"answers no request \(.+\): waited 2 s",
    ),
    "hangs always": (
        Rule("hang", first=40),
        r"is stalled: \d requests and no reply for \d+ s, not even to a test request: waited 2 s",
    ),
}


@pytest.mark.parametrize("fault", [*PASSING_MODEL_FAULTS, *LASTING_MODEL_FAULTS])
def test_faulty_model_server(
    fault: str,
    model_server: Any,
    times_sent: Callable[[], int],
    dataset: str,
    tmp_path: Path,
    add_result: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault == "hangs always":
        hangs_are_noticed_soon(monkeypatch)
    rule, reason = LASTING_MODEL_FAULTS.get(fault) or (PASSING_MODEL_FAULTS[fault], "")
    server = urlsplit(model_server.url)
    output = str(tmp_path / "out")
    wait, timeout = WAIT if reason else LONG_WAIT, LONG_TIMEOUT
    if rule.fault == "hang":
        timeout = REQUEST_TIMEOUT
    with FaultProxy(server.hostname, server.port, seed=3) as proxy:
        proxy.set_rules([replace(rule, path="/chat/")])
        result = run(dataset, output, proxy.url, caplog, wait, timeout)
        add_result(f"model: {fault}", result, proxy.requests["POST"])
        assert proxy.faults.total()
        if reason:
            assert re.search(f"{proxy.url} {reason}; when a server is back, .+", result.error)
        else:
            assert result.summary.ok + result.summary.quarantined == ROWS
            assert result.summary.quarantined <= 2  # those that failed by chance, again and again
            assert check_answers(output) == result.summary.ok
        # A reply that is lost on its way is requested again; one that has arrived is not.
        lost = proxy.faults["truncate_reply"] + proxy.faults["drop_reply"]
        if not result.summary or result.summary.quarantined:
            proxy.set_rules([])
            result = run(dataset, output, proxy.url, caplog)
    assert (result.summary.ok, result.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    assert ROWS <= times_sent() <= ROWS + lost


def hangs_are_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at a server that is quiet for a second, and give it another one to answer."""
    monkeypatch.setattr(watchdog, "QUIET_SECONDS", 1.0)
    for module in (pool, sender, watchdog):
        monkeypatch.setattr(module, "TEST_SECONDS", 1.0)


def test_a_hanging_server_is_noticed_within_a_minute() -> None:
    """With the times that are shortened above; token counters are read before and after."""
    assert watchdog.QUIET_SECONDS + pool.TEST_SECONDS + 2 * transport.PROBE_SECONDS <= 60


PASSING_STORE_FAULTS = {
    "errors sometimes": [
        s3_error(503, "SlowDown", probability=0.1),
        s3_error(500, "InternalError", probability=0.1),
        Rule("reset", probability=0.1),
    ],
    "truncated": [
        Rule("truncate_reply", method="GET", first=4, count=2),
        Rule("truncate_request", method="PUT", first=4, count=3),
    ],
    "hangs once": [Rule("hang", first=40, count=1)],
}

LASTING_STORE_FAULTS = {
    "SlowDown always": (s3_error(503, "SlowDown", first=40), r"\(SlowDown\).*; waited \d+ s"),
    "access denied": (
        s3_error(403, "AccessDenied", method="PUT", path="/pairs/", first=4),
        "access denied; check the S3 credentials and the bucket's policy$",
    ),
    "completions cannot be written": (
        s3_error(500, "InternalError", method="PUT", path="/completions/"),
        r"/completions/.+\(InternalError\).*; waited \d+ s",
    ),
}


@pytest.mark.parametrize("fault", [*PASSING_STORE_FAULTS, *LASTING_STORE_FAULTS])
def test_faulty_store(
    fault: str,
    model_server: Any,
    times_sent: Callable[[], int],
    dataset: str,
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    add_result: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lasting, reason = LASTING_STORE_FAULTS.get(fault, (None, ""))
    rules = [lasting] if lasting else PASSING_STORE_FAULTS[fault]
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    if fault == "hangs once":
        monkeypatch.setattr(s3_module, "_READ_TIMEOUT", REQUEST_TIMEOUT)
    monkeypatch.setattr(s3_module, "_FIRST_BACKOFF", 0.02)
    output = f"{s3}/faults-{tmp_path.name}"
    s3_proxy.set_rules(rules)
    first = run(dataset, output, model_server.url, caplog, WAIT if reason else LONG_WAIT)
    requests = times_sent()
    add_result(f"store: {fault}", first, requests)
    assert s3_proxy.faults.keys() == {rule.fault for rule in rules}
    if reason:
        assert re.search(reason, first.error)
    else:
        assert (first.summary.ok, requests) == (ROWS, ROWS)
    s3_proxy.set_rules([])
    second = run(dataset, output, model_server.url, caplog)
    assert (second.summary.ok, second.summary.quarantined) == (ROWS, 0)
    assert check_answers(output) == ROWS
    at_risk = AT_RISK if reason else 0
    print(f"at risk: {times_sent() - ROWS}")
    assert times_sent() <= ROWS + at_risk
