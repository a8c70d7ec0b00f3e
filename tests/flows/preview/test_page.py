"""The page of a preview."""

from dataclasses import replace
from pathlib import Path

import pytest
from prefect_imageqa.flows.preview.cells import Preview, PreviewReply, PreviewRow, Said
from prefect_imageqa.flows.preview.page import check_page, render_page, write_page
from prefect_imageqa.tasks.errors import StoreError
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.row_images import SampledImage

HOSTILE = "<script>alert(1)</script>\u202e\"'><img src=https://example.org/x.png>"


def test_a_page_shows_everything(compared: Preview) -> None:
    page = render_page(compared).decode()
    for text in (
        *("d.json", "demo", "short", "mine.md", "a.png", "data:image/jpeg;base64,"),
        *("What is it?", "A heron.", "objects", "raw short", "12 tokens, 0.5 s", "a" * 32),
        *("A. red", "B. blue ✓", "turn 2", "The sun shines.", "unparsed", "found nothing"),
        *("I cannot.", "Who? (no)", "[image 1]\nAsk.", "1 of 2 answered", "no image"),
    ):
        assert text in page, text
    assert "short@1" not in page  # the style's own name says as much
    assert "multiple-choice@2" in page


def test_a_page_runs_nothing_and_loads_nothing(compared: Preview) -> None:
    page = render_page(compared).decode()
    assert "<script" not in page
    assert "default-src &#39;none&#39;" in page
    assert 'src="http' not in page
    assert page.index("Content-Security-Policy") < page.index("<title>")


def test_hostile_texts_are_escaped() -> None:
    reply = PreviewReply(
        HOSTILE,
        HOSTILE,
        (Said(HOSTILE, HOSTILE),),
        (QAPair(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), "A", 1, HOSTILE, HOSTILE),),
        HOSTILE,
        HOSTILE,
        HOSTILE,
        HOSTILE,
        (HOSTILE,),
    )
    without_pairs = replace(reply, pairs=())
    row = PreviewRow(HOSTILE, (SampledImage(HOSTILE, ""),), ((reply, without_pairs),))
    page = render_page(Preview(HOSTILE, HOSTILE, (HOSTILE,), (row,))).decode()
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page


def test_a_watched_page_loads_itself_again(compared: Preview) -> None:
    page = render_page(compared, reloads=True).decode()
    assert "location.reload()" in page
    assert page.count("sha256-") == 2


def test_a_page_of_ones_own_is_replaced_and_no_other(compared: Preview, tmp_path: Path) -> None:
    path = tmp_path / "new" / "preview.html"
    check_page(path)
    for _ in range(2):
        write_page(path, render_page(compared))
    assert [file.name for file in path.parent.iterdir()] == ["preview.html"]
    other = tmp_path / "mine.html"
    other.write_text("<html>mine</html>")
    for path in (other, tmp_path):
        with pytest.raises(StoreError, match=str(path)):
            check_page(path)
    with pytest.raises(StoreError, match="not written by a preview: choose another --html"):
        write_page(other, render_page(compared))
    assert other.read_text() == "<html>mine</html>"
