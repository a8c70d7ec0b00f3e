"""A second pass over the pairs of the first is as safe as any pass, without code of its own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fault_proxy import FaultProxy, Rule
from prefect.settings import PREFECT_API_URL
from prefect_imageqa.flows.open_pass import _is_logged

JUDGING = Path(__file__).with_name("judging.py")
ROWS = 96


def run_judged(dataset: Path, output: Path, url: str) -> Any:
    """Run the flow of `judging.py` in this process."""
    spec = importlib.util.spec_from_file_location("judging", JUDGING)
    assert spec
    assert spec.loader
    judging = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judging)
    return judging.judged(str(dataset), str(output), url)


def test_second_pass_is_resumed_cached_quarantined_and_counted(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    stub = start_stub("--count-texts", str(tmp_path / "texts"), latency=0.1, slots=8)
    dataset, output = drawn / "rows.json", tmp_path / "out"
    rows = [
        {
            "image": f"images/{row % 12:03}.png",
            "conversation": f"STUB finish length {row}" if row % 12 == 11 else f"row {row}",
            "judge": f"STUB finish length {row}" if row % 12 == 5 else f"STUB text yes{' ' * row}",
        }
        for row in range(ROWS)
    ]
    for row in range(0, ROWS, 12):
        rows[row]["judge"] = f"STUB text maybe{' ' * row}"
    dataset.write_text(json.dumps(rows))

    def times_sent() -> "Counter[str]":
        return Counter(stub.stats()["texts"])

    def judged_rows() -> int:
        return sum(text.startswith("STUB text") for text in times_sent())

    # After 40 requests of the second pass, no more are answered: so it cannot end before the kill.
    hangs = Rule("hang", path="/chat/", first=ROWS + 41)
    with FaultProxy("127.0.0.1", stub.port, [hangs]) as proxy:
        killed = subprocess.Popen(
            [sys.executable, str(JUDGING), str(dataset), str(output), proxy.url],
            env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 180
        while judged_rows() < 30 or not list(output.glob("judge/parts/*/*.parquet")):
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    before = times_sent().total()
    assert before >= ROWS + 30

    again = run_judged(dataset, output, stub.url)
    pairs, judge = again["pairs"], again["judge"]
    # The first pass was finished: none of its rows is sent again.
    assert (pairs["rows"], pairs["ok"], pairs["quarantined"]) == (ROWS, 88, 8)
    assert (pairs["reused"], pairs["attempted"], pairs["requests"]) == (88, 0, 0)
    # Each pair is a row of the second pass: 88, of which 8 are truncated and 8 are no verdicts.
    assert judge["rows"] == 88 == judge["ok"] + judge["quarantined"]
    assert judge["reasons"] == {"truncated": 8, "unparsed": 8}
    assert 0 < judge["reused"] < 88
    assert again["verdicts"].count({"verdict": "yes"}) == 72
    # Rows sent twice were in flight at the kill: those of 3 batches of 8 rows, for 8 slots.
    sent = times_sent()
    assert len(sent) == 88 + ROWS
    assert max(sent.values()) <= 2
    assert sent.total() <= 88 + ROWS + 24
    # Apart from requests that were on their way when the run was killed.
    assert 0 <= sent.total() - before - judge["requests"] <= 8
    assert {path.parent.name for path in output.glob("judge/parts/*/*.parquet")} == {"verdict-v1"}
    assert not {path.name for path in output.glob("judge/completions/*")} & {
        path.name for path in output.glob("pairs/completions/*")
    }
    # Another run sends nothing: without its parts, the second pass is parsed from completions.
    for part in output.glob("judge/parts/*/*.parquet"):
        part.unlink()
    third = run_judged(dataset, output, stub.url)
    assert times_sent() == sent
    assert third["verdicts"] == again["verdicts"]
    assert (third["judge"]["attempted"], third["judge"]["ok"]) == (0, 72)


def test_ten_times_as_many_batches_have_900_more_lines_in_the_log() -> None:
    for batches, lines in ((999, 999), (9_999, 1_899), (99_999, 2_799)):
        assert sum(map(_is_logged, range(1, batches + 1))) == lines
