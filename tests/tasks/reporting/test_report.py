"""The report page and the dataset card as text; tests/browser renders the page."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import groupby
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from prefect_imageqa.tasks.exporting.trainers.export_record import (
    ExportRecord,
    LeftOut,
    SplitCounts,
)
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.dataset_card import render_card
from prefect_imageqa.tasks.reporting.plots import draw_plots
from prefect_imageqa.tasks.reporting.quarantine import QuarantineGroup
from prefect_imageqa.tasks.reporting.report import MAX_BYTES, render_report
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.reporting.statistics import Statistics
from prefect_imageqa.tasks.runs.run_record import RunRecord

THUMBNAIL = "data:image/jpeg;base64,/9j/4AAQ"
LARGE = "data:image/jpeg;base64,/9j/4BBQ"

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
    "attempted": 20,
    "pairs": 30,
    "requests": 21,
    "reasons": {"truncated": 5, "timeout": 3},
    "seconds": 10.0,
}

GROUPS = (
    QuarantineGroup("truncated", "the reply ended after 64 tokens", 5, ["d.json[4]", "d.json[9]"]),
    QuarantineGroup("timeout", "no reply after 600 s", 3, ["d.json[1]"]),
)

RunOf = Callable[..., RunRecord]
PageOf = Callable[..., "Page"]


@pytest.fixture
def run_of(record_of: RunOf) -> RunOf:
    """Makes the record of a completed run, with some parameters and fields changed."""

    def make(parameters: dict[str, Any] | None = None, **changed: Any) -> RunRecord:
        fields = {
            "dataset": "photos.json",
            "model": "qwen",
            "model_revision": "r2",
            "started": "2026-03-01T10:00:00+00:00",
            "updated": "2026-03-01T10:00:10+00:00",
            "counts": COUNTS,
            "versions": {"prefect": "3.8.1"},
        }
        parameters = {"system_prompt": "Ask about the image."} | (parameters or {})
        return record_of(parameters=parameters, **fields | changed)

    return make


@pytest.fixture
def page_of(run_of: RunOf) -> PageOf:
    """Renders the page without plots, which are slow."""

    def make(
        rows: Sequence[SampledRow], groups: Sequence[QuarantineGroup] = GROUPS, **changed: Any
    ) -> Page:
        run = run_of(**changed)
        return Page(render_report(run, Statistics(), rows, groups=groups).decode())

    return make


def statistics_of(rows: int) -> Statistics:
    statistics = Statistics()
    values = np.arange(1, rows + 1)
    for tally in (statistics.questions, statistics.answers, statistics.latencies):
        tally.add(values)
    statistics.prompt_tokens.add(values + 300)
    statistics.completion_tokens.add(values)
    statistics.first_words.update({"what": 3 * rows // 4, "wie": rows // 4})
    statistics.stored_seconds = values / 2
    return statistics


def answered(
    number: int, question: str = "What is it?", answer: str = "A cat.", name: str = "data/a.png"
) -> SampledRow:
    pairs = (QAPair(question, answer),)
    images = (SampledImage(name, THUMBNAIL, LARGE),)
    return SampledRow(
        number, f"row {number}", f"{number:032x}", images, pairs, "raw", "", "", 310, 20, 1.25
    )


def failed(
    number: int, kind: str = "truncated", reason: str = "too long", text: str = ""
) -> SampledRow:
    return SampledRow(number, f"d.json[{number}]", f"{number:032x}", (), (), text, kind, reason)


class Page(HTMLParser):
    """A parsed page."""

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

    def elements(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_describes_the_run(page_of: PageOf) -> None:
    text = " ".join(page_of([answered(3), failed(4)]).texts)
    for expected in (
        "photos.json",
        "12",
        "60.0 %",
        "What is it?",
        "A cat.",
        "1.25 s · 310 + 20 tokens",
        f"{3:032x}",
        "d.json[4]",
        "truncated",
        "the reply ended after 64 tokens",
        "for example d.json[4], d.json[9]",
        "retries them",
        "data/a.png",
        "Ask about the image.",
        "temperature 0.7",
        "prefect 3.8.1",
        "0197-run",
        "2026-03-01 10:00:10 UTC",
        "1 of 12 answered and 1 of 8 quarantined rows",
        "2.0",
    ):
        assert expected in text


def test_there_is_a_filter_for_each_kind_of_row(page_of: PageOf) -> None:
    page = page_of([answered(1), failed(2), failed(3, "timeout"), failed(4, "timeout")])
    values = [button["value"] for button in page.elements("button") if "value" in button]
    assert values == ["all", "answered", "quarantined", "timeout", "truncated"]
    assert [card["data-kind"] for card in page.elements("article")] == [
        "answered",
        "truncated",
        "timeout",
        "timeout",
    ]


def test_a_card_has_the_names_of_its_images(page_of: PageOf) -> None:
    images = tuple(SampledImage(f"{n}.png", THUMBNAIL, LARGE if n else "") for n in range(3))
    row = SampledRow(1, "row 1", "k", images, (), "raw", more_images=4)
    page = page_of([row])
    assert [image["alt"] for image in page.elements("img")] == ["1.png", "2.png"]
    assert {image["src"] for image in page.elements("img")} == {LARGE}
    for name in ("0.png", "1.png", "2.png", "and 4 more"):
        assert name in page.texts


def test_the_policy_allows_only_the_pages_own_script_and_style(run_of: RunOf) -> None:
    html = render_report(run_of(), Statistics(), [answered(1)]).decode()
    [policy] = [tag["content"] for tag in Page(html).elements("meta") if "http-equiv" in tag]
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
def test_hostile_text_is_escaped(text: str, page_of: PageOf) -> None:
    """Wherever it appears, the page has the same elements as with a plain text."""
    pages = []
    for value in ("plain", text):
        rows = [answered(1, value, value, value), failed(2, reason=value, text=value)]
        groups = [QuarantineGroup(value, value, 1, [value])]
        names = ("dataset", "system_prompt", "style")
        parameters: dict[str, Any] = dict.fromkeys(names, value)
        parameters |= {"columns": {"image": value}, "sampling": {"extra_body": {value: value}}}
        fields = dict.fromkeys(("dataset", "model", "user_prompt", "parser"), value)
        pages.append(
            page_of(rows, groups, parameters=parameters, versions={value: value}, **fields)
        )
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


def test_the_size_of_the_page_is_bounded(run_of: RunOf) -> None:
    long = '"' * 1_000_000
    rows = [answered(number, long, long) for number in range(60)]
    rows += [failed(number, reason=long, text=long) for number in range(60, 100)]
    data = render_report(run_of({"system_prompt": long}), Statistics(), rows)
    assert len(data) <= MAX_BYTES
    assert data.count(b"<article") > 20


def test_only_the_first_pairs_of_a_row_are_shown(page_of: PageOf) -> None:
    pairs = tuple(QAPair(f"Question {number}", "answer " * 20) for number in range(1000))
    row = SampledRow(1, "row 1", "k", (), pairs, "raw")
    text = " ".join(page_of([row]).texts)
    assert "Question 0" in text
    assert re.search(r"and 9\d\d more", text)


def test_options_and_dialogues_are_shown_as_such(page_of: PageOf, run_of: RunOf) -> None:
    choice = QAPair("Which?", "blue", options=("red <b>", "blue"), correct="B")
    turns = (QAPair("What?", "It.", turn=1), QAPair("And?", "So.", turn=2))
    rows = [
        SampledRow(n, f"row {n}", "k", (), pairs, "raw", style="dialogue@2")
        for n, pairs in enumerate([(choice,), turns])
    ]
    page = page_of(rows)
    answers = [dd["class"] for dd in page.elements("dd") if "option" in dd.get("class", "")]
    assert answers == ["option", "option right"]
    assert {"A. red <b>", "B. blue", "It.", "So."} <= {text.strip() for text in page.texts}
    assert [dl["class"] for dl in page.elements("dl")[1:]] == ["pair", "pair", "pair turn"]
    assert "row 1 · dialogue@2" in page.texts
    text = "Question: Which?\nA. red <b>\nB. blue\nAnswer: B. blue"
    assert f"```text\n{text}\n```" in render_card(run_of(), rows)


def test_styles_types_and_exports_are_on_the_page_and_the_card(run_of: RunOf) -> None:
    statistics = statistics_of(100)
    statistics.styles.update({"short@1": 75, "yes-no@1": 25})
    statistics.types.update({"counting": 10, "<i>": 1})
    splits = {
        "train": SplitCounts(conversations=90, pairs=99, files=("train.json",)),
        "validation": SplitCounts(conversations=5, pairs=5, files=("validation.json",)),
    }
    left_out = (LeftOut(reason="image", conversations=2, first="d:1"),)
    export = ExportRecord(
        format="llava", state="complete", images="copy", splits=splits, left_out=left_out
    )
    html = render_report(run_of(), statistics, [], exports=[export]).decode()
    texts = " ".join(Page(html).texts)
    for expected in ("Styles of pairs short@1 75.0 %", "Types of questions counting 10.0 % <i>"):
        assert expected in " ".join(texts.split())
    split = "train: 90 conversations, 99 pairs, in 1 file"
    for expected in ("export/llava", split, "images copied", "2 conversations left out"):
        assert expected in texts
    card = render_card(run_of(), [], (), statistics, [export])
    assert r"| style | short\@1 | 75 |" in card
    assert r"| type | \<i\> | 1 |" in card
    assert f"| `export/llava/` | for training, {split}; validation: 5 conversations" in card


def test_plots_and_first_words_are_on_the_page(run_of: RunOf) -> None:
    page = Page(render_report(run_of(), statistics_of(1000), [answered(1)]).decode())
    images, dark_images = page.elements("img")[1:], page.elements("source")
    assert [image["alt"].partition(":")[0] for image in images] == [
        "Question length",
        "Answer length",
        "Tokens",
        "Latency",
        "Throughput of the last run",
    ]
    assert images[0]["alt"] == (
        "Question length: median 500, 95 % at most 950 characters, 1,000 in total"
    )
    assert images[3]["alt"] == "Latency: median 5, 95 % at most 9.5 seconds"
    assert "1,000 rows answered in 500 seconds: 2.0 rows/s" in images[4]["alt"]
    for image, dark in zip(images, dark_images, strict=True):
        assert image["src"] != dark["srcset"]
        for uri in (image["src"], dark["srcset"]):
            svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"))
            assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
    assert "75.0 %" in page.texts
    assert "wie" in page.texts


def test_a_page_without_answers(run_of: RunOf) -> None:
    run = run_of(counts={"rows": 2, "quarantined": 2, "reasons": {"empty": 2}})
    page = Page(render_report(run, Statistics(), [failed(0), failed(1)]).decode())
    assert not page.elements("img")
    assert "0 of 0 answered and 2 of 2 quarantined rows" in " ".join(page.texts)


def test_plots_of_a_single_value() -> None:
    statistics = Statistics()
    for tally, value in (
        (statistics.questions, 0),
        (statistics.answers, 1),
        (statistics.latencies, 65_535),
        (statistics.prompt_tokens, 65_535),
        (statistics.completion_tokens, 0),
    ):
        tally.add(np.array([value]))
    assert len(list(draw_plots(statistics))) == 4


def test_a_plot_shows_the_counts() -> None:
    """Bars up to the heights that the numbers beside them say, in both colours."""
    statistics = Statistics()
    statistics.prompt_tokens.add(np.repeat([300, 309], [4, 2]))
    statistics.completion_tokens.add(np.repeat([20], 6))
    plot = next(draw_plots(statistics))
    svg = ElementTree.fromstring(base64.b64decode(plot.light.partition(",")[2]))  # noqa: S314
    texts = {text.text: text.attrib for text in svg.iter(f"{SVG}text")}
    assert {"0", "2", "4", "6", "100", "200", "300", "tokens", "rows", "prompt"} <= texts.keys()
    prompt, completion = (path for path in svg.iter(f"{SVG}path") if "fill" in path.attrib)
    height_of = {text: float(texts[text]["y"]) - 3 for text in ("0", "2", "4", "6")}
    assert heights(prompt) == pytest.approx([height_of[text] for text in ("4", "0", "2")])
    assert heights(completion) == pytest.approx([height_of[text] for text in ("6", "0")])
    assert float(texts["300"]["x"]) == pytest.approx(left_edge(prompt), abs=0.1)


SVG = "{http://www.w3.org/2000/svg}"


def heights(bars: ElementTree.Element) -> list[float]:
    """Of bars side by side, each change of height, as a distance from the top."""
    found = [float(step) for step in re.findall(r"V([\d.]+)H", bars.attrib["d"])]
    return [height for height, _ in groupby(found)]


def left_edge(bars: ElementTree.Element) -> float:
    return float(re.findall(r"M([\d.]+)", bars.attrib["d"])[0])


def test_there_are_no_plots_without_data() -> None:
    assert list(draw_plots(Statistics())) == []


def test_the_card_has_the_format_of_the_hub(run_of: RunOf) -> None:
    card = DatasetCard(render_card(run_of(), [failed(0), answered(1)]))
    assert yaml.safe_load(card.data.to_yaml()) == {
        "license": "unknown",
        "size_categories": "n<1K",
        "task_categories": ["visual-question-answering"],
        "pretty_name": "photos.json",
        "tags": ["synthetic", "image-question-answering", "prefect-imageqa", "prefect", "vllm"],
        "configs": [
            {"config_name": "pairs", "data_files": "pairs.parquet", "default": True},
            {"config_name": "rows", "data_files": "rows.parquet"},
        ],
    }
    for expected in (
        "| 20 | 12 | 8 | 30 |",
        "| Model | qwen |",
        "| truncated | 5 |",
        "```text\nAsk about the image.\n```",
        "```text\nQuestion: What is it?\nAnswer: A cat.\n```",
    ):
        assert expected in card.text


@pytest.mark.parametrize(
    ("pairs", "size"),
    [(0, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**9, "1B<n<10B")],
)
def test_size_categories_are_those_of_the_hub(pairs: int, size: str, run_of: RunOf) -> None:
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
def test_hostile_text_is_escaped_in_the_card(text: str, run_of: RunOf) -> None:
    parameters = dict.fromkeys(("system_prompt", "style"), text)
    fields = dict.fromkeys(("dataset", "model", "user_prompt", "parser"), text)
    card = render_card(run_of(parameters, **fields), [answered(1, text, text)])
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["license"] == "unknown"
    outside = outside_fences(body)
    for live in ("<", "](", "www.", "://", "\0"):
        assert live not in re.sub(r"\\.", "", outside)
    plain = outside_fences(render_card(run_of(), [answered(1)]).split("\n---\n", 1)[1])
    assert outside.count("\n") == plain.count("\n")
    assert outside.count("\n#") == plain.count("\n#")


def outside_fences(markdown: str) -> str:
    """The lines outside fenced code, by the rules of CommonMark."""
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
    assert not fence, "a fence is not closed"
    return "\n".join(lines)


def test_a_run_without_new_rows_has_no_throughput(page_of: PageOf) -> None:
    idle = COUNTS | {"attempted": 0, "reused": 12}
    assert "Throughput" in page_of([answered(1)]).texts
    assert "Throughput" not in page_of([answered(1)], counts=idle).texts
