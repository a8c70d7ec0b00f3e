"""The command line as a user's shell sees it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))


def run_cli(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def own_seconds(*command: str) -> float:
    """How long a program works; a busy machine makes it wait besides."""

    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return used() - before


@pytest.mark.parametrize(
    ("command", "seconds"),
    [("", 2), ("run", 5), ("serve", 2), ("demo", 2)],  # the flow itself tells of `run`
)
def test_help_is_there_at_once(command: str, seconds: float) -> None:
    arguments = [*command.split(), "--help"]
    assert "Usage: prefect-imageqa" in run_cli(*arguments).stdout
    assert own_seconds(COMMAND, *arguments) < seconds


def test_serve_help_names_the_command_that_builds_a_server_environment() -> None:
    assert "python -m prefect_imageqa.serving.server.cpu_env" in run_cli("serve", "--help").stdout


def test_importing_the_package_is_quick() -> None:
    assert own_seconds(sys.executable, "-c", "import prefect_imageqa") < 1


def test_json_is_one_line_last_on_stdout(stub: Any, drawn: Path, tmp_path: Path) -> None:
    dataset, output = str(drawn / "dataset.json"), str(tmp_path / "out")
    done = run_cli("run", dataset, "--output", output, "--endpoint", stub.url, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert list(summary) == [
        *("rows", "ok", "filtered", "quarantined", "reused", "requests"),
        *("prompt_tokens", "completion_tokens", "seconds", "output"),
    ]
    assert (summary["rows"], summary["ok"], summary["requests"]) == (12, 12, 12)
    assert summary["output"] == output
    assert 0 < summary["seconds"] < 120
    assert "batch 1: 12 answered, 0 quarantined" in done.stderr


def test_the_options_reach_the_server(stub: Any, drawn: Path, tmp_path: Path) -> None:
    (drawn / "plain.csv").write_text("picture\nimages/000.png\n")
    done = run_cli(
        *("run", str(drawn / "plain.csv"), "--output", str(tmp_path / "out")),
        *("--endpoint", stub.url, "--model", "stub", "--system-prompt", "Be exact."),
        *("--user-prompt", "Ask me.", "--image-key", "picture", "--output-key", "qa"),
        *("--temperature", "0", "--max-tokens", "99", "--seed", "5"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 answered, 0 quarantined", str(tmp_path / "out")]
    body = stub.stats()["bodies"][-1]
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0, 99, 40)
    assert body["messages"] == [
        {"role": "system", "content": "Be exact."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64"}},
                {"type": "text", "text": "Ask me."},
            ],
        },
    ]
    assert json.loads((tmp_path / "out" / "qa.jsonl").read_text())["picture"] == "images/000.png"


MISTAKES = {
    "no dataset": (["run"], 2, "DATASET"),
    "no output": (["run", "DATASET"], 2, "--output"),
    "nothing to ask": (["run", "DATASET", "--output", "OUT"], 2, "--endpoint"),
    "bad number": (["run", "DATASET", "--output", "OUT", "--max-rows", "0"], 2, "--max-rows"),
    "unknown command": (["frobnicate"], 2, "frobnicate"),
    "dataset missing": (["run", "gone.json", "--output", "OUT", "--endpoint", "URL"], 1, "gone"),
    "dataset empty": (["run", "EMPTY", "--output", "OUT", "--endpoint", "URL"], 1, "empty"),
    "format unknown": (["run", "ODD", "--output", "OUT", "--endpoint", "URL"], 1, "odd.xyz"),
    "no column": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--image-key", "pic"],
        1,
        "image, conversation",
    ),
    "no server": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "http://127.0.0.1:9"],
        1,
        "no server answers",
    ),
    "wrong model": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--model", "gpt-5"],
        1,
        "does not serve 'gpt-5'",
    ),
    "no such checkpoint": (
        ["run", "DATASET", "--output", "OUT", "--model", "./no-checkpoint"],
        1,
        "no-checkpoint",
    ),
    "no such interpreter": (["serve", "./no-model", "--python", "/no/python"], 1, "/no/python"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_line(
    mistake: str, stub: Any, drawn: Path, tmp_path: Path
) -> None:
    arguments, exit_code, expected = MISTAKES[mistake]
    (drawn / "empty.json").write_text("[]")
    (drawn / "odd.xyz").write_text("?")
    names = {
        "DATASET": str(drawn / "dataset.json"),
        "EMPTY": str(drawn / "empty.json"),
        "ODD": str(drawn / "odd.xyz"),
        "OUT": str(tmp_path / "out"),
        "URL": stub.url,
    }
    done = run_cli(*(names.get(word, word) for word in arguments))
    told = done.stderr + done.stdout
    assert done.returncode == exit_code, told
    assert expected in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
    if "checkpoint" not in mistake:
        assert len(told.splitlines()) == 1


def test_an_interrupted_run_goes_on(start_stub: Any, drawn: Path, tmp_path: Path) -> None:
    slow = start_stub(latency=0.5, slots=1)
    command = [COMMAND, "run", str(drawn / "dataset.json"), "--output", str(tmp_path / "out")]
    command += ["--endpoint", slow.url, "--batch-size", "2", "--max-in-flight", "1", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    for _ in range(1200):
        if list((tmp_path / "out").glob("pairs/parts/*/*.parquet")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "interrupted; the same command goes on from here" in told
    done = run_cli(*command[1:])
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ok"] == 12
    assert summary["reused"] >= 2
    assert summary["requests"] == 12 - summary["reused"]
