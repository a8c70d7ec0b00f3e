"""Runs killed with SIGKILL: no row is lost or duplicated, and few are sent to the model again."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Rule
from prefect.settings import PREFECT_API_URL
from prefect_imageqa import Checks, Limits, ObjectStore, image_qa
from prefect_imageqa.flows.filtering import filtered
from prefect_imageqa.tasks.exporting.pairs_parquet import PAIRS
from prefect_imageqa.tasks.exporting.row_pairs import read_pairs
from prefect_imageqa.tasks.exporting.verify_output import verify
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.runs.run_record import completed_run
from prefect_imageqa.tasks.storing.layout import ALL_PAIRS, FILTERED, JUDGED

pytestmark = pytest.mark.timeout(600)

COMMAND = Path(sys.executable).with_name("prefect-imageqa")
BATCH_SIZE, IN_FLIGHT = 16, 32
LATENCY = 0.15
KILLS = 20
AT_RISK = 2 * (IN_FLIGHT + BATCH_SIZE) + BATCH_SIZE
"""Rows sent but not stored at most, even if nothing can be stored: no batch is started while
IN_FLIGHT + BATCH_SIZE rows are asked, or as many replies wait; one batch may be of either kind."""
PLACES = re.compile(r"Row \d+, (?:left|right)\.")


def text_of(row: int) -> str:
    """The user text of a row: the stub answers it with the row's own number."""
    return f"STUB text **Question:** Which row?\n**Answer:** Row {row}."


def start(dataset: str, output: str, url: str, *more: str) -> "subprocess.Popen[str]":
    options = {
        "output": output,
        "endpoint": url,
        "batch-size": BATCH_SIZE,
        "max-in-flight": IN_FLIGHT,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    flags += ["--no-image-proof", *more]  # so that the first request is one for a row
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
    assert process.wait(60) == -signal.SIGKILL
    process.communicate()


def kill_at(proxy: FaultProxy, hangs: Rule, begin: Callable[[], "subprocess.Popen[str]"]) -> None:
    """Begin a run and SIGKILL it when a request to its store hangs."""
    proxy.set_rules([hangs])
    kill_when(begin(), lambda: proxy.faults["hang"] > 0)
    proxy.set_rules([])


def finish(dataset: str, output: str, url: str, **options: Any) -> Any:
    limits = Limits(batch_size=BATCH_SIZE, max_in_flight=IN_FLIGHT)
    return image_qa(dataset, output, endpoint=url, limits=limits, **options)


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
        kill_at(s3_proxy, rule, lambda: start(dataset, output, stub.url))
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


def text_with_pairs(row: int) -> str:
    """The user text of a row: the stub writes two pairs, and answers their questions again.

    Of every sixth row both answers then differ, of every fourth the second. Every tenth row fails.
    """
    if row % 10 == 9:
        return f"STUB status 400 row {row}"
    left, right = f"Row {row}, left.", f"Row {row}, right."
    answers = ["Blue." if row % 6 == 0 else left, "Blue." if {0} & {row % 4, row % 6} else right]
    asked = zip((left, right), answers, strict=True)
    lines = [f"**Question:** STUB text {again}\n**Answer:** {answer}" for again, answer in asked]
    return "STUB text " + "\n".join(lines)


def check_conserved(output: str, counts: RunCounts) -> None:
    """Check that `verify` finds nothing, and that each row and each pair is there once."""
    store = ObjectStore(uri=output)
    assert verify(store).problems == []
    assert counts.rows == counts.ok + counts.filtered + counts.quarantined
    kept, taken, all_pairs = (
        Counter((found.row, pair) for found in read_pairs(store, name) for pair in found.pairs)
        for name in (PAIRS, FILTERED, ALL_PAIRS)
    )
    assert kept + taken == all_pairs
    assert max(all_pairs.values()) == 1
    assert (kept.total(), taken.total()) == (counts.pairs, counts.filtered_pairs)


def test_a_run_killed_in_a_check_goes_on_where_it_was(
    start_stub: Any,
    write_rows: Callable[[list[str]], str],
    s3: str,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count, output = 240, f"{s3}/check-{tmp_path.name}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    stub = start_stub(f"--count-texts={tmp_path / 'texts'}", latency=LATENCY, slots=IN_FLIGHT)
    dataset = write_rows([text_with_pairs(row) for row in range(count)])

    def sent() -> Counter[str]:
        return Counter(stub.stats()["texts"])

    plain = finish(dataset, output, stub.url)
    rows = sent()
    assert (plain.ok, plain.quarantined, plain.pairs) == (216, 24, 432)
    assert rows == dict.fromkeys(map(text_with_pairs, range(count)), 1)
    questions = Counter({f"STUB text {place}" for place in PLACES.findall("\n".join(rows))})

    def begin() -> "subprocess.Popen[str]":
        check = ["--check", "consistency", "--keep", "consistency > 0"]
        return start(dataset, output, stub.url, *check)

    kill_at(s3_proxy, Rule("hang", method="PUT", path="/consistency/completions/", first=5), begin)
    stored = ObjectStore(uri=f"{output}/checks/consistency/completions")
    replies = b"".join(map(stored.read, stored.list())).decode()
    finished = {f"STUB text {place}" for place in PLACES.findall(replies)}
    assert 0 < len(finished) < 216 * 2
    at_risk = len(sent() - rows) - len(finished)
    kill_at(s3_proxy, Rule("hang", method="PUT", path=f"/{FILTERED}"), begin)
    assert ObjectStore(uri=output).exists(JUDGED)
    asked = sent() - rows
    assert asked.keys() == questions.keys()
    assert {asked[question] for question in finished} == {1}
    assert asked.total() - len(questions) == at_risk <= AT_RISK

    checks = Checks(names=("consistency",), keep="consistency > 0")
    checked = finish(dataset, output, stub.url, checks=checks)
    assert (checked.requests, checked.quarantined) == (0, 24)
    assert (checked.filtered, checked.filtered_pairs) == (40, 80 + 40)
    check_conserved(output, checked)

    before = sent()
    more = finish(dataset, output, stub.url, checks=Checks(names=("consistency", "blind")))
    assert sent() - before == questions
    check_conserved(output, more)
    with filtered(ObjectStore(uri=output), "row % 2 = 0 AND NOT blind_answerable", []):
        pass
    check_conserved(output, completed_run(ObjectStore(uri=output)).counts)
    assert sent() == before + questions
