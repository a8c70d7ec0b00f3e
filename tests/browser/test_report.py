"""`report.html` as people open it: a file, in a browser, with rows of strangers."""

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
from prefect_imageqa.tasks.images.thumbnails import thumbnail
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.dataset_card import render_card
from prefect_imageqa.tasks.reporting.report import render_report
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.records import RunRecord

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


def picture(number: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (40 * number % 256, 120, 160)).save(file, "PNG")
    return thumbnail(file.getvalue(), ImageSettings())


def rows() -> list[SampledRow]:
    answered = [
        SampledRow(
            number,
            f"row {number}",
            f"{number:032x}",
            (picture(number),),
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
def told(record_of: Callable[..., RunRecord]) -> RunRecord:
    """A run whose every text is hostile."""
    names = ("dataset", "configuration", "parser", "model_revision", "model", "user_prompt")
    return record_of(
        told={
            "dataset": HOSTILE[3],
            "prompt_style": HOSTILE[6],
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
def report(told: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a page whose every text is hostile."""
    numbers = Statistics()
    for tally in (numbers.questions, numbers.answers, numbers.latencies):
        tally.add(np.arange(10, 60))
    numbers.prompt_tokens.add(np.arange(250, 300))
    numbers.completion_tokens.add(np.arange(10, 60))
    numbers.first_words.update({"what": 7, "onerror": 3})
    numbers.written = np.arange(0, 10, 0.2)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(render_report(told, numbers, rows()))
    return path.as_uri()


def visible_cards(page: Page) -> int:
    return page.locator(".card:visible").count()


def test_rows_are_searched_and_filtered(page: Page, report: str) -> None:
    page.goto(report)
    assert visible_cards(page) == 12
    page.get_by_role("searchbox").fill("HERON plain")
    assert visible_cards(page) == 1
    expect(page.get_by_role("status")).to_have_text("1 of these 12 fit.")
    page.get_by_role("searchbox").fill(f"{51:032x}")
    assert visible_cards(page) == 1
    page.get_by_role("searchbox").fill("")
    for name, count in (("answered", 10), ("quarantined", 2), ("not an image", 1), ("all", 12)):
        button = page.get_by_role("button", name=re.compile(f"^{name} {count}$"))
        button.click()
        assert visible_cards(page) == count
        expect(button).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="truncated 1").click()
    page.get_by_role("searchbox").fill("not there")
    assert visible_cards(page) == 0


def test_strangers_texts_are_shown_and_do_nothing(page: Page, report: str, seen: Any) -> None:
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
    assert [url for url in seen.urls if not url.startswith("data:")] == [report]
    assert (seen.dialogs, seen.errors) == ([], [])


def test_strangers_texts_do_nothing_in_the_card(
    page: Page, told: RunRecord, seen: Any, tmp_path: Path
) -> None:
    """Rendered with all HTML let through: no reader of Markdown is that careless."""
    card = render_card(told, rows()).partition("\n---\n")[2]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    (tmp_path / "card.html").write_text(f"<title>card</title>{html}")
    url = (tmp_path / "card.html").as_uri()
    page.goto(url)
    page.wait_for_timeout(200)
    for text in (HOSTILE[0], HOSTILE[3], HOSTILE[4]):
        expect(page.get_by_text(text).first).to_be_visible()
    assert page.title() == "card"
    assert page.locator("script, img, a, iframe, link, base, style, meta, svg").count() == 0
    assert (seen.urls, seen.dialogs, seen.errors) == ([url], [], [])


@pytest.mark.parametrize(
    "inject",
    [
        "const s = document.createElement('script'); s.textContent = 'document.title=1'; body(s)",
        "const i = new Image(); i.src = 'https://example.org/x.png'; body(i)",
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=alert(1)>';"
        "body(d)",
    ],
    ids=["script", "outside", "handler"],
)
def test_the_policy_would_stop_what_escaping_let_through(
    inject: str, page: Page, report: str, seen: Any
) -> None:
    answers: list[str] = []
    page.on("response", lambda response: answers.append(response.url))
    page.goto(report)
    title = page.title()
    page.evaluate(f"(() => {{ const body = (e) => document.body.append(e); {inject} }})()")
    page.wait_for_timeout(200)
    assert "Content Security Policy" in " ".join(seen.errors)
    assert (page.title(), seen.dialogs) == (title, [])
    assert [url for url in answers if not url.startswith("data:")] == [report]


@pytest.mark.parametrize("width", [320, 390, 1280], ids=["small phone", "phone", "desk"])
def test_nothing_is_wider_than_the_screen(width: int, page: Page, report: str) -> None:
    cut = "(boxes) => boxes.filter((box) => box.scrollWidth > box.clientWidth).length"
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("header, .card, .table, .plots > *").evaluate_all(cut) == 0
    assert visible_cards(page) == 12


def test_pictures_and_plots_are_there(page: Page, report: str) -> None:
    page.goto(report)
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("async (image) => { await image.decode(); return true }")
        assert image.get_attribute("alt")


def test_it_is_dark_where_the_reader_wants_it_so(
    page: Page, report: str, shoot: Callable[..., Path]
) -> None:
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    plot = "document.querySelector('.plots img').currentSrc"
    page.goto(report)
    light, light_plot = page.evaluate(lightness), page.evaluate(plot)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert page.evaluate(lightness) < 50 < 200 < light
    assert page.evaluate(plot) != light_plot
    shoot("report-dark")
