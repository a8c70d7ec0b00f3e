"""A run of a deployment pauses after its pilot, and is resumed in Prefect's UI."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset

pytestmark = pytest.mark.timeout(600)

ROWS, PILOT = 24, 8
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

    found = ui.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    (artifact,) = [each["id"] for each in found if each["key"].endswith("-pilot")]
    page.goto(f"{ui.url}/artifacts/artifact/{artifact}")
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
