"""The page of `review`, and what `report.html` shows of checks, with untrusted texts."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.check_columns import ResultColumn
from prefect_imageqa.tasks.reporting.check_facts import checks_section
from prefect_imageqa.tasks.reporting.disagreements import CheckedValue, DisputedPair
from prefect_imageqa.tasks.reporting.evaluation import Agreement, CheckCounts, Evaluation
from prefect_imageqa.tasks.reporting.report import render_report
from prefect_imageqa.tasks.reporting.review import ReviewPair, render_review
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.checks import Checks
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.runs.run_record import RunRecord

HOSTILE = [
    "<script>document.title = 'owned'; alert(1)</script>",
    "</script><img src=x onerror=\"document.title = 'owned'\">",
    '<img src=https://example.org/x.png><a href="javascript:alert(1)">press</a>',
    '"><svg onload="document.title = \'owned\'">',
    "wide" * 400,
]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)


def test_verdicts_are_saved_to_a_file(
    page: Page, page_log: Any, screenshot: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = [
        ReviewPair(n, 0, QAPair(text, text), f"{n:016x}", (SampledImage(text, PIXEL, PIXEL),))
        for n, text in enumerate(HOSTILE)
    ]
    pairs.append(ReviewPair(9, 2, QAPair("Which?", "A", options=("A", "B"), correct="A"), "f" * 16))
    path = tmp_path / "review.html"
    path.write_bytes(render_review(pairs, HOSTILE[0]))
    page.goto(path.as_uri())
    expect(page.get_by_role("status")).to_have_text("0 of 6 judged")
    cards = page.locator(".review > li")
    for number, verdict in ((0, "right"), (2, "wrong"), (5, "unsure"), (2, "right")):
        cards.nth(number).get_by_label(verdict).check()
    expect(page.get_by_role("status")).to_have_text("3 of 6 judged")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the verdicts").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    found = json.loads(saved.read_text())
    assert saved.name == "review.json"
    assert found["output"] == HOSTILE[0]
    assert [(each["row"], each["pair"], each["verdict"]) for each in found["verdicts"]] == [
        (0, 0, "right"),
        (2, 0, "right"),
        (9, 2, "unsure"),
    ]
    assert found["verdicts"][2]["digest"] == "f" * 16
    check_harmless(page, page_log)
    screenshot("review")


def check_harmless(page: Page, page_log: Any) -> None:
    """Nothing in the texts has run or was loaded, and the page fits a narrow screen."""
    assert page.title() != "owned"
    assert (page_log.dialogs, page_log.errors, page_log.external()) == ([], [], [])
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.fixture
def evaluation() -> Evaluation:
    names = ("consistency", "blind_answerable", "contamination")
    checks = tuple(
        CheckCounts(ResultColumn(name), 90, 10, 0, 90 - 5 * number)
        for number, name in enumerate(names)
    )
    score = ResultColumn("confidence", is_number=True, bound=-0.5)
    scores = CheckCounts(score, 90, 10, 0, 70, bins=(("-1 to 0", 9),))
    agreements = tuple(Agreement(*each, 80, 10, 5, 5) for each in pairwise(names))
    reasons = Counter(dict.fromkeys(HOSTILE, 3))
    return Evaluation(100, 50, {2: 50}, 70, Counter(), (*checks, scores), agreements, 85, reasons)


def test_the_report_shows_checks(
    page: Page,
    page_log: Any,
    screenshot: Callable[..., Path],
    record_of: Callable[..., RunRecord],
    evaluation: Evaluation,
    tmp_path: Path,
) -> None:
    disputed = [
        DisputedPair(
            number,
            0,
            QAPair(text, text),
            kept=bool(number % 2),
            values=(
                CheckedValue("consistency", "1", True),
                CheckedValue("contamination", text, False),
                CheckedValue("consistency_answer", text),
            ),
            images=(SampledImage(text, PIXEL, PIXEL),),
        )
        for number, text in enumerate(HOSTILE)
    ]
    counts = RunCounts(rows=52, ok=48, filtered=2, quarantined=2, pairs=85)
    section = checks_section(counts, evaluation, disputed, Checks(keep=HOSTILE[0]))
    path = tmp_path / "report.html"
    path.write_bytes(render_report(record_of(counts=counts), Statistics(), [], checks=section))
    page.goto(path.as_uri())
    expect(page.get_by_role("heading", name="Checks", exact=True)).to_be_visible()
    assert page.locator(".disputed").count() == len(HOSTILE)
    page.get_by_text("How the checks agree").click()
    expect(page.get_by_role("columnheader", name="Only the second")).to_be_visible()
    screenshot("report-checks", full_page=True)
    check_harmless(page, page_log)
