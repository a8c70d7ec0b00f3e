"""What the page, the dataset card and the artifact say about checks."""

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.check_columns import ResultColumn, result_columns
from prefect_imageqa.tasks.reporting.check_facts import ChecksSection, checks_section
from prefect_imageqa.tasks.reporting.dataset_card import render_card
from prefect_imageqa.tasks.reporting.disagreements import (
    MAX_SHOWN,
    CheckedValue,
    DisputedPair,
    disputed_pairs,
    read_disputed,
)
from prefect_imageqa.tasks.reporting.evaluate import evaluate
from prefect_imageqa.tasks.reporting.evaluation import CheckCounts, Evaluation
from prefect_imageqa.tasks.reporting.judged_pairs import Filtered
from prefect_imageqa.tasks.reporting.markdown import funnel_markdown
from prefect_imageqa.tasks.reporting.report import render_report
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.checks import Checks
from prefect_imageqa.tasks.runs.run_counts import RunCounts
from prefect_imageqa.tasks.runs.run_record import RunRecord
from prefect_imageqa.tasks.storing.layout import JUDGED

from .conftest import CHECKS, table_of, write

THUMBNAIL, LARGE = "data:image/jpeg;base64,/9j/4AAQ", "data:image/jpeg;base64,/9j/4BBQ"
COUNTS = RunCounts(rows=12, ok=9, filtered=1, quarantined=2, pairs=18)
HOSTILE = [
    "<script>alert(1)</script>",
    "</table><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} | a | b |",
    "half \ud83d, zero \0, turned \u202e",
    "![x](http://evil.example/) [y](javascript:alert(1))",
]

RunOf = Callable[..., RunRecord]


def pairs_with(fails: Callable[[int], tuple[bool, bool]], count: int) -> pa.Table:
    """Pairs that fail consistency, the blind check, or both."""
    lines = []
    for number in range(count):
        inconsistent, blind = fails(number)
        answer = "A dog." if inconsistent else "A cat."
        results = {"consistency": float(not inconsistent), "blind_answerable": blind}
        lines.append({**results, "consistency_answer": answer})
    return table_of(lines, *CHECKS)


def disputed_of(table: pa.Table, size: int = 64) -> list[DisputedPair]:
    columns = result_columns(table.schema)
    return disputed_pairs(table.to_batches(size), columns, Filtered(), ["consistency_answer"])


def test_disputed_pairs_are_those_that_some_checks_pass() -> None:
    table = pairs_with(lambda number: (number in {2, 5}, number in {2, 7}), 10)
    found = disputed_of(table)
    assert [(pair.row, pair.number) for pair in found] == [(2, 1), (3, 1)]
    assert found[0].pair.question == "What is it, number 5?"
    assert found[0].values == (
        CheckedValue("consistency", "0", False),
        CheckedValue("blind_answerable", "no", True),
        CheckedValue("consistency_answer", "A dog."),
    )
    assert found[0].kept


def test_every_check_has_its_share_of_a_bounded_sample() -> None:
    """Also one that seldom fails; and the sample does not depend on how pairs are read."""
    table = pairs_with(lambda number: (number % 2 == 0, number in {301, 333}), 2000)
    found = disputed_of(table)
    assert len(found) == MAX_SHOWN
    places = [2 * pair.row + pair.number for pair in found]
    assert {301, 333} <= set(places)
    assert places == sorted(places)
    assert max(places) > 1000
    assert found == disputed_of(table, 1000)


def test_one_check_alone_is_not_disputed(local: ObjectStore) -> None:
    write(local, JUDGED, pairs_with(lambda number: (number == 1, False), 4))
    assert read_disputed(local, [ResultColumn("blind_answerable")], Filtered()) == []


def test_long_texts_of_disputed_pairs_are_cut() -> None:
    long = "x" * 100_000
    lines = [{"question": long, "consistency": 1.0, "blind_answerable": True}]
    table = table_of([{**lines[0], "consistency_answer": long}], *CHECKS)
    [pair] = disputed_of(table)
    assert len(repr(pair)) < 6000


@pytest.fixture
def section_of() -> Callable[..., ChecksSection]:
    """The section about ten pairs, with a text of the model's in every place."""

    def make(text: str) -> ChecksSection:
        evaluation = evaluation_of(text)
        values = (
            CheckedValue("consistency", text, False),
            CheckedValue("blind_answerable", "no", True),
            CheckedValue("consistency_answer", text),
        )
        images = (SampledImage(text, THUMBNAIL, LARGE),)
        choice = QAPair(text, text, options=(text, "other"), correct="A")
        disputed = [
            DisputedPair(3, 0, QAPair(text, text), kept=False, values=values, images=images),
            DisputedPair(4, 1, choice, kept=True, values=values),
        ]
        return checks_section(
            COUNTS, evaluation, disputed, Checks(keep=f"consistency >= 0.66 AND '{text}'")
        )

    return make


def evaluation_of(reason: str) -> Evaluation:
    table = pairs_with(lambda number: (number in {2, 5}, number in {2, 7}), 20)
    found = evaluate(table.to_batches(8), result_columns(table.schema))
    changed = {"kept": 18, "reasons": Counter({reason: 2})}
    return Evaluation(**{**vars(found), **changed})


class Page(HTMLParser):
    """A parsed page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(run: RunRecord, checks: ChecksSection | None) -> Page:
    return Page(render_report(run, Statistics(), [], checks=checks).decode())


def test_the_page_shows_funnel_and_disputed_pairs(
    record_of: RunOf, section_of: Callable[..., ChecksSection]
) -> None:
    page = page_of(record_of(counts=COUNTS), section_of("A text."))
    text = " ".join(" ".join(page.texts).split())
    for expected in (
        "18 of 20 pairs are kept (90.0 %); by the condition consistency >= 0.66 AND 'A text.'.",
        "rows asked 12 rows answered 10 83.3 % pairs parsed 20 100.0 %",
        "consistency: at least 0.5 18 90.0 % 18 2 0",
        "blind_answerable: no problem found 17 85.0 % 18 2 0",
        "pairs kept 18 90.0 %",
        "A text. 2 10.0 %",
        "consistency blind_answerable 17 1 1 1",
        "fail : A text.",
        "row 3, pair 0 · filtered",
        "row 4, pair 1 · kept",
        "no image",
    ):
        assert expected.replace(" : ", ": ") in text.replace(" : ", ": "), expected
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == [LARGE]


def test_a_run_without_checks_has_no_such_section(record_of: RunOf) -> None:
    page = page_of(record_of(), None)
    assert not any(attributes.get("id") == "checks" for _, attributes in page.tags)
    assert "## Checks" not in render_card(record_of(), [])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_literally(
    text: str, record_of: RunOf, section_of: Callable[..., ChecksSection]
) -> None:
    plain, hostile = (page_of(record_of(), section_of(value)) for value in ("plain", text))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(names) for _, names in hostile.tags] == [
        sorted(names) for _, names in plain.tags
    ]
    for _, attributes in hostile.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
    plain_card, card = (
        render_card(record_of(), [], checks=section_of(value)) for value in ("plain", text)
    )
    assert card.count("\n") == plain_card.count("\n")
    assert not re.search(r"(?<!\\)<(script|img)|(?<!\\)\]\(", card.partition("## Checks")[2])


def test_the_card_says_which_checks_were_made(
    record_of: RunOf, section_of: Callable[..., ChecksSection]
) -> None:
    card = render_card(record_of(counts=COUNTS), [], checks=section_of("A text."))
    for expected in (
        "| rows | answered | filtered | quarantined | pairs |",
        "| 12 | 9 | 1 | 2 | 18 |",
        "18 of 20 pairs are kept (90.0 %); by the condition consistency \\>= 0.66 AND 'A text.'.",
        "| step | remaining | share | pass | fail | not judged | not asked |\n| --- | ---: |",
        "| consistency: at least 0.5 | 18 | 90.0 % | 18 | 2 | 0 | 0 |\n",
        "| pairs kept | 18 | 90.0 % |  |  |  |  |\n",
        "| filtered by | pairs |\n| --- | ---: |\n| A text. | 2 |\n",
        "| `filtered.parquet` |",
    ):
        assert expected in card, card


@pytest.mark.parametrize("text", HOSTILE)
def test_the_artifact_has_the_funnel(text: str) -> None:
    markdown = funnel_markdown(COUNTS, evaluation_of(text))
    assert "| rows answered | 10 | 83.3 % |  |  |  |" in markdown
    assert "| consistency\\: at least 0\\.5 | 18 | 90.0 % | 18 | 2 | 0 |" in markdown
    assert "| pairs kept | 18 | 90.0 % |" in markdown
    assert not re.search(r"(?<!\\)[<\[!]|http://", markdown)
    assert len(markdown) < 3000


def test_a_score_of_many_values_has_bars(record_of: RunOf) -> None:
    column = ResultColumn("confidence", is_number=True, bound=-0.2)
    check = CheckCounts(column, 3, 1, 0, 3, bins=(("-1 to -0.5", 1), ("-0.5 to 0", 3)))
    found: dict[str, Any] = {**vars(evaluation_of("")), "checks": (check,)}
    section = checks_section(COUNTS, Evaluation(**found))
    page = page_of(record_of(), section)
    text = " ".join(" ".join(page.texts).split())
    assert "confidence -1 to -0.5 25.0 % -0.5 to 0 75.0 %" in text
    widths = [attributes["width"] for tag, attributes in page.tags if tag == "rect"]
    assert widths == ["33.3", "100.0"]
