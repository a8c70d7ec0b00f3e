"""The command line: exit codes, one-line errors, output and interruption."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL
from prefect_imageqa.flows.cli.main import _IMPORTED_LATER
from prefect_imageqa.tasks.parsing.qa_pairs import parse_qa_pairs

from .conftest import Call

COMMAND = str(Path(sys.executable).with_name("prefect-imageqa"))

# The command line of the tests is passed in `sys.argv`, as that of a user is.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Environment of a process that uses the tests' Prefect server."""
    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}


def run_cli(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=240, check=False
    )


IMPORTED = """
import resource, sys
import prefect_imageqa
if arguments := sys.argv[1:]:
    from prefect_imageqa.flows.cli.main import main
    try:
        main()
    except SystemExit:
        pass
print(*{name.partition(".")[0] for name in sys.modules})
"""

SLOW_MODULES = {"prefect", "pandas", "numpy", "pyarrow", "PIL", "aiohttp", "pydantic", "matplotlib"}


@pytest.mark.parametrize(
    ("command", "not_imported", "cpu_seconds"),
    [
        # `run` shows the flow's own parameters, and importing the flow takes 3 s.
        pytest.param("run --help", {"matplotlib", "s3fs", "torch"}, 15, id="run"),
        pytest.param("serve --help", SLOW_MODULES, 2, id="serve"),
        pytest.param("demo --help", SLOW_MODULES, 2, id="demo"),
        pytest.param("--help", SLOW_MODULES, 2, id="help"),
        pytest.param("", SLOW_MODULES | {"cyclopts", "rich"}, 1, id="import"),
    ],
)
def test_startup_imports_no_slow_modules(
    command: str, not_imported: set[str], cpu_seconds: float
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *command.split()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ("Usage: " in done.stdout) is ("--help" in command)
    imported = {*done.stdout.splitlines()[-1].split()}
    assert not not_imported & imported
    # Every run needs it: it is imported while Prefect's server starts.
    assert ("fastapi" in imported) is (command == "run --help")
    # CPU time, of which another busy process takes nothing; the bounds are 5 times the usual.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < cpu_seconds


@pytest.mark.parametrize("command", _IMPORTED_LATER)
def test_the_help_of_a_command_says_what_its_exit_codes_mean(command: str, call: Call) -> None:
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "exit code" in " ".join(out.lower().split())


def test_serve_help_names_the_command_that_builds_a_server_environment(call: Call) -> None:
    _, out, _ = call("serve", "--help")
    assert "Usage: prefect-imageqa serve" in out
    assert "python -m prefect_imageqa.serving.server.cpu_env" in out


def test_a_run_without_a_server_starts_one_and_ends_it(
    stub: Any, drawn: Path, tmp_path: Path, temporary_servers: Callable[[int], set[int]]
) -> None:
    dataset, output = str(drawn / "dataset.json"), str(tmp_path / "out")
    # No Prefect server is configured: the run starts one, here on an empty database.
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    # As on a company's network, where no proxy can reach a server on this machine.
    env |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED", "no_proxy", "NO_PROXY"):
        env.pop(name, None)
    command = [COMMAND, "run", dataset, "--output", output, "--endpoint", stub.url, "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, text=True, stdout=pipe, stderr=pipe
    ) as process:
        servers: set[int] = set()
        while process.poll() is None:
            servers |= temporary_servers(process.pid)
            time.sleep(0.1)
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert len(servers) == 1
    deadline = time.monotonic() + 30
    while temporary_servers(process.pid):  # it is told to end when the command has ended
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "View at" not in stderr  # a temporary server has no UI
    summary = json.loads(stdout.splitlines()[-1])
    assert list(summary) == [
        *("rows", "ok", "filtered", "quarantined", "reused", "requests"),
        *("prompt_tokens", "completion_tokens", "seconds", "output"),
    ]
    assert (summary["rows"], summary["ok"], summary["requests"]) == (12, 12, 12)
    assert summary["output"] == output
    assert summary["seconds"] > 0
    assert "batch 1: 12 answered, 0 quarantined" in stderr


def test_options_reach_the_server(stub: Any, drawn: Path, tmp_path: Path, call: Call) -> None:
    (drawn / "plain.csv").write_text("picture\nimages/000.png\n")
    code, stdout, stderr = call(
        *("run", str(drawn / "plain.csv"), "--output", str(tmp_path / "out")),
        *("--endpoint", stub.url, "--model", "stub", "--system-prompt", "Be exact."),
        *("--user-prompt", "Ask me.", "--image-key", "picture", "--output-key", "qa"),
        *("--temperature", "0", "--max-tokens", "99", "--seed", "5"),
        *("--parser", f"{parse_qa_pairs.__module__}:{parse_qa_pairs.__name__}"),
        *("--style", "chat"),
    )
    assert code == 0, stderr
    assert stdout.splitlines() == ["1 answered, 0 quarantined", str(tmp_path / "out")]
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


ERRORS = {
    "no dataset": (["run"], 2, "DATASET"),
    "no output": (["run", "DATASET"], 2, "--output"),
    "no model": (["run", "DATASET", "--output", "OUT"], 2, "--endpoint"),
    "bad number": (["run", "DATASET", "--output", "OUT", "--max-rows", "0"], 2, "--max-rows"),
    "unknown command": (["frobnicate"], 2, "frobnicate"),
    "missing dataset": (
        ["run", "missing.json", "--output", "OUT", "--endpoint", "URL"],
        1,
        "missing.json",
    ),
    "one slash": (
        ["run", "DATASET", "--output", "s3:/bucket/qa", "--endpoint", "URL"],
        1,
        "s3:/bucket/qa: give a local path or s3://bucket/prefix",
    ),
    "no checkpoint": (
        ["run", "DATASET", "--output", "OUT", "--model", "./no-checkpoint"],
        1,
        "no-checkpoint: no such folder",
    ),
    "no parser": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--parser", "no_such:parser"],
        1,
        "cannot load the parser 'no_such:parser' (No module named 'no_such')",
    ),
    "unknown export": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--export", "llama"],
        2,
        " or 'webdataset', not 'llama'",
    ),
    "images of an export": (
        [
            *("run", "DATASET", "--output", "OUT", "--endpoint", "URL"),
            *("--export", "llava", "--images", "embed"),
        ],
        2,
        "--images: format llava cannot embed images: give copy or paths",
    ),
    "pilot": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--pilot-min-parsed", "3"],
        2,
        "--pilot-min-parsed: Input should be less than or equal to 1",
    ),
    "approval without a pilot": (
        ["run", "DATASET", "--output", "OUT", "--endpoint", "URL", "--pilot-approval"],
        2,
        "--pilot-approval: an approval needs a pilot: give its number of rows",
    ),
}


def fill_in(arguments: list[str], stub: Any, drawn: Path, tmp_path: Path) -> list[str]:
    names = {
        "DATASET": str(drawn / "dataset.json"),
        "OUT": str(tmp_path / "out"),
        "URL": stub.url,
    }
    return [names.get(word, word) for word in arguments]


@pytest.mark.parametrize("case", ERRORS)
def test_a_user_error_is_one_line(
    case: str,
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    arguments, exit_code, expected = ERRORS[case]
    code, stdout, stderr = call(*fill_in(arguments, stub, drawn, tmp_path))
    assert code == exit_code
    [line] = (stdout + stderr).splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "expected"),
    [
        pytest.param(["demo", "--rows", "0"], 2, "--rows", id="usage"),
        pytest.param(
            ["serve", "./no-model", "--python", "/no/python"], 1, "/no/python", id="server"
        ),
        # Found only inside the flow run: Prefect logs the failure, without a traceback.
        pytest.param(
            ["run", "DATASET", "--output", "OUT", "--endpoint", "no-block"],
            1,
            "there is no vLLM Endpoint block named 'no-block'",
            id="flow",
        ),
    ],
)
def test_a_process_with_a_user_error_prints_no_traceback(
    arguments: list[str],
    exit_code: int,
    expected: str,
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    done = run_cli(*fill_in(arguments, stub, drawn, tmp_path), env=environment)
    text = done.stderr + done.stdout
    assert done.returncode == exit_code, text
    assert expected in text
    assert "Traceback" not in text
    assert len(text.splitlines()) == 1 or arguments[0] == "run"
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [COMMAND, "status", "--json", "/nothing/there"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=240, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_only_an_interrupted_run_can_be_resumed(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prefect_imageqa.serving.server.server.VLLMServer.__init__", interrupt)
    assert call("serve", "owner/name") == (130, "", "prefect-imageqa: interrupted\n")


def test_an_interrupted_run_resumes(
    start_stub: Any,
    stub: Any,
    drawn: Path,
    tmp_path: Path,
    environment: dict[str, str],
    call: Call,
) -> None:
    # One request a second: there are 10 s to interrupt the run after its first batch.
    slow, output = start_stub(latency=1, slots=1), tmp_path / "out"
    command = ["run", str(drawn / "dataset.json"), "--output", str(output), "--json"]
    command += ["--batch-size", "2", "--max-in-flight", "1", "--endpoint"]
    process = subprocess.Popen(
        [COMMAND, *command, slow.url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(output.glob("pairs/parts/*/*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "interrupted; run the same command again to resume" in text
    _, stdout, _ = call(*command, stub.url)
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["ok"] == 12
    assert summary["reused"] >= 2
    assert summary["requests"] == 12 - summary["reused"]
