"""The page and the card as text; tests/browser looks at the page."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from matplotlib import rc_context, rcParams
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.dataset_card import render_card
from prefect_imageqa.tasks.reporting.plots import draw_plots
from prefect_imageqa.tasks.reporting.report import MAX_BYTES, render_report
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.records import RunRecord

PICTURE = "data:image/jpeg;base64,/9j/4AAQ"

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "half \ud83d, zero \0, turned \u202e",
    "&lt;b&gt; &#60;",
]


COUNTS = {
    "rows": 20,
    "ok": 12,
    "quarantined": 8,
    "asked": 20,
    "pairs": 30,
    "requests": 21,
    "reasons": {"truncated": 5, "timeout": 3},
    "seconds": 10.0,
}

RunOf = Callable[..., RunRecord]
PageOf = Callable[..., "Page"]


@pytest.fixture
def run_of(record_of: RunOf) -> RunOf:
    """Makes the record of a completed run; `told` and other names change it."""

    def make(told: dict[str, Any] | None = None, **changed: Any) -> RunRecord:
        fields = {
            "dataset": "photos.json",
            "model": "qwen",
            "model_revision": "r2",
            "started": "2026-03-01T10:00:00+00:00",
            "updated": "2026-03-01T10:00:10+00:00",
            "counts": COUNTS,
            "versions": {"prefect": "3.8.1"},
        }
        parameters = {"system_prompt": "Ask about the image."} | (told or {})
        return record_of(told=parameters, **fields | changed)

    return make


@pytest.fixture
def page_of(run_of: RunOf) -> PageOf:
    """Makes the page without its plots, which take longer than all else."""

    def make(rows: Sequence[SampledRow], **changed: Any) -> Page:
        return Page(render_report(run_of(**changed), Statistics(), rows).decode())

    return make


def numbers_of(rows: int = 12) -> Statistics:
    numbers = Statistics()
    values = np.arange(1, rows + 1)
    for tally in (numbers.questions, numbers.answers, numbers.latencies):
        tally.add(values)
    numbers.prompt_tokens.add(values + 300)
    numbers.completion_tokens.add(values)
    numbers.first_words.update({"what": 9, "wie": 3})
    numbers.written = values / 2
    return numbers


def answered(number: int, question: str = "What is it?", answer: str = "A cat.") -> SampledRow:
    pairs = (QAPair(question, answer),)
    return SampledRow(
        number, f"row {number}", f"{number:032x}", (PICTURE,), pairs, "raw", "", "", 310, 20, 1.25
    )


def failed(number: int, kind: str = "truncated", reason: str = "cut", text: str = "") -> SampledRow:
    return SampledRow(number, f"d.json[{number}]", f"{number:032x}", (), (), text, kind, reason)


class Page(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_tells_of_the_run(page_of: PageOf) -> None:
    text = " ".join(page_of([answered(3), failed(4)]).texts)
    for told in (
        "photos.json",
        "12",
        "60.0 %",
        "What is it?",
        "A cat.",
        "1.25 s · 310 + 20 tokens",
        f"{3:032x}",
        "d.json[4]",
        "truncated",
        "asks them again",
        "Ask about the image.",
        "temperature 0.7",
        "prefect 3.8.1",
        "0197-run",
        "2026-03-01 10:00:10 UTC",
        "1 of 12 answered and 1 of 8 quarantined rows",
        "2.0",
    ):
        assert told in text


def test_filters_are_what_is_there(page_of: PageOf) -> None:
    page = page_of([answered(1), failed(2), failed(3, "timeout"), failed(4, "timeout")])
    values = [button["value"] for button in page.named("button")]
    assert values == ["all", "answered", "quarantined", "timeout", "truncated"]
    assert [card["data-kind"] for card in page.named("article")] == [
        "answered",
        "truncated",
        "timeout",
        "timeout",
    ]


def test_the_policy_allows_the_own_script_and_nothing_else(run_of: RunOf) -> None:
    html = render_report(run_of(), Statistics(), [answered(1)]).decode()
    [policy] = [tag["content"] for tag in Page(html).named("meta") if "http-equiv" in tag]
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest(style)}'",
        "script-src": f"'sha256-{digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, page_of: PageOf) -> None:
    """Wherever it stands, the page has the same elements as with a plain text."""
    pages = []
    for said in ("plain", text):
        rows = [answered(1, said, said), failed(2, reason=said, text=said)]
        told: dict[str, Any] = dict.fromkeys(("dataset", "system_prompt", "prompt_style"), said)
        told |= {"columns": {"image": said}, "sampling": {"extra_body": {said: said}}}
        changed = dict.fromkeys(("dataset", "model", "user_prompt", "parser"), said)
        pages.append(page_of(rows, told=told, versions={said: said}, **changed))
    plain, hostile = pages
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(names) for _, names in hostile.tags] == [
        sorted(names) for _, names in plain.tags
    ]
    for tag, attributes in hostile.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert attributes.get("href", "") in {"", "qa.jsonl", "pairs.parquet", "quarantine.jsonl"}
        assert attributes.get("src", "data:").startswith("data:"), tag
    shown = text.replace("\ud83d", "?").replace("\0", "").replace("\u202e", "")
    assert hostile.texts.count(shown) >= 6


def test_a_page_of_hostile_lengths_is_bounded(run_of: RunOf) -> None:
    long = '"' * 1_000_000
    rows = [answered(number, long, long) for number in range(60)]
    rows += [failed(number, reason=long, text=long) for number in range(60, 100)]
    data = render_report(run_of({"system_prompt": long}), Statistics(), rows)
    assert len(data) <= MAX_BYTES
    assert data.count(b"<article") > 20


def test_many_pairs_of_a_row_are_cut(page_of: PageOf) -> None:
    pairs = tuple(QAPair(f"Question {number}", "answer " * 20) for number in range(1000))
    row = SampledRow(1, "row 1", "k", (), pairs, "raw")
    text = " ".join(page_of([row]).texts)
    assert "Question 0" in text
    assert re.search(r"and 9\d\d more", text)


def test_plots_and_first_words_are_on_the_page(run_of: RunOf) -> None:
    page = Page(render_report(run_of(), numbers_of(), [answered(1)]).decode())
    pictures = [image["alt"].partition(":")[0] for image in page.named("img")]
    assert pictures[1:] == [
        "Question length",
        "Answer length",
        "Tokens",
        "Latency",
        "Throughput of the last run",
    ]
    assert len(page.named("source")) == 5
    assert "75.0 %" in page.texts
    assert "wie" in page.texts


def test_a_page_without_answers(run_of: RunOf) -> None:
    run = run_of(counts={"rows": 2, "quarantined": 2, "reasons": {"empty": 2}})
    page = Page(render_report(run, Statistics(), [failed(0), failed(1)]).decode())
    assert not page.named("img")
    assert "0 of 0 answered and 2 of 2 quarantined rows" in " ".join(page.texts)


def test_plots_say_what_they_show() -> None:
    plots = list(draw_plots(numbers_of(1000)))
    assert [plot.title for plot in plots] == [
        "Question length",
        "Answer length",
        "Tokens",
        "Latency",
        "Throughput of the last run",
    ]
    assert plots[0].alt == (
        "Question length: median 500, 95 % at most 950 characters, 1,000 in all"
    )
    assert plots[3].alt == "Latency: median 5, 95 % at most 9.5 seconds"
    assert "1,000 rows answered in 500 seconds: 2.0 rows/s" in plots[4].alt
    for plot in plots:
        for uri in (plot.light, plot.dark):
            svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"))
            assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
        assert plot.light != plot.dark


@pytest.mark.parametrize("value", [0, 1, 65_535], ids=["zero", "one", "largest"])
def test_plots_of_one_value(value: int) -> None:
    numbers = Statistics()
    for tally in (numbers.questions, numbers.answers, numbers.latencies, numbers.prompt_tokens):
        tally.add(np.array([value]))
    numbers.completion_tokens.add(np.array([value]))
    assert len(list(draw_plots(numbers))) == 4


def test_nothing_to_plot() -> None:
    assert list(draw_plots(Statistics())) == []


def test_the_card_is_one_of_the_hub(run_of: RunOf) -> None:
    card = DatasetCard(render_card(run_of(), [failed(0), answered(1)]))
    assert yaml.safe_load(card.data.to_yaml()) == {
        "license": "unknown",
        "size_categories": "n<1K",
        "task_categories": ["visual-question-answering"],
        "pretty_name": "photos.json",
        "tags": ["synthetic", "image-question-answering", "prefect-imageqa", "prefect", "vllm"],
        "configs": [
            {"config_name": "pairs", "data_files": "pairs.parquet", "default": True},
            {"config_name": "rows", "data_files": "qa.jsonl"},
        ],
    }
    for told in (
        "| 20 | 12 | 8 | 30 |",
        "| Model | qwen |",
        "| truncated | 5 |",
        "```text\nAsk about the image.\n```",
        "```text\nQuestion: What is it?\nAnswer: A cat.\n```",
    ):
        assert told in card.text


@pytest.mark.parametrize(
    ("pairs", "size"),
    [(0, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**9, "1B<n<10B")],
)
def test_sizes_have_the_names_of_the_hub(pairs: int, size: str, run_of: RunOf) -> None:
    run = run_of(counts={"rows": 1, "ok": 1, "pairs": pairs})
    assert DatasetCard(render_card(run, [])).data.get("size_categories") == size


@pytest.mark.parametrize(
    "text",
    [
        "```\n# Heading\n<script>alert(1)</script>",
        "````text\n[x](javascript:alert(1))\n````\n---\nlicense: mit\n---\n",
        "a | b\n\n<img src=x onerror=alert(1)> www.example.org https://example.org",
        "half \ud83d, zero \0",
    ],
    ids=["fence", "longer fence", "HTML and links", "not UTF-8"],
)
def test_hostile_text_stays_text_in_the_card(text: str, run_of: RunOf) -> None:
    told = dict.fromkeys(("system_prompt", "prompt_style"), text)
    changed = dict.fromkeys(("dataset", "model", "user_prompt", "parser"), text)
    card = render_card(run_of(told, **changed), [answered(1, text, text)])
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["license"] == "unknown"
    outside = outside_fences(body)
    for live in ("<", "](", "www.", "://", "\0"):
        assert live not in re.sub(r"\\.", "", outside)
    plain = outside_fences(render_card(run_of(), [answered(1)]).split("\n---\n", 1)[1])
    assert outside.count("\n") == plain.count("\n")
    assert outside.count("\n#") == plain.count("\n#")


def outside_fences(markdown: str) -> str:
    """The lines that are no code, as CommonMark finds fences."""
    lines, fence = [], ""
    for line in markdown.split("\n"):
        opening = re.match(r"`{3,}", line)
        if fence:
            if line.strip() and set(line.strip()) == {"`"} and len(line.strip()) >= len(fence):
                fence = ""
        elif opening:
            fence = opening[0]
        else:
            lines.append(line)
    assert not fence, "a fence is open"
    return "\n".join(lines)


def test_a_run_that_asked_nothing_has_no_throughput(page_of: PageOf) -> None:
    idle = COUNTS | {"asked": 0, "reused": 12}
    assert "Throughput" in page_of([answered(1)]).texts
    assert "Throughput" not in page_of([answered(1)], counts=idle).texts


def test_plots_do_not_depend_on_the_users_own_settings() -> None:
    with rc_context({"text.usetex": True, "font.family": "no such font"}):
        assert len(list(draw_plots(numbers_of()))) == 5
        assert rcParams["text.usetex"]
