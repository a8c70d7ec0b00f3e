"""`report.html` in a browser, opened as a file, with untrusted texts in every place."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from playwright.sync_api import Page, expect
from prefect_imageqa import Columns, Images, ImageSettings, Sampling
from prefect_imageqa.tasks.images.thumbnails import LARGE_SIDE, SIDE, thumbnail
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.dataset_card import render_card
from prefect_imageqa.tasks.reporting.quarantine import QuarantineGroup
from prefect_imageqa.tasks.reporting.report import render_report
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.run_record import RunRecord

HOSTILE = [
    "<script>document.title = 'owned'; alert(1)</script>",
    "</script><img src=x onerror=\"document.title = 'owned'\">",
    "</pre></article></style><style>body { display: none }</style>",
    "<img src=https://example.org/x.png><link rel=stylesheet href=https://example.org/x.css>",
    "<a href=\"javascript:document.title = 'owned'\">press</a>",
    '"><svg onload="document.title = \'owned\'">',
    "<meta http-equiv=refresh content='0;url=https://example.org/'>",
    "<iframe src=https://example.org/></iframe><base href=https://example.org/>",
    "wide" * 400,
]


def image_of(number: int, name: str) -> SampledImage:
    file = io.BytesIO()
    Image.new("RGB", (900, 600), (40 * number % 256, 120, 160)).save(file, "PNG")
    small, large = (
        thumbnail(file.getvalue(), ImageSettings(), side) for side in (SIDE, LARGE_SIDE)
    )
    return SampledImage(name, small, large)


def rows() -> list[SampledRow]:
    answered = [
        SampledRow(
            number,
            f"row {number}",
            f"{number:032x}",
            (image_of(number, text),),
            (QAPair(f"{text} number {number}?", f"It is {text}"),),
            f"raw {text}",
            latency=0.5,
            prompt_tokens=300,
            completion_tokens=20,
        )
        for number, text in enumerate([*HOSTILE, "A plain heron"])
    ]
    failed = [
        SampledRow(50, "d.json[50]", f"{50:032x}", (), (), HOSTILE[0], "truncated", HOSTILE[1]),
        SampledRow(51, "d.json[51]", f"{51:032x}", (), (), "", "not_an_image", HOSTILE[3]),
    ]
    return [*answered, *failed]


@pytest.fixture(scope="module")
def hostile_run(record_of: Callable[..., RunRecord]) -> RunRecord:
    """A run whose every text is hostile."""
    names = ("dataset", "configuration", "parser", "model_revision", "model", "user_prompt")
    return record_of(
        parameters={
            "dataset": HOSTILE[3],
            "style": HOSTILE[6],
            "system_prompt": HOSTILE[4],
            "sampling": Sampling(extra_body={HOSTILE[1]: HOSTILE[2]}),
            "columns": Columns(image=HOSTILE[0], conversation=HOSTILE[1], output=HOSTILE[2]),
            "images": Images(root=HOSTILE[5]),
        },
        counts={
            "rows": 12,
            "ok": 10,
            "quarantined": 2,
            "pairs": 10,
            "seconds": 3.0,
            "reasons": {"truncated": 1, "not_an_image": 1},
        },
        versions={HOSTILE[0]: HOSTILE[1]},
        **dict(zip(names, HOSTILE, strict=False)),
    )


@pytest.fixture(scope="module")
def report(hostile_run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a page whose every text is hostile."""
    statistics = Statistics()
    for tally in (statistics.questions, statistics.answers, statistics.latencies):
        tally.add(np.arange(10, 60))
    statistics.prompt_tokens.add(np.arange(250, 300))
    statistics.completion_tokens.add(np.arange(10, 60))
    statistics.first_words.update({"what": 7, "onerror": 3})
    statistics.stored_seconds = np.arange(0, 10, 0.2)
    path = tmp_path_factory.mktemp("report") / "report.html"
    groups = [
        QuarantineGroup("truncated", HOSTILE[1], 1, [HOSTILE[0]]),
        QuarantineGroup("not_an_image", HOSTILE[8], 1, [HOSTILE[3]]),
    ]
    path.write_bytes(render_report(hostile_run, statistics, rows(), groups=groups))
    return path.as_uri()


def settle(page: Page) -> None:
    """Let the page run what is due: two frames, and the tasks queued by then."""
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame("
        "() => setTimeout(done))))"
    )


def visible_cards(page: Page) -> int:
    return page.locator(".card:visible").count()


def test_rows_can_be_searched_and_filtered(page: Page, report: str) -> None:
    page.goto(report)
    assert visible_cards(page) == 12
    page.get_by_role("searchbox").fill("HERON plain")
    assert visible_cards(page) == 1
    expect(page.get_by_role("status")).to_have_text("1 of 12 match.")
    page.get_by_role("searchbox").fill(f"{51:032x}")
    assert visible_cards(page) == 1
    page.get_by_role("searchbox").fill("")
    for name, count in (("answered", 10), ("quarantined", 2), ("not an image", 1), ("all", 12)):
        button = page.get_by_role("button", name=re.compile(f"^{name} {count}$"))
        button.click()
        assert visible_cards(page) == count
        expect(button).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="truncated 1").click()
    page.get_by_role("searchbox").fill("absent")
    assert visible_cards(page) == 0


def test_untrusted_texts_are_shown_and_inert(page: Page, report: str, page_log: Any) -> None:
    page.goto(report)
    for summary in page.locator("summary").all():
        summary.click()
    for text in HOSTILE:
        expect(page.get_by_text(text).first).to_be_visible()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.title().startswith(HOSTILE[0])
    assert page.url == report
    assert page.locator("a").count() == 3
    assert page.locator("script").count() == 1
    assert page.locator("iframe, link, base, svg[onload], img[onerror]").count() == 0
    assert [url for url in page_log.urls if not url.startswith("data:")] == [report]
    assert (page_log.dialogs, page_log.errors) == ([], [])


def test_untrusted_texts_are_inert_in_the_card(
    page: Page, hostile_run: RunRecord, page_log: Any, tmp_path: Path
) -> None:
    """Rendered with raw HTML enabled, which no Markdown viewer does for untrusted files."""
    card = render_card(hostile_run, rows()).partition("\n---\n")[2]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    (tmp_path / "card.html").write_text(f"<title>card</title>{html}")
    url = (tmp_path / "card.html").as_uri()
    page.goto(url)
    settle(page)
    for text in (HOSTILE[0], HOSTILE[3], HOSTILE[4]):
        expect(page.get_by_text(text).first).to_be_visible()
    assert page.title() == "card"
    assert page.locator("script, img, a, iframe, link, base, style, meta, svg").count() == 0
    assert (page_log.urls, page_log.dialogs, page_log.errors) == ([url], [], [])


@pytest.mark.parametrize(
    "inject",
    [
        "const s = document.createElement('script'); s.textContent = 'document.title=1'; body(s)",
        "const i = new Image(); i.src = 'https://example.org/x.png'; body(i)",
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=alert(1)>';"
        "body(d)",
    ],
    ids=["script", "external image", "event handler"],
)
def test_the_policy_stops_what_escaping_misses(
    inject: str, page: Page, report: str, page_log: Any
) -> None:
    responses: list[str] = []
    page.on("response", lambda response: responses.append(response.url))
    page.goto(report)
    title = page.title()
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(f"(() => {{ const body = (e) => document.body.append(e); {inject} }})()")
    settle(page)
    assert (page.title(), page_log.dialogs) == (title, [])
    assert [url for url in responses if not url.startswith("data:")] == [report]


@pytest.mark.parametrize("width", [320, 390, 1280], ids=["small phone", "phone", "desk"])
def test_nothing_is_wider_than_the_screen(width: int, page: Page, report: str) -> None:
    overflowing = "(boxes) => boxes.filter((box) => box.scrollWidth > box.clientWidth).length"
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("header, .card, .table, .plots > *").evaluate_all(overflowing) == 0
    assert visible_cards(page) == 12


def test_images_and_plots_load(page: Page, report: str) -> None:
    page.goto(report)
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("async (image) => { await image.decode(); return true }")
        assert image.get_attribute("alt")


def test_an_image_is_enlarged(
    page: Page, report: str, page_log: Any, screenshot: Callable[..., Path]
) -> None:
    page.goto(report)
    dialog = page.get_by_role("dialog", name="Image")
    ways: tuple[Callable[[], None], ...] = (
        lambda: page.keyboard.press("Escape"),
        lambda: dialog.get_by_role("button", name="Close").click(),
        lambda: page.mouse.click(5, 5),
    )
    for close in ways:
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="A plain heron").click()
        expect(dialog).to_be_visible()
        expect(dialog.locator("bdi")).to_have_text("A plain heron")
        image = dialog.get_by_role("img", name="A plain heron")
        assert image.evaluate("async (image) => { await image.decode(); return image.width }") > 800
        assert image.evaluate("(image) => image.naturalWidth") == LARGE_SIDE
        screenshot("report-enlarged")
        close()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name=HOSTILE[0]).first.click()
    expect(dialog.locator("bdi")).to_have_text(HOSTILE[0])
    assert (page_log.dialogs, page_log.errors) == ([], [])


def test_the_page_follows_the_dark_colour_scheme(
    page: Page, report: str, screenshot: Callable[..., Path]
) -> None:
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    plot = "document.querySelector('.plots img').currentSrc"
    page.goto(report)
    light, light_plot = page.evaluate(lightness), page.evaluate(plot)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"light_plot => {plot} !== light_plot", arg=light_plot)
    assert page.evaluate(lightness) < 50 < 200 < light
    screenshot("report-dark")
