"""The benchmarks that write `docs/performance.md`, with few rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_images import draw_images, new_files
from measured import measure
from performance import BEGIN, END, PAGE, main
from performance_bench import CLIENTS, Run
from performance_figures import FIGURES, table
from servers import StubServer
from stub_requests import without_images

ALLOCATE = (
    "import subprocess, sys; bytearray(100 << 20); subprocess.Popen([sys.executable, '-c', {!r}])"
)
BURN = "import time\nwhile time.process_time() < 0.5: pass"


def run(rows: int, seconds: float) -> Run:
    return Run(rows, seconds, wall=seconds, cpu=seconds, peak_mib=1, tree_mib=1)


def test_the_table_has_medians_ratios_and_goals() -> None:
    runs = {"raw": [run(100, 1), run(100, 1)], "ours": [run(100, 2), run(100, 4), run(100, 3)]}
    (line,) = [line for line in table({"vllm": runs}).splitlines() if "vLLM" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["33.3", "raw client", "100", "0.33", ">= 0.95: missed", "3"]


def test_the_page_has_room_for_the_table() -> None:
    text = PAGE.read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.timeout(600)
def test_one_command_measures_keeps_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"# Before\n{BEGIN}old\n{END}after\n")
    command = ["performance.py", "one", "--quick", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", [*command, f"--page={page}", f"--results={results}"])
    main()
    assert page.read_text().startswith(f"# Before\n{BEGIN}")
    assert page.read_text().endswith(f"{END}after\n")
    assert "| One row: seconds" in page.read_text()
    assert "old" not in page.read_text()
    runs = json.loads(results.read_text())["one"]["runs"]
    assert [each["rows"] for each in runs["ours"]] == [1]
    assert set(FIGURES) > {"one"}


def test_processes_left_behind_count(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALLOCATE.format(BURN)]
    used = measure(command, os.environ, tmp_path / "log", tree=True)
    assert used.cpu >= 0.5
    assert used.peak_mib >= 100


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        measure([sys.executable, "-c", "raise SystemExit('no luck')"], {}, tmp_path / "log")


def test_the_raw_client_asks_about_each_image_once(stub: StubServer, tmp_path: Path) -> None:
    drawn = [path.read_bytes() for path in draw_images(tmp_path / "drawn", 2, seed=1, noise=0)]
    paths = new_files(tmp_path / "new", 5, 7, drawn)
    assert len({path.read_bytes() for path in paths}) == 5
    before = stub.stats()["requests"]
    task = {"url": stub.url, "model": stub.model, "images": str(tmp_path / "new"), "at_once": 3}
    task |= {"prompts": ["Be brief.", "What is there?"], "output": str(tmp_path / "out")}
    command = [sys.executable, str(CLIENTS), "raw", json.dumps(task)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["rows"] == 5
    stats = stub.stats()
    assert stats["requests"] - before == 5
    assert stats["bodies"][-1]["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64"}},
        {"type": "text", "text": "What is there?"},
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_stub_reads_requests_without_their_images(count: int) -> None:
    def body(uri: str) -> bytes:
        parts = [{"type": "image_url", "image_url": {"url": uri}}] * count
        return json.dumps({"content": [*parts, {"type": "text", "text": 'a "b, c"'}]}).encode()

    assert without_images(body("data:image/png;base64,AAAA")) == body("data:image/png;base64")
