"""Checks from the command line: an output on S3 from run to report, and conditions that attack."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa import ObjectStore

from .conftest import Call

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

ATTACKS = {
    "read a file": "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
    "read a secret": "getenv('AWS_SECRET_ACCESS_KEY') = ''",
    "change a setting": "true; SET enable_external_access = true",
    "write a file": "true) TO '{folder}/mine.csv'; --",
    "reach the network": "row IN (SELECT 1 FROM read_csv('http://127.0.0.1:9/x.csv'))",
    "read another table": "EXISTS (SELECT 1 FROM duckdb_settings())",
    "two lines": "true\nOR 'x' = 'x\x1b[31m",
}


def stamps(store: ObjectStore) -> Mapping[str, str]:
    return {name: store.stamp(name) for name in store.list()}


@pytest.fixture
def dataset(drawn: Path) -> str:
    """Rows whose pairs look like SQL, HTML and Markdown; of every third, the answer is another."""
    rows = json.loads((drawn / "dataset.json").read_text())
    for number, row in enumerate(rows):
        question = f"text Is it ' OR 1=1; DROP TABLE pairs; -- <b>{number}</b> [x](javascript:a)"
        answer = "Blue." if number % 3 == 0 else question.removeprefix("text ")
        text = f"STUB text Question: STUB {question}\nAnswer: {answer}"
        row["conversation"] = [{"from": "human", "value": text}]
    (drawn / "dataset.json").write_text(json.dumps(rows))
    return str(drawn / "dataset.json")


def test_an_output_on_s3_is_checked_filtered_evaluated_and_reported(
    call: Call, stub: Any, dataset: str, s3: str, tmp_path: Path, with_report: None
) -> None:
    output = f"{s3}/checked-{tmp_path.name}"
    asking = (*("run", dataset, "--output", output), "--endpoint", stub.url)
    checks = ("--check", "consistency", "--check", "form", "--keep", "consistency >= 0.5")
    code, out, err = call(*asking, *checks)
    assert code == 0, err
    assert out.splitlines()[0] == ("8 answered, 4 filtered, 0 quarantined; 8 of 12 pairs kept")
    store, requests = ObjectStore(uri=output), stub.stats()["requests"]

    def verified() -> bool:
        return call("verify", output)[0] == 0

    assert verified()
    before = stamps(store)
    for attack in ATTACKS.values():
        flags = ("--keep", attack.format(folder=tmp_path))
        for command in (("filter", output), ("filter", output, "--dry-run")):
            code, out, err = call(*command, *flags)
            assert (code, out, err.count("\n")) == (1, "", 1), attack
            assert "\x1b" not in err
    assert stamps(store) == before
    assert not (tmp_path / "mine.csv").exists()

    code, out, err = call("filter", output, "--keep", "consistency < 0.5", "--dataset", dataset)
    assert (code, err) == (0, "")
    assert "4 of 12 pairs kept (33.3 %), of 4 of 12 rows" in out
    assert verified()
    code, out, err = call("evaluate", output)
    assert (code, err) == (0, "")
    assert "4 of 12 pairs are kept (33.3 %); by the condition consistency < 0.5" in out
    assert "consistency at least 0.5 8 4 0 0 0, 1, 1" in " ".join(out.split())
    assert call("report", output, "--dataset", dataset)[0] == 0
    page = store.read("report.html").decode()
    assert '<h2 id="checks">Checks</h2>' in page
    assert "DROP TABLE pairs; -- &lt;b&gt;0&lt;/b&gt; [x](javascript:a)" in page
    assert "<b>" not in page.replace("<b>stub</b>", "")
    assert stub.stats()["requests"] == requests


@pytest.mark.parametrize("attack", ["read a file", "change a setting", "two lines"])
def test_a_run_refuses_a_condition_before_anything_is_written(
    attack: str, call: Call, stub: Any, dataset: str, tmp_path: Path
) -> None:
    requests, output = stub.stats()["requests"], tmp_path / "out"
    flags = ("--output", str(output), "--endpoint", stub.url, "--keep", ATTACKS[attack])
    code, out, err = call("run", dataset, *flags)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("prefect-imageqa: ")
    assert "Traceback" not in err
    assert (output.exists(), stub.stats()["requests"]) == (False, requests)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--check", "judge", "--rubric", "/etc/passwd"], "axes|section"),
        (["--check", "judge", "--rubric", "/dev/zero"], "regular|large|file"),
        (["--check", "contamination", "--benchmark", "/etc"], "image"),
    ],
)
def test_files_that_are_none_of_a_check_are_refused(
    flags: list[str], message: str, call: Call, stub: Any, dataset: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code, out, err = call("run", dataset, "--output", str(output), "--endpoint", stub.url, *flags)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("prefect-imageqa: ")
    assert any(word in last for word in message.split("|")), last
    assert "root:x" not in last
    assert not output.exists()
