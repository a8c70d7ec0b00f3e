"""What people do in Prefect's UI: fill in the form, press Submit, look at the run."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from prefect_imageqa.serving.demo_model.scenes import write_demo_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.artifacts import gallery_markdown, quarantine_table
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.runs.plugins import PARSERS, PROMPT_STYLES

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
WRONG = [
    ("dataset", "", "'dataset' is a required property"),
    ("max_rows", "0", "0 is not valid under any of the given schemas"),
    ("pairs_per_image", "1.5", "1.5 is not of type 'integer'"),
    ("limits/Batch Size", "9999", "'limits.batch_size'. Failure reason: 9999 is greater than the"),
]


ROWS = 320


@pytest.fixture(scope="module")
def deployment(ui: Any) -> dict[str, Any]:
    """The on-demand deployment, as the API has it."""
    found: dict[str, Any] = ui.api("/deployments/name/image-qa/on-demand")
    return found


@pytest.fixture
def form(ui: Any, deployment: dict[str, Any], page: Page) -> Page:
    """The page with the form."""
    page.goto(f"{ui.url}/deployments/deployment/{deployment['id']}/run")
    expect(page.get_by_role("button", name="Submit")).to_be_visible()
    return page


def field(form: Page, path: str) -> Locator:
    """A parameter of the form, or a field of its card, with label, description and input."""
    found = form.locator("body")
    for name in path.split("/"):
        label = form.locator(
            ":scope > .p-label__header .schema-form-property__label",
            has_text=re.compile(rf"^{re.escape(name)}( \(Optional\))?$"),
        )
        found = found.locator(".schema-form-property").filter(has=label)
    return found


def fill(form: Page, path: str, text: str) -> None:
    field(form, path).locator("textarea, input").fill(text)


def press(page: Page, button: str, path: str) -> Any:
    """Press a button that posts to an API path; again, where the server's database was locked."""
    for _ in range(5):
        with page.expect_response(
            lambda answer: answer.request.method == "POST" and answer.url.endswith(path)
        ) as answered:
            page.get_by_role("button", name=button).click()
        if answered.value.status != 503:
            break
    assert answered.value.ok, answered.value.text()
    return answered.value.json()


def run_ids(ui: Any) -> set[str]:
    return {run["id"] for run in ui.api("/flow_runs/filter", {})}


def as_shown(markdown: str) -> str:
    """A description as the UI shows it."""
    return " ".join(markdown.replace("`", "").split())


def test_the_form_describes_every_parameter(
    form: Page, deployment: dict[str, Any], seen: Any
) -> None:
    schema = deployment["parameter_openapi_schema"]
    cards = 0
    for name, parameter in schema["properties"].items():
        card = schema["definitions"].get(parameter.get("$ref", "").rpartition("/")[2], {})
        described = card | parameter  # a description that is its card's own stands there only
        expect(field(form, name)).to_have_count(1)
        expect(field(form, name)).to_contain_text(as_shown(described["description"]))
        for inner in card.get("properties", {}).values():
            shown = field(form, f"{name}/{inner['title']}")
            expect(shown).to_contain_text(as_shown(inner["description"]))
        cards += bool(card)
    assert cards == 7
    assert seen.outside() == []


@pytest.mark.parametrize(
    ("path", "names"),
    [("prompt_style", PROMPT_STYLES), ("parsing/Parser", PARSERS)],
    ids=["prompt style", "parser"],
)
def test_a_plug_in_is_chosen_or_named(form: Page, path: str, names: list[str]) -> None:
    plug_in = field(form, path)
    plug_in.locator(".p-select-button__control").press("Space")
    expect(form.locator(".p-select-option")).to_have_text(list(names))
    form.locator(".p-select-option").last.click()
    expect(plug_in.locator(".p-select-button__control")).to_have_text(list(names)[-1])
    plug_in.get_by_role("button", name="Your own").click()
    plug_in.locator("textarea").fill("my_package.prompts:function")


def test_wrong_values_are_refused_before_there_is_a_run(ui: Any, form: Page) -> None:
    before = run_ids(ui)
    fill(form, "dataset", "qas.json")
    fill(form, "output", "qa")
    field(form, "max_rows").get_by_role("button", name="First rows").click()
    fill(form, "max_rows", "5")
    for path, wrong, said in WRONG:
        given = field(form, path).locator("textarea, input")
        right = given.input_value()
        given.fill(wrong)
        form.get_by_role("button", name="Submit").click()
        expect(form.get_by_text(said).first).to_be_visible()
        given.fill(right)
    number = field(form, "pairs_per_image").locator("input")
    number.press_sequentially("many")
    expect(number).to_have_value("1")
    assert run_ids(ui) == before


@pytest.fixture
def endpoint(ui: Any, page: Page, keyed_stub: Any) -> str:
    """Name of an endpoint block, saved in the UI; its key is seen by nobody after that."""
    name, key = "stub-endpoint", keyed_stub.api_key
    page.goto(f"{ui.url}/blocks/catalog/vllm-endpoint/create")
    label = ".p-label"
    page.locator(label).filter(has_text="Block Name").locator("input").fill(name)
    page.locator(label).filter(has_text="URLs").locator("textarea").fill(f'["{keyed_stub.url}"]')
    page.locator(label).filter(has_text="API key").locator("textarea").fill(key)
    press(page, "Create", "/block_documents/")
    expect(page.get_by_text("********")).to_be_visible()
    expect(page.get_by_text(f'VLLMEndpoint.load("{name}")')).to_be_visible()
    assert key not in page.content()
    return name


def write_dataset(folder: Path) -> None:
    """Twelve rows: one has a reply that wants to run as a script, one no image."""
    write_demo_dataset(folder, 12, seed=5)
    rows = json.loads((folder / "dataset.json").read_text())
    say = f"STUB text **Question:** What? {HOSTILE[0]}\n**Answer:** {HOSTILE[0]}"
    rows[3]["conversation"] = [{"from": "human", "value": say}]
    rows[7]["image"] = "images/none.png"
    (folder / "dataset.json").write_text(json.dumps(rows))


def test_a_run_is_started_watched_and_looked_at(
    page: Page, ui: Any, endpoint: str, keyed_stub: Any, seen: Any, shoot: Any
) -> None:
    write_dataset(ui.folder / "shapes")
    page.goto(f"{ui.url}/deployments")
    page.get_by_role("link", name="on-demand").first.click()
    page.get_by_role("button", name=re.compile(r"^\s*Run\s*$")).click()
    page.get_by_text("Custom run").click()
    fill(page, "dataset", "shapes/dataset.json")
    fill(page, "output", "qa")
    fill(page, "endpoint", endpoint)
    shoot("form")
    run_id = press(page, "Submit", "/create_flow_run")["id"]
    expect(page.get_by_text("scheduled to start now").first).to_be_visible()

    run = ui.ended(run_id)
    assert run["state_name"] == "Completed", run["state"]
    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.get_by_text("11 answered, 1 quarantined").first).to_be_visible()
    shoot("run")
    page.get_by_text("Artifacts", exact=True).click()
    for what in ("progress", "summary", "gallery", "quarantine"):
        expect(page.get_by_text(re.compile(f"image-qa-.*-{what}$"))).to_be_visible()
    shoot("artifacts")
    artifacts = artifacts_of(ui, run_id)
    page.goto(f"{ui.url}/artifacts/artifact/{artifacts['gallery']}")
    expect(page.locator('img[src^="data:image/"]')).to_have_count(11)
    expect(page.get_by_text(HOSTILE[0]).first).to_be_visible()
    shoot("gallery")
    for what, text in {"summary": "image_missing", "quarantine": "images/none.png"}.items():
        page.goto(f"{ui.url}/artifacts/artifact/{artifacts[what]}")
        expect(page.get_by_text(text).first).to_be_visible()
        shoot(what)
    assert (seen.dialogs, seen.outside()) == ([], [])
    assert keyed_stub.api_key not in everything_told(ui)


def test_a_run_is_cancelled_and_goes_on_later(
    page: Page, ui: Any, deployment: dict[str, Any], start_stub: Any
) -> None:
    slow, fast = start_stub(latency=1.0, slots=4), start_stub()
    write_demo_dataset(ui.folder / "many", ROWS, seed=6)
    given = {"dataset": "many/dataset.json", "output": "many-qa", "endpoint": slow.url}
    given["limits"] = {"batch_size": 16, "max_in_flight": 4}
    path = f"/deployments/{deployment['id']}/create_flow_run"

    run_id = ui.api(path, {"parameters": given})["id"]
    page.goto(f"{ui.url}/runs/flow-run/{run_id}")
    expect(page.get_by_text("Running").first).to_be_visible()
    while slow.stats()["requests"] < ROWS / 8:
        page.wait_for_timeout(100)
    page.get_by_role("button", name="Cancel").click()
    began = time.monotonic()
    press(page, "Confirm", "/set_state")
    run = ui.ended(run_id)
    seconds = time.monotonic() - began
    assert run["state_name"] == "Cancelled"
    expect(page.get_by_text("Cancelled").first).to_be_visible()
    asked = slow.stats()["requests"]
    assert asked < ROWS
    print(f"{seconds:.1f} s until Cancelled, {asked} of {ROWS} rows asked before")

    given["endpoint"] = fast.url
    again = ui.ended(ui.api(path, {"parameters": given})["id"])
    assert again["state_name"] == "Completed"
    assert len((ui.folder / "many-qa" / "qa.jsonl").read_text().splitlines()) == ROWS
    assert asked + fast.stats()["requests"] <= ROWS + 4  # those in flight


def artifacts_of(ui: Any, run_id: str) -> dict[str, str]:
    """The ids of a run's artifacts, by what they show."""
    found = ui.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    return {artifact["key"].rpartition("-")[2]: artifact["id"] for artifact in found}


def everything_told(ui: Any) -> str:
    """All that Prefect's API gives away of runs, logs, artifacts and blocks, and all logs."""
    kinds = ["flow_runs", "task_runs", "logs", "artifacts", "block_documents", "deployments"]
    answers = [json.dumps(ui.api(f"/{kind}/filter", {})) for kind in kinds]
    assert all(len(answer) > 100 for answer in answers)
    return "".join([*answers, *(log.read_text() for log in ui.folder.glob("*.log"))])


@pytest.mark.parametrize("version", ["", "/v2"], ids=["v1", "v2"])
def test_what_strangers_say_stays_text(
    version: str, ui: Any, page: Page, seen: Any, tmp_path: Path
) -> None:
    rows = [
        SampledRow(
            row=number,
            where=f"{said}:{number}",
            key=str(number),
            thumbnails=(PIXEL, f"x) {said}"),
            pairs=(QAPair(said, said),),
            text=said,
        )
        for number, said in enumerate(HOSTILE)
    ]
    lines = [{"row": 1, "where": said, "kind": said, "message": said} for said in HOSTILE]
    store = ObjectStore(uri=str(tmp_path))
    store.write("quarantine.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    shown = {
        "markdown": gallery_markdown(rows, of=len(rows)),
        "table": json.dumps(quarantine_table(store)),
    }
    for kind, data in shown.items():
        artifact = ui.api("/artifacts/", {"key": f"hostile-{kind}", "type": kind, "data": data})
        page.goto(f"{ui.url}{version}/artifacts/artifact/{artifact['id']}")
        for said in HOSTILE:
            # Invisible marks keep links from being links.
            letters = "\u2060*".join(re.escape(letter) for letter in said)
            expect(page.get_by_text(re.compile(letters)).first).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.locator('[href*="javascript:"], [href*="evil.example"], [onerror]').count() == 0
    assert page.locator("iframe, svg[onload]").count() == 0
    assert seen.dialogs == []
    assert [url for url in seen.outside() if "evil.example" in url] == []
