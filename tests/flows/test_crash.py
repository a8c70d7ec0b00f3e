"""Runs killed with SIGKILL: no row is lost or duplicated, and few are sent to the model again."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Rule
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import Limits, ObjectStore, image_qa

pytestmark = pytest.mark.timeout(600)

COMMAND = Path(sys.executable).with_name("prefect-imageqa")
BATCH_SIZE, IN_FLIGHT = 16, 32
LATENCY = 0.15
KILLS = 20
AT_RISK = 2 * IN_FLIGHT + BATCH_SIZE
"""Rows of the batches in flight at any moment: sent, being prepared, and about to be stored."""


def text_of(row: int) -> str:
    """The user text of a row: the stub answers it with the row's own number."""
    return f"STUB text **Question:** Which row?\n**Answer:** Row {row}."


def start(dataset: str, output: str, url: str) -> "subprocess.Popen[str]":
    options = {
        "output": output,
        "endpoint": url,
        "batch-size": BATCH_SIZE,
        "max-in-flight": IN_FLIGHT,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    flags.append("--no-image-proof")  # so that the first request is one for a row
    return subprocess.Popen(
        [str(COMMAND), "run", dataset, *flags],
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """SIGKILL a run as soon as a condition holds, which must be before it ends by itself."""
    deadline = time.monotonic() + 180
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()


def finish(dataset: str, output: str, url: str) -> Any:
    limits = Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT)
    return image_qa(dataset, output, endpoint=url, limits=limits)


def stored_rows(output: str) -> set[int]:
    """The rows whose completions are stored."""
    completions = ObjectStore(uri=f"{output}/pairs/completions")
    records = b"".join(map(completions.read, completions.list()))
    return {int(row) for row in re.findall(rb"Row (\d+)\.", records)}


def times_sent(stub: Any) -> dict[int, int]:
    """How often each row was sent to the model."""
    texts = stub.stats()["texts"]
    return {int(re.findall(r"Row (\d+)\.", text)[0]): count for text, count in texts.items()}


def check_export(output: str, count: int) -> None:
    """Check that `qa.jsonl` has every row once, in order, with its own answer."""
    rows = [json.loads(line) for line in ObjectStore(uri=output).read("qa.jsonl").splitlines()]
    assert [row["conversation"] for row in rows] == [text_of(row) for row in range(count)]
    assert all(row["output"].endswith(f"Row {number}.") for number, row in enumerate(rows))


def test_a_run_killed_again_and_again_loses_and_duplicates_no_row(
    start_stub: Any,
    write_rows: Callable[[list[str]], str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    count, output = 3000, str(tmp_path / "out")
    chance = random.Random(9)
    stub = start_stub(f"--count-texts={tmp_path / 'texts'}", latency=LATENCY, slots=IN_FLIGHT)
    dataset = write_rows([text_of(row) for row in range(count)])
    final: dict[int, int] = {}  # row -> how often it was sent until it was stored
    for seconds in [chance.uniform(0, 0.5) for _ in range(KILLS)]:
        before = stub.stats()["requests"]
        process = start(dataset, output, stub.url)
        while stub.stats()["requests"] == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        moment = time.monotonic() + seconds
        kill_when(process, lambda moment=moment: time.monotonic() >= moment)  # type: ignore[misc]
        sent, stored = times_sent(stub), stored_rows(output)
        assert final.keys() <= stored
        assert stored <= sent.keys()
        print(f"killed after {seconds} s: {len(sent) - len(stored)} rows at risk")
        assert len(sent) - len(stored) <= AT_RISK
        final |= {row: sent[row] for row in stored - final.keys()}

    assert final
    summary = finish(dataset, output, stub.url)
    sent = times_sent(stub)
    twice = sum(sent.values()) - count
    record_property("rows", count)
    record_property("sent_twice", twice)
    print(f"{count} rows, {KILLS} kills, {twice} rows sent again")
    assert (summary.rows, summary.ok, summary.quarantined) == (count, count, 0)
    assert len(sent) == count
    assert {row: sent[row] for row in final} == final, "stored rows were sent again"
    check_export(output, count)
    assert (finish(dataset, output, stub.url).requests, sum(sent.values())) == (0, count + twice)


MOMENTS = {
    "while completions are stored": Rule("hang", method="PUT", path="/completions/", first=2),
    "between completions and part": Rule("hang", method="PUT", path="/parts/", first=2),
    "during export": Rule("hang", method="PUT", path="qa.jsonl$"),
    "before the manifest": Rule("hang", method="PUT", path="/keys/"),
}


def test_a_run_killed_at_each_step_of_storing_resumes(
    start_stub: Any,
    write_rows: Callable[[list[str]], str],
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, output = 240, f"{s3}/crash-{tmp_path.name}"
    stub = start_stub(f"--count-texts={tmp_path / 'texts'}", latency=LATENCY, slots=IN_FLIGHT)
    dataset = write_rows([text_of(row) for row in range(count)])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    requests = {}
    for moment, rule in MOMENTS.items():
        s3_proxy.set_rules([rule])
        hung = s3_proxy.faults["hang"]
        kill_when(
            start(dataset, output, stub.url),
            lambda hung=hung: s3_proxy.faults["hang"] > hung,  # type: ignore[misc]
        )
        s3_proxy.set_rules([])
        requests[moment] = stub.stats()["requests"]
        at_risk = len(times_sent(stub)) - len(stored_rows(output))
        print(f"killed {moment}: {at_risk} rows at risk")
        assert at_risk <= AT_RISK
    summary = finish(dataset, output, stub.url)
    assert (summary.rows, summary.ok, summary.requests) == (count, count, 0)
    # Each of the first two kills costs some rows. After that every row is stored.
    assert count <= requests["during export"] <= count + 2 * AT_RISK
    assert stub.stats()["requests"] == requests["before the manifest"] == requests["during export"]
    check_export(output, count)
