"""Killed with SIGKILL again and again: no row lost, none doubled, little asked twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Rule
from PIL import Image
from prefect.settings import PREFECT_API_URL

pytestmark = pytest.mark.timeout(900)

COMMAND = Path(sys.executable).with_name("prefect-imageqa")
BATCH_SIZE = 32
IN_FLIGHT = 64
AT_RISK = 2 * IN_FLIGHT + BATCH_SIZE
"""Rows of the batches that are in flight at a time: asked, made ready, and about to be stored."""


def write_dataset(folder: Path, count: int) -> Path:
    """Rows that the stub answers with the row's own number."""
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    dataset = folder / "rows.jsonl"
    with dataset.open("w") as file:
        for number in range(count):
            said = f"STUB text **Question:** Which row?\n**Answer:** Row {number}."
            row = {"id": number, "image": "red.png", "conversation": said}
            file.write(json.dumps(row) + "\n")
    return dataset


def start(dataset: Path, output: str, url: str) -> "subprocess.Popen[str]":
    told = {
        "output": output,
        "endpoint": url,
        "batch-size": BATCH_SIZE,
        "max-in-flight": IN_FLIGHT,
        "user-prompt": "What?",
    }
    flags = [word for name, value in told.items() for word in (f"--{name}", str(value))]
    api = PREFECT_API_URL.value()
    assert api
    return subprocess.Popen(
        [str(COMMAND), "run", str(dataset), *flags, "--json"],
        env={**os.environ, "PREFECT_API_URL": api},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """SIGKILL as soon as something is so; it must be before the run ends by itself."""
    deadline = time.monotonic() + 90
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def stored_rows(output: Path) -> int:
    """Rows whose completions are stored."""
    return sum(
        len(json.loads(json.loads(path.read_bytes())["result"])["rows"])
        for path in (output / "pairs" / "completions").glob("[!.]*")
    )


def check_rows(lines: bytes, count: int) -> None:
    """Every row once, in order, with its own answer."""
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["id"] for row in rows] == list(range(count))
    assert all(row["output"].endswith(f"Row {row['id']}.") for row in rows)


def test_a_run_that_is_killed_twenty_times_loses_and_doubles_nothing(
    start_stub: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    count, kills = 4000, 20
    stub = start_stub(f"--count-texts={tmp_path / 'asked'}", latency=0.15, slots=IN_FLIGHT)
    dataset, output = write_dataset(tmp_path, count), tmp_path / "out"
    chance, wasted = random.Random(7), 0
    for kill in range(kills):
        before = stub.stats()["requests"]
        process = start(dataset, str(output), stub.url)
        while stub.stats()["requests"] == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        moment = time.monotonic() + chance.uniform(0, 0.6)
        kill_when(process, lambda moment=moment: time.monotonic() >= moment)  # type: ignore[misc]
        time.sleep(0.3)  # for what was on its way to the stub
        lost = stub.stats()["requests"] - stored_rows(output) - wasted
        assert 0 <= lost <= AT_RISK, f"kill {kill} cost {lost} requests"
        wasted += lost

    summary = finish(start(dataset, str(output), stub.url))
    asked = stub.stats()
    record_property("rows", count)
    record_property("kills", kills)
    record_property("requests", asked["requests"])
    record_property("asked_twice", wasted)
    print(f"{count} rows, {kills} kills, {asked['requests']} requests, {wasted} of them again")
    assert (summary["rows"], summary["ok"], summary["quarantined"]) == (count, count, 0)
    assert asked["requests"] == count + wasted
    assert len(asked["texts"]) == count
    check_rows((output / "qa.jsonl").read_bytes(), count)
    again = finish(start(dataset, str(output), stub.url))
    assert (again["requests"], again["ok"]) == (0, count)


MOMENTS = {
    "between completions and part": Rule("hang", method="PUT", path="/parts/", first=2),
    "while completions are stored": Rule("hang", method="PUT", path="/completions/", first=2),
    "during export": Rule("hang", method="PUT", path="qa.jsonl$"),
    "before the manifest": Rule("hang", method="PUT", path="/keys/"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_while_it_stores_goes_on(
    moment: str,
    start_stub: Any,
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, stub = 600, start_stub(latency=0.15, slots=IN_FLIGHT)
    dataset, output = write_dataset(tmp_path, count), f"{s3}/crash-{tmp_path.name}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    s3_proxy.set_rules([MOMENTS[moment]])
    kill_when(start(dataset, output, stub.url), lambda: s3_proxy.faults["hang"] > 0)
    s3_proxy.set_rules([])
    summary = finish(start(dataset, output, stub.url))
    assert (summary["rows"], summary["ok"]) == (count, count)
    sent = stub.stats()["requests"]
    assert count <= sent <= count + AT_RISK
    if moment != "while completions are stored":
        assert sent <= count + AT_RISK - BATCH_SIZE
    from prefect_imageqa import ObjectStore

    check_rows(ObjectStore(uri=output).read("qa.jsonl"), count)
