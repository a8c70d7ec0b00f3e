"""A second pass over the pairs of the first: all that makes a pass safe holds without more code."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, str(Path(__file__).with_name("judging.py"))]
ROWS = 96


def test_a_second_pass_is_resumed_cached_quarantined_and_counted(
    start_stub: Any, drawn: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    stub = start_stub("--count-texts", str(journal), latency=0.15, slots=8)
    dataset, output = drawn / "rows.json", tmp_path / "out"
    rows = [
        {
            "image": f"images/{row % 12:03}.png",
            "conversation": f"STUB finish length {row}" if row % 12 == 11 else f"row {row}",
            "judge": f"STUB finish length {row}" if row % 12 == 5 else f"STUB text yes{' ' * row}",
        }
        for row in range(ROWS)
    ]
    for row in rows[::12]:
        row["judge"] = f"STUB text maybe{' ' * rows.index(row)}"
    dataset.write_text(json.dumps(rows))

    def asked(what: str) -> int:
        texts = stub.stats()["texts"]
        return sum(count for text, count in texts.items() if text.startswith(what))

    command = [*COMMAND, str(dataset), str(output), stub.url]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while asked("STUB text") < 30:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = asked("")
    assert asked("row") + asked("STUB finish length") >= ROWS

    def run() -> dict[str, Any]:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
        counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return counts

    again = run()
    pairs, judge = again["pairs"], again["judge"]
    # The first pass was finished: nothing of it is asked again.
    assert (pairs["rows"], pairs["ok"], pairs["quarantined"]) == (ROWS, 88, 8)
    assert (pairs["reused"], pairs["attempted"], pairs["requests"]) == (88, 0, 0)
    # Of the second one each pair is a row: 88, of which 8 are cut and 8 say nothing.
    assert judge["rows"] == 88 == judge["ok"] + judge["quarantined"]
    assert judge["reasons"] == {"truncated": 8, "unparsed": 8}
    assert 0 < judge["reused"] < 88
    assert judge["requests"] == asked("") - first
    assert again["verdicts"].count({"verdict": "yes"}) == 72
    # Asked twice is at most what was in flight when it was killed: batches of 8, 8 at a time.
    total = asked("")
    assert 88 + ROWS <= total <= 88 + ROWS + 24
    assert total > first
    assert {path.parent.name for path in output.glob("judge/parts/*/*.parquet")} == {"verdict-v1"}
    assert not {path.name for path in output.glob("judge/completions/*")} & {
        path.name for path in output.glob("pairs/completions/*")
    }
    # Once more asks nothing; without its parts the second pass is read from its completions.
    for part in output.glob("judge/parts/*/*.parquet"):
        part.unlink()
    third = run()
    assert asked("") == total
    assert third["verdicts"] == again["verdicts"]
    assert (third["judge"]["attempted"], third["judge"]["ok"]) == (0, 72)
