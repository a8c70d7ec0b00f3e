"""The page of a preview in a browser, opened as a file."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from prefect_imageqa.flows.preview.cells import Preview, PreviewReply, PreviewRow, Said
from prefect_imageqa.flows.preview.page import render_page, write_page
from prefect_imageqa.tasks.records import QAPair

HOSTILE = (
    "</td></table><script>alert(1)</script><img src=https://example.org/x.png onerror=alert(1)>"
)


def previewed(text: str) -> Preview:
    reply = PreviewReply(
        "short@1", "k" * 32, (Said("user", text),), (QAPair(text, "An answer."),), text, tokens=9
    )
    failed = replace(reply, pairs=(), kind="unparsed", reason=text)
    row = PreviewRow(text, (), ((reply,), (failed,)))
    return Preview(text, text, ("short", text), (row, row))


def test_the_page_is_safe_and_readable(
    page: Page, page_log: Any, screenshot: Any, tmp_path: Path
) -> None:
    path = tmp_path / "preview.html"
    write_page(path, render_page(previewed(HOSTILE)))
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(path.as_uri())
        expect(page.locator("tbody td")).to_have_count(4)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_text("Prompt").first.click()
    expect(page.locator("details[open] pre")).to_have_text(re.compile("alert"))
    screenshot("preview", full_page=True)
    assert (page_log.external(), page_log.errors, page_log.dialogs) == ([], [], [])


def test_a_watched_page_shows_the_new_replies(page: Page, page_log: Any, tmp_path: Path) -> None:
    path = tmp_path / "preview.html"
    write_page(path, render_page(previewed("Before?"), reloads=True))
    page.goto(path.as_uri())
    expect(page.locator("dt").first).to_have_text("Before?")
    write_page(path, render_page(previewed("After?")))
    expect(page.locator("dt").first).to_have_text("After?")
    assert page_log.errors == []
