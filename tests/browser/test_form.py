"""The package in Prefect's UI: the form of a deployment, blocks, a run and its artifacts."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.prompting.catalogue import built_in_styles
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.markdown import gallery_markdown, quarantine_table
from prefect_imageqa.tasks.reporting.quarantine import QuarantineGroup
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.runs.plugins import PARSERS

from .conftest import artifacts_of, fill, form_field, press

pytestmark = pytest.mark.timeout(600)

HOSTILE = [
    '<img src=x onerror="alert(1)"><script>alert(2)</script>',
    "[click](javascript:alert(3))",
    "![x](http://evil.example/x.png)",
    '<a href="javascript:alert(4)">a</a> http://evil.example/y www.evil.example',
    "</code><svg onload=alert(5)> | a | b |",
    '<iframe src="http://evil.example/z"></iframe>',
    '{{ constructor.constructor("alert(6)")() }}',
]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
INVALID = [
    ("dataset", "", "'dataset' is a required property"),
    ("max_rows", "0", "0 is not valid under any of the given schemas"),
    ("pairs_per_image", "1.5", "1.5 is not valid under any of the given schemas"),
    ("limits/Batch Size", "9999", "'limits.batch_size'. Failure reason: 9999 is greater than the"),
]
ROWS = 320
STYLES = [style.name for style in built_in_styles()]


@pytest.fixture(scope="module")
def deployment(ui: Any) -> dict[str, Any]:
    """The on-demand deployment, from the API."""
    found: dict[str, Any] = ui.api("/deployments/name/image-qa/on-demand")
    return found


@pytest.fixture
def form(ui: Any, deployment: dict[str, Any], page: Page) -> Page:
    """The page with the form."""
    page.goto(f"{ui.url}/deployments/deployment/{deployment['id']}/run")
    expect(page.get_by_role("button", name="Submit")).to_be_visible()
    return page


def run_ids(ui: Any) -> set[str]:
    return {run["id"] for run in ui.api("/flow_runs/filter", {})}


def as_shown(markdown: str) -> str:
    """The text of a description in the UI."""
    return " ".join(markdown.removeprefix("- ").replace("`", "").split())


def test_the_form_describes_every_parameter(
    form: Page, deployment: dict[str, Any], page_log: Any
) -> None:
    schema = deployment["parameter_openapi_schema"]
    groups = 0
    for name, parameter in schema["properties"].items():
        group = schema["definitions"].get(parameter.get("$ref", "").rpartition("/")[2], {})
        described = group | parameter  # a description from the model's class is only there
        expect(form_field(form, name)).to_have_count(1)
        for paragraph in described["description"].split("\n\n"):
            expect(form_field(form, name)).to_contain_text(as_shown(paragraph))
        for inner in group.get("properties", {}).values():
            element = form_field(form, f"{name}/{inner['title']}")
            expect(element).to_contain_text(as_shown(inner["description"]))
        groups += bool(group)
    assert groups == 11
    assert page_log.external() == []


@pytest.mark.parametrize(
    ("path", "names"),
    [("style", STYLES), ("parsing/Parser", PARSERS)],
    ids=["style", "parser"],
)
def test_a_style_or_parser_can_be_chosen_or_typed(
    form: Page, path: str, names: list[str], screenshot: Any
) -> None:
    plug_in = form_field(form, path)
    plug_in.locator(".p-select-button__control").press("Space")
    expect(form.locator(".p-select-option")).to_have_text(list(names))
    form.locator(".p-select-option").last.click()
    expect(plug_in.locator(".p-select-button__control")).to_have_text(list(names)[-1])
    if path == "style":
        screenshot("styles", full_page=True)
    plug_in.get_by_role("button", name=re.compile("Custom|file")).click()
    plug_in.locator("textarea").fill("mine.md=2, single=1")


def test_invalid_values_are_rejected_before_a_run_is_created(ui: Any, form: Page) -> None:
    before = run_ids(ui)
    fill(form, "dataset", "qas.json")
    fill(form, "output", "qa")
    form_field(form, "max_rows").get_by_role("button", name="First rows").click()
    fill(form, "max_rows", "5")
    form_field(form, "pairs_per_image").get_by_role("button", name="Pairs").click()
    fill(form, "pairs_per_image", "1")
    for path, invalid, message in INVALID:
        box = form_field(form, path).locator("textarea, input")
        valid = box.input_value()
        box.fill(invalid)
        form.get_by_role("button", name="Submit").click()
        expect(form.get_by_text(message).first).to_be_visible()
        box.fill(valid)
    number = form_field(form, "pairs_per_image").locator("input")
    number.press_sequentially("many")
    expect(number).to_have_value("1")
    assert run_ids(ui) == before


@pytest.fixture
def endpoint(ui: Any, page: Page, keyed_stub: Any) -> str:
    """Name of an endpoint block, saved in the UI, which then no longer shows its key."""
    name, key = "stub-endpoint", keyed_stub.api_key
    page.goto(f"{ui.url}/blocks/catalog/vllm-endpoint/create")
    label = ".p-label"
    page.locator(label).filter(has_text="Block Name").locator("input").fill(name)
    page.locator(label).filter(has_text="URLs").locator("textarea").fill(f'["{keyed_stub.url}"]')
    page.locator(label).filter(has_text="API key").locator("textarea").fill(key)
    press(page, "Create", "/block_documents/")
    expect(page.get_by_text("********")).to_be_visible()
    expect(page.locator("code", has_text=f'"{name}"').first).to_be_visible()
    assert key not in page.content()
    return name


def write_dataset(folder: Path) -> None:
    """Many rows: the first one's reply tries to run as a script, one has no image."""
    write_demo_dataset(folder, ROWS, seed=5)
    rows = json.loads((folder / "dataset.json").read_text())
    reply = f"STUB text **Question:** What? {HOSTILE[0]}\n**Answer:** {HOSTILE[0]}"
    rows[0]["conversation"] = [{"from": "human", "value": reply}]
    rows[7]["image"] = "images/none.png"
    (folder / "dataset.json").write_text(json.dumps(rows))


def test_a_run_is_cancelled_and_resumed(
    page: Page,
    ui: Any,
    deployment: dict[str, Any],
    endpoint: str,
    keyed_stub: Any,
    start_stub: Any,
    page_log: Any,
    screenshot: Any,
) -> None:
    slow = start_stub(latency=1.0, slots=4)
    write_dataset(ui.folder / "shapes")
    parameters = {"dataset": "shapes/dataset.json", "output": "qa", "endpoint": slow.url}
    parameters["limits"] = {"batch_size": 16, "max_in_flight": 4}
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run_id = ui.api(path, {"parameters": parameters})["id"]
    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Running").first).to_be_visible()
    while slow.stats()["requests"] < 24:  # the first batch is stored, the second one in flight
        page.wait_for_timeout(100)
    page.get_by_role("button", name="Cancel").click()
    press(page, "Confirm", "/set_state")
    assert ui.wait_for_run(run_id)["state_name"] == "Cancelled"
    expect(page.get_by_text("Cancelled").first).to_be_visible()
    requests = slow.stats()["requests"]
    assert requests < ROWS

    before = keyed_stub.stats()["requests"]
    page.goto(f"{ui.url}/deployments")
    page.get_by_role("link", name="on-demand").first.click()
    page.get_by_role("button", name=re.compile(r"^\s*Run\s*$")).click()
    page.get_by_text("Custom run").click()
    fill(page, "dataset", "shapes/dataset.json")
    fill(page, "output", "qa")
    fill(page, "endpoint", endpoint)
    screenshot("form")
    run_id = press(page, "Submit", "/create_flow_run")["id"]
    expect(page.get_by_text("scheduled to start now").first).to_be_visible()
    run = ui.wait_for_run(run_id)
    assert run["state_name"] == "Completed", run["state"]
    assert len((ui.folder / "qa" / "qa.jsonl").read_text().splitlines()) == ROWS - 1
    repeated = 4  # those in flight when the run was cancelled
    assert requests + keyed_stub.stats()["requests"] - before <= ROWS - 1 + repeated

    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(
        page.get_by_text(re.compile(rf"{ROWS - 1} answered.*, 1 quarantined")).first
    ).to_be_visible()
    screenshot("run")
    page.get_by_text("Artifacts", exact=True).click()
    for what in ("progress", "summary", "gallery", "quarantine"):
        expect(page.get_by_text(re.compile(f"image-qa-.*-{what}$"))).to_be_visible()
    screenshot("artifacts")
    artifacts = artifacts_of(ui, run_id)
    page.goto(f"{ui.url}/artifacts/artifact/{artifacts['gallery']}")
    expect(page.locator('img[src^="data:image/"]')).to_have_count(23)  # one of 24 rows has none
    expect(page.get_by_text(broken_up(HOSTILE[0])).first).to_be_visible()
    screenshot("gallery")
    for what, text in {"summary": "image_missing", "quarantine": "images/none.png"}.items():
        page.goto(f"{ui.url}/artifacts/artifact/{artifacts[what]}")
        expect(page.get_by_text(text).first).to_be_visible()
        screenshot(what)
    assert (page_log.dialogs, page_log.external()) == ([], [])
    assert keyed_stub.api_key not in everything(ui)


@pytest.mark.workers
def test_a_run_with_workers_is_cancelled(page: Page, ui: Any, start_stub: Any) -> None:
    """Its workers are flow runs of their own, which end with it."""
    slow = start_stub(latency=1.0, slots=16)
    write_demo_dataset(ui.folder / "many", 400, seed=6)
    deployment = ui.api("/deployments/name/image-qa/on-demand")
    parameters = {
        "dataset": "many/dataset.json",
        "output": "many-qa",
        "endpoint": slow.url,
        "limits": {"batch_size": 16, "max_in_flight": 16},
        "workers": {"workers": 2, "engine": "work-pool"},
    }
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run_id = ui.api(path, {"parameters": parameters})["id"]

    def workers() -> list[dict[str, Any]]:
        named = {"flows": {"name": {"any_": ["image-qa-worker"]}}}
        found: list[dict[str, Any]] = ui.api("/flow_runs/filter", named)
        return found

    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    while sum(run["state_type"] == "RUNNING" for run in workers()) < 2:
        page.wait_for_timeout(500)
    while slow.stats()["requests"] < 48:
        page.wait_for_timeout(100)
    began = time.monotonic()
    page.get_by_role("button", name="Cancel").click()
    press(page, "Confirm", "/set_state")
    while any(run["state_type"] in {"RUNNING", "CANCELLING"} for run in workers()):
        page.wait_for_timeout(100)
    assert ui.wait_for_run(run_id)["state_name"] == "Cancelled"
    assert time.monotonic() - began < 20
    asked = slow.stats()["requests"]
    assert asked < 400
    page.wait_for_timeout(2500)
    assert slow.stats()["requests"] == asked
    assert not (ui.folder / "many-qa" / "workers").exists()
    stored = (ui.folder / "many-qa" / "pairs" / "parts").rglob("*.parquet")
    rows = sum(pq.read_metadata(part).num_rows for part in stored)
    assert asked - 16 <= rows <= asked  # what was answered when it was cancelled is stored


def broken_up(text: str) -> re.Pattern[str]:
    """A text as artifacts show it: word joiners break up links, and long texts are wrapped."""
    return re.compile(r"[\u2060\s]*".join(re.escape(letter) for letter in text if letter != " "))


def everything(ui: Any) -> str:
    """All that Prefect's API returns about runs and blocks, and the logs of all processes."""
    kinds = ["flow_runs", "task_runs", "logs", "artifacts", "block_documents", "deployments"]
    replies = [json.dumps(ui.api(f"/{kind}/filter", {})) for kind in kinds]
    assert all(len(reply) > 100 for reply in replies)
    return "".join([*replies, *(log.read_text() for log in ui.folder.glob("*.log"))])


@pytest.mark.parametrize("version", ["", "/v2"], ids=["v1", "v2"])
def test_untrusted_texts_in_artifacts_are_inert(
    version: str, ui: Any, page: Page, page_log: Any
) -> None:
    rows = [
        SampledRow(
            row=number,
            where=f"{text}:{number}",
            key=str(number),
            images=(SampledImage(text, PIXEL), SampledImage(text, f"x) {text}")),
            pairs=(QAPair(text, text),),
            text=text,
        )
        for number, text in enumerate(HOSTILE)
    ]
    groups = [QuarantineGroup(text, text, 1, [text]) for text in HOSTILE]
    artifacts = {
        "markdown": gallery_markdown(rows, of=len(rows)),
        "table": json.dumps(quarantine_table(groups)),
    }
    for kind, data in artifacts.items():
        artifact = ui.api("/artifacts/", {"key": f"hostile-{kind}", "type": kind, "data": data})
        page.goto(f"{ui.url}{version}/artifacts/artifact/{artifact['id']}")
        for text in HOSTILE:
            expect(page.get_by_text(broken_up(text)).first).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.locator('[href*="javascript:"], [href*="evil.example"], [onerror]').count() == 0
    assert page.locator("iframe, svg[onload]").count() == 0
    assert page_log.dialogs == []
    assert [url for url in page_log.external() if "evil.example" in url] == []
