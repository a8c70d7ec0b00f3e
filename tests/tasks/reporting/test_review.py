"""The page on which people judge pairs, and the file that it saves."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.detection import Share
from prefect_imageqa.tasks.reporting.evaluate import evaluate_output
from prefect_imageqa.tasks.reporting.review import (
    ReviewPair,
    render_review,
    review_truth,
    sample_pairs,
)
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.storing.layout import JUDGED

from .conftest import CHECKS, table_of, write

LARGE = "data:image/jpeg;base64,/9j/4BBQ"


@pytest.fixture
def checked(local: ObjectStore) -> ObjectStore:
    """An output of 200 pairs: every 20th fails one check, and two fail both."""
    lines = [
        {
            "consistency": float(number % 20 != 3 and number not in (90, 91)),
            "blind_answerable": number in (90, 91),
        }
        for number in range(200)
    ]
    write(local, JUDGED, table_of(lines, *CHECKS))
    return local


def places(pairs: list[ReviewPair]) -> set[int]:
    return {2 * pair.row + pair.number for pair in pairs}


def test_a_sample_has_pairs_of_every_band(checked: ObjectStore) -> None:
    drawn = places(sample_pairs(checked, 12, seed=1))
    assert len(drawn) == 12
    assert {90, 91} <= drawn
    assert sum(place % 20 == 3 for place in drawn) == 5
    assert drawn == places(sample_pairs(checked, 12, seed=1))
    assert drawn != places(sample_pairs(checked, 12, seed=2))
    assert len(sample_pairs(checked, 500, seed=1)) == 200


def save(path: Path, pairs: list[ReviewPair], verdicts: list[str]) -> str:
    """The file that the page saves."""
    said = [
        {"row": pair.row, "pair": pair.number, "digest": pair.digest, "verdict": verdict}
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]
    path.write_text(json.dumps({"output": "x", "verdicts": said}))
    return str(path)


def test_checks_are_compared_with_what_people_say(checked: ObjectStore, tmp_path: Path) -> None:
    pairs = sample_pairs(checked, 12, seed=1)
    verdicts = [
        "wrong" if place in (90, 91) else "unsure" if place % 20 == 3 else "right"
        for place in (2 * pair.row + pair.number for pair in pairs)
    ]
    path = save(tmp_path / "review.json", pairs, verdicts)
    found = evaluate_output(checked, review_truth(path))
    assert found.filter.before == Share(5, 7)
    for check in found.checks:
        assert check.detection.recall == Share(2, 2)
        assert check.detection.precision == Share(2, 2)


def test_verdicts_on_other_pairs_are_refused(checked: ObjectStore, tmp_path: Path) -> None:
    pairs = sample_pairs(checked, 5, seed=1)
    path = save(tmp_path / "review.json", pairs, ["right"] * 5)
    lines = [{"answer": "A dog.", "consistency": 1.0, "blind_answerable": False}] * 200
    write(checked, JUDGED, table_of(lines, *CHECKS))
    with pytest.raises(DatasetError, match=r"review\.json is about other pairs"):
        evaluate_output(checked, review_truth(path))


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"verdicts": [{"row": 1}]}', '{"verdicts": 1}', "{" * 9999]
)
def test_a_file_without_verdicts(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "review.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=r"review\.json"):
        review_truth(str(path))


class Page(HTMLParser):
    """A parsed page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_with(text: str) -> str:
    choice = QAPair(text, text, options=(text, "other"), correct="A")
    pairs = [
        ReviewPair(3, 1, QAPair(text, text), "0" * 16, (SampledImage(text, LARGE, LARGE),)),
        ReviewPair(4, 0, choice, "1" * 16),
    ]
    return render_review(pairs, text).decode()


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7 * 7 }}",
        "half \ud83d, zero \0, turned \u202e",
    ],
)
def test_the_page_shows_hostile_text_literally_and_loads_nothing(text: str) -> None:
    html = page_with(text)
    plain, hostile = Page(page_with("plain")), Page(html)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    names_of = [[sorted(names) for _, names in page.tags] for page in (plain, hostile)]
    assert names_of[0] == names_of[1]
    [policy] = [names["content"] for tag, names in hostile.tags if "http-equiv" in names]
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert [names["src"] for tag, names in hostile.tags if tag == "img"] == [LARGE]
    radios = [names["name"] for tag, names in hostile.tags if tag == "input"]
    assert radios == ["pair3-1"] * 3 + ["pair4-0"] * 3
