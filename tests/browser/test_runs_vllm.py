"""Runs of a deployment in Prefect's UI: one waits for approval, one checks its pairs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Page, expect
from prefect_imageqa.serving.demo_model import scenes
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.serving.server.launch import ServerOptions
from prefect_imageqa.serving.server.server import VLLMServer

from .conftest import artifacts_of, fill, form_field, press

pytestmark = pytest.mark.timeout(600)

ROWS, PILOT = 24, 8
SCENES = 64
CHECKPOINT = Path(scenes.__file__).parent / "checkpoint"
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def write_dataset(folder: Path) -> None:
    """The first reply tries to run as a script."""
    write_demo_dataset(folder, ROWS, seed=5)
    rows = json.loads((folder / "dataset.json").read_text())
    reply = f"STUB text **Question:** What? {HOSTILE}\n**Answer:** {HOSTILE}"
    rows[0]["conversation"] = [{"from": "human", "value": reply}]
    (folder / "dataset.json").write_text(json.dumps(rows))


def resume(page: Page, screenshot: Any) -> None:
    """Press Resume on the page of a run; retry while the server's database is locked."""
    for _ in range(5):
        page.get_by_role("button", name="Resume").click()
        dialog = page.locator(".p-modal", has_text="rows have usable pairs")
        expect(dialog).to_be_visible()
        screenshot("pilot-resume")
        with page.expect_response(lambda response: response.url.endswith("/resume")) as response:
            dialog.get_by_role("button", name="Submit").click()
        if response.value.status != 503:
            break
        page.reload()
    assert response.value.ok, response.value.text()


def test_a_run_waits_until_its_pilot_is_approved(
    page: Page, ui: Any, start_stub: Any, page_log: Any, screenshot: Any
) -> None:
    stub = start_stub()
    write_dataset(ui.folder / "shapes")
    deployment = ui.api("/deployments/name/image-qa/on-demand")
    parameters = {
        "dataset": "shapes/dataset.json",
        "output": "pilot",
        "endpoint": stub.url,
        "pilot": {"rows": PILOT, "approval": True},
    }
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run_id = ui.api(path, {"parameters": parameters})["id"]
    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Paused").first).to_be_visible(timeout=120_000)
    asked = stub.stats()["requests"]
    assert asked == PILOT + 2 * 3  # of which three rows were asked with and without their images
    screenshot("pilot-paused")

    page.goto(f"{ui.url}/artifacts/artifact/{artifacts_of(ui, run_id)['pilot']}")
    expect(page.get_by_text("8 of 8 rows have usable pairs (100%)")).to_be_visible()
    expect(page.locator('img[src^="data:image/"]')).to_have_count(PILOT)
    expect(page.get_by_text("onerror").first).to_be_visible()
    screenshot("pilot-gallery")

    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert stub.stats()["requests"] == asked
    resume(page, screenshot)
    run = ui.wait_for_run(run_id)
    assert run["state_name"] == "Completed", run["state"]
    assert stub.stats()["requests"] == asked + ROWS - PILOT
    assert len((ui.folder / "pilot" / "qa.jsonl").read_text().splitlines()) == ROWS
    expect(page.get_by_text("Completed").first).to_be_visible()
    assert (page_log.dialogs, page_log.external()) == ([], [])


def counts_of(output: Path) -> dict[str, list[int]]:
    """What is counted about each step, from the files of an output: what remains, passes, fails."""
    judged = pd.read_parquet(output / "checks" / "judged.parquet")
    score, same = judged["consistency"], judged["swapped_same"].astype("boolean")
    differs, is_same = score < 0.5, same.fillna(False)
    of_score = [(~differs).sum(), (score >= 0.5).sum(), differs.sum(), score.isna().sum()]
    of_same = [(~differs & ~is_same).sum(), (~same).sum(), same.sum(), same.isna().sum()]
    return {
        "rows asked": [SCENES],
        "pairs parsed": [len(judged)],
        "consistency: at least 0.5": of_score,
        "swapped_same: no problem found": of_same,
        "pairs kept": [len(pd.read_parquet(output / "pairs.parquet"))],
    }


def check_funnel(page: Page, output: Path) -> None:
    """Compare the table on a page with the files of the output."""
    for step, counts in counts_of(output).items():
        row = page.locator("tr").filter(has_text=step)
        cells = [int(cell) for cell in row.locator("td").all_inner_texts() if cell.isdecimal()]
        no_result = [sum(cells[3:])] if len(cells) > 3 else []  # whether asked or not
        assert [*cells[:3], *no_result] == counts, step


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[str]:
    """The URL of the demo model."""
    with VLLMServer(ServerOptions(CHECKPOINT, log_file=tmp_path / "vllm.log")) as server:
        yield server.url


@pytest.mark.vllm
def test_checks_from_the_form_to_the_report(
    page: Page, ui: Any, vllm: str, page_log: Any, screenshot: Any
) -> None:
    write_demo_dataset(ui.folder / "scenes", SCENES, seed=5)
    deployment = ui.api("/deployments/name/image-qa/on-demand")
    page.goto(f"{ui.url}/deployments/deployment/{deployment['id']}/run")
    for name, value in (
        ("dataset", "scenes/dataset.json"),
        ("output", "checked"),
        ("endpoint", vllm),
        ("checks/Keep", "consistency >= 0.5 AND NOT swapped_same"),
    ):
        fill(page, name, value)
    form_field(page, "checks/Names").locator(".p-select-button__control").press("Space")
    for check in ("consistency", "swapped"):
        page.locator(".p-select-option").get_by_text(check, exact=True).click()
    screenshot("checks-form")
    page.get_by_text("What every pair is checked for").click()  # closes the list
    run_id = press(page, "Submit", "/create_flow_run")["id"]
    run = ui.wait_for_run(run_id, seconds=400)
    assert run["state_name"] == "Completed", (ui.folder / "worker.log").read_text()

    output = ui.folder / "checked"
    counts = counts_of(output)
    kept, pairs = counts["pairs kept"][0], counts["pairs parsed"][0]
    assert 0 < kept == counts["swapped_same: no problem found"][0] < pairs
    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text(f"{kept} of {pairs} pairs kept").first).to_be_visible()
    page.get_by_text("Task Runs", exact=True).click()
    for task in ("generate-consistency-1", "generate-swapped-1", "filter"):
        expect(page.get_by_text(task, exact=True).first).to_be_visible()
    screenshot("checks-run")
    page.goto(f"{ui.url}/artifacts/artifact/{artifacts_of(ui, run_id)['funnel']}")
    expect(page.get_by_text("pairs parsed")).to_be_visible()
    check_funnel(page, output)
    screenshot("checks-funnel")
    assert (page_log.dialogs, page_log.external()) == ([], [])

    page_log.errors.clear()  # of Prefect's pages
    page.goto((output / "report.html").as_uri())
    check_funnel(page, output)
    page.get_by_text("How the checks agree").click()
    expect(page.get_by_role("columnheader", name="Only the second")).to_be_visible()
    assert 0 < page.locator(".disputed").count() <= 12
    expect(page.locator(".disputed").first).to_contain_text("consistency_answer")
    screenshot("checks-report", full_page=True)
    assert (page_log.dialogs, page_log.errors) == ([], [])
