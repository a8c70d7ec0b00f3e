"""`report` on the outputs of real runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from prefect_imageqa import Asking, Images, ObjectStore, image_qa
from prefect_imageqa.tasks.reporting import report
from prefect_imageqa.tasks.storing.layout import open_output

from .conftest import Call

SCRIPT = "<script>alert(1)</script>"

# `main` is what is tested, and it reads sys.argv.
pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('s3')}/report-{tmp_path.name}"


def set_reply(rows: list[dict[str, Any]], number: int, reply: str) -> None:
    rows[number]["conversation"] = [{"from": "human", "value": f"STUB {reply}"}]


@pytest.fixture
def mixed(drawn: Path) -> Path:
    """A dataset of 12 rows; some replies are hostile, truncated, or fail."""
    path = drawn / "dataset.json"
    rows = json.loads(path.read_text())
    set_reply(rows, 2, f"text **Question:** {SCRIPT}\n**Answer:** [x](javascript:alert(1))")
    set_reply(rows, 4, "finish length")
    set_reply(rows, 5, f"text {SCRIPT}")
    (drawn / rows[7]["image"]).write_bytes(SCRIPT.encode())
    path.write_text(json.dumps(rows))
    return path


def test_a_report_is_recreated_without_requests(
    with_report: None, call: Call, stub: Any, mixed: Path, output: str
) -> None:
    asking = Asking(corrective_retry=False)
    summary = image_qa(str(mixed), output, endpoint=stub.url, asking=asking)
    assert (summary.ok, dict(summary.reasons)) == (
        9,
        {"truncated": 1, "unparsed": 1, "not_an_image": 1},
    )
    store = ObjectStore(uri=output)
    for name in ("report.html", "README.md"):
        store.remove(name)
    requests = stub.stats()["requests"]
    assert call("report", output, "--dataset", str(mixed)) == (0, f"{output}/report.html\n", "")
    assert stub.stats()["requests"] == requests

    page = store.read("report.html").decode()
    cards = re.findall(r'<article class="card" data-kind="(\w+)">(.*?)</article>', page, re.DOTALL)
    kinds = [kind for kind, _ in cards]
    assert kinds.count("answered") == 9
    assert sorted(kinds[9:]) == ["not_an_image", "truncated", "unparsed"]
    assert {kind: card.count("data:image/jpeg") for kind, card in cards} == {
        "answered": 1,
        "truncated": 1,
        "unparsed": 1,
        "not_an_image": 0,
    }
    assert page.count("<script>") == 1
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3
    assert page.count("[x](javascript:alert(1))") == 2
    card = DatasetCard(store.read("README.md").decode())
    assert card.data.get("size_categories") == "n<1K"
    assert "| 12 | 9 | 3 | 9 |" in card.text


@pytest.mark.parametrize("exists", [False, True], ids=["no output", "no completed run"])
def test_an_output_without_a_completed_run_is_a_one_line_error(
    call: Call, tmp_path: Path, exists: bool
) -> None:
    output = str(tmp_path / "out")
    if exists:
        open_output(ObjectStore(uri=output))
    code, out, err = call("report", output)
    message = "no run has completed here yet" if exists else "there is no output here"
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"prefect-imageqa: {output}: {message}")


def test_a_missing_dataset_and_a_corrupted_export(
    call: Call, stub: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "draw_plots", lambda _: [])
    output = tmp_path / "out"
    dataset = drawn / "dataset.json"
    sizes = [(drawn / row["image"]).stat().st_size for row in json.loads(dataset.read_text())[:5]]
    limits = Images(max_file_bytes=max(sizes) - 1)
    image_qa(str(dataset), str(output), endpoint=stub.url, max_rows=5, images=limits)

    assert call("report", str(output), "--dataset", str(dataset))[0] == 0
    shown = len(sizes) - sizes.count(max(sizes))
    assert (output / "report.html").read_text().count("data:image/jpeg") == shown
    code, _, err = call("report", str(output))
    assert (code, err) == (0, "the report has no images: give the run's dataset as --dataset\n")
    assert (output / "report.html").read_text().count("no image") == 5

    shutil.rmtree(drawn)
    code, _, err = call("report", str(output), "--dataset", str(drawn / "dataset.json"))
    assert (code, err.count("\n")) == (1, 1)

    (output / "quarantine.jsonl").write_text("{\n")
    code, _, err = call("report", str(output))
    assert (code, err.count("\n")) == (1, 1)
    assert "quarantine.jsonl is corrupted" in err
