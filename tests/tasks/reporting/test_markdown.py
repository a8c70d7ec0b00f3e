"""The artifacts of a run: complete, bounded in size, and with untrusted text escaped."""

import itertools
import re
from collections.abc import Callable

import pytest
from markdown_it import MarkdownIt
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.markdown import (
    GALLERY_ROWS,
    TABLE_ROWS,
    artifact_key,
    escape_cell,
    escape_markdown,
    gallery_markdown,
    quarantine_table,
    summary_markdown,
)
from prefect_imageqa.tasks.reporting.quarantine import QuarantineGroup
from prefect_imageqa.tasks.reporting.row_images import SampledImage
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.runs.run_counts import RunCounts

THUMBNAIL = "data:image/jpeg;base64,/9j/4AAQ"
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "markdown image": "![x](https://evil.example/x.png)",
    "link": "[x](javascript:alert(1))",
    "reference": "[x]: javascript:alert(1)",
    "autolink": "<javascript:alert(1)>",
    "bare link": "https://evil.example and www.evil.example and a@evil.example",
    "entity": "&lt;script&gt;&#106;avascript:",
    "heading": "# Heading\n\n| a | b |\n| - | - |\n```html\n<b>\n```",
    "escape": r"\<b\>",
}


def row(**changed: object) -> SampledRow:
    fields: dict[str, object] = {
        "row": 17,
        "where": "data.json:17",
        "key": "0" * 32,
        "images": (SampledImage("a.png", THUMBNAIL),),
        "pairs": (QAPair("What is it?", "A cat."),),
        "text": "raw",
    }
    return SampledRow(**(fields | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_every_markdown_character_is_escaped(text: str) -> None:
    shown = escape_markdown(text)
    # In CommonMark a backslash makes any ASCII punctuation mark literal.
    assert not re.sub(r"\\[!-/:-@\[-`{-~]", "", shown).strip("\n").count("\n")
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\[!-/:-@\[-`{-~]", "", shown))
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown).replace("\u2060", "")
    assert plain == " ".join(text.split())


@pytest.mark.parametrize("escape", [escape_markdown, escape_cell])
def test_urls_and_addresses_do_not_become_links(escape: Callable[[str], str]) -> None:
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escape(HOSTILE["bare link"]))
    assert not re.search(r"(?i)https?://|www\.|[-.\w+]@", text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_cell_is_harmless_as_markdown_and_readable_as_text(text: str) -> None:
    shown = escape_cell(text)
    assert not re.search(r"<[A-Za-z/!?]|\]\(|\]:|!\[", shown)
    assert shown.replace("\u2060", "") == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("line\r\nline\ttab\x00\x1b[31m", r"line line tab \[31m"),
        ("turned \u202e around", "turned around"),
        ("half a \ud83d pair", "half a pair"),
        ("नमस्ते 👩\u200d🔬", "नमस्ते 👩\u200d🔬"),
    ],
    ids=["controls", "bidi", "surrogate", "joiners"],
)
def test_invisible_characters_are_removed(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


def test_long_texts_are_truncated() -> None:
    assert len(escape_markdown("a" * 10_000_000)) == 600
    assert escape_markdown("a" * 601).endswith("…")


def test_the_summary_has_counts_reasons_tokens_and_files() -> None:
    run = RunCounts(
        rows=10_000,
        ok=9_988,
        filtered=0,
        quarantined=12,
        pairs=9_990,
        reasons={"truncated": 3, "not_an_image": 9},
        reused=988,
        requests=9_012,
        prompt_tokens=900_000,
        completion_tokens=45_000,
        seconds=90.0,
    )
    markdown = summary_markdown(
        run, dataset="qa.json", model="qwen<b>", files={"Report": "/data/out/report.html"}
    )
    assert "filtered" not in markdown
    assert "like another" not in markdown
    for line in (
        r"# qa\.json",
        "| Result | Number |",
        "| Reason | Rows | Share |",
        "| Measure | Value |",
        "| File | Location |",
        "| answered | 9,988 |",
        "| of them from earlier runs | 988 |",
        "| QA pairs | 9,990 |",
        r"| Model | qwen\<b\> |",
        "| Completion tokens | 45,000 |",
        "| New answers per second | 100.0 |",
        "| Completion tokens per second | 500.0 |",
        r"| Report | \/data\/out\/report\.html |",
    ):
        assert line in markdown.splitlines()
    most_common = markdown.index(r"| not\_an\_image | 9 | 0.09% |")
    assert most_common < markdown.index("| truncated | 3 | 0.03% |")


def test_the_summary_has_filtered_rows_and_duplicates_if_there_are_any() -> None:
    run = RunCounts(rows=1000, ok=900, filtered=100)
    markdown = summary_markdown(run, dataset="x", model="m", files={}, duplicates=1234)
    assert "| filtered | 100 |" in markdown
    assert "| rows like another one, which share its outcome | 1,234 |" in markdown


def test_a_run_without_rows_or_time_has_a_summary_too() -> None:
    markdown = summary_markdown(RunCounts(), dataset="x", model="m", files={})
    assert "| New answers per second | 0.0 |" in markdown
    assert "## Quarantined" not in markdown


def test_the_gallery_shows_images_pairs_and_reasons() -> None:
    rows = [
        row(),
        row(pairs=(), text="no pair <b>"),
        row(pairs=(), kind="truncated", reason="stopped at 64 tokens"),
        row(pairs=tuple(QAPair(f"Q{n}", "A") for n in range(8))),
    ]
    markdown = gallery_markdown(rows, of=1234)
    assert markdown.startswith("# 4 of 1,234 rows\n\n| Row | Row | Row |\n| :--- | :--- | :--- |\n")
    first = "<br>*data\\.json\\:17*<br><br>**Q:** What is it\\?<br>**A:** A cat\\."
    assert f"| ![]({THUMBNAIL})<br>a\\.png{first} |" in markdown
    assert markdown.count(f"![]({THUMBNAIL})<br>a\\.png<br>") == 4
    assert "**Reply:** no pair \\<b\\>" in markdown
    assert "**truncated:** stopped at 64 tokens" in markdown
    assert "and 2 more |  |  |" in markdown


def test_long_texts_of_the_gallery_are_wrapped() -> None:
    """One of Prefect's UIs does not wrap them, so that one column would hide the others."""
    image = SampledImage(f"data/{'x' * 90}.png", THUMBNAIL)
    pair = QAPair("Which " + "very " * 30 + "long?", "y" * 100)
    markdown = gallery_markdown([row(images=(image,), pairs=(pair,))], of=1)
    lines = markdown.splitlines()[-1].removeprefix("| ").removesuffix(" |  |  |").split("<br>")[1:]
    shown = [re.sub(r"\*|\\(?=[!-/:-@\[-`{-~])", "", line) for line in lines]
    assert max(map(len, shown)) == 34
    assert "".join(shown[:3]) == image.name
    assert " ".join(shown[5:11]).startswith(f"Q: {pair.question} A:")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_cell_of_the_gallery_is_one_cell(text: str) -> None:
    hostile = row(where=text, images=(SampledImage(text, THUMBNAIL),), pairs=(QAPair(text, text),))
    failed = row(pairs=(), kind="empty", reason=text)
    markdown = gallery_markdown([hostile, failed, row(pairs=(), text=text)], of=3)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)
    assert len(cells) == 3
    tags = set(re.findall(r"<[a-z]+", html))
    assert tags <= {"<h", "<table", "<thead", "<tbody", "<tr", "<th", "<td", "<br"} | {
        *("<img", "<em", "<strong")
    }
    assert html.count("<img") == 3
    assert "href" not in html


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/x.png",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,AA) [x](javascript:alert(1)",
    ],
    ids=["web", "SVG", "closing parenthesis"],
)
def test_only_raster_data_uris_are_shown(uri: str) -> None:
    assert "![" not in gallery_markdown([row(images=(SampledImage("a", uri),))], of=1)


def test_the_gallery_is_spread_evenly_over_the_sample() -> None:
    markdown = gallery_markdown([row(where=f"row {number}") for number in range(100)], of=5000)
    shown = [int(number) for number in re.findall(r"\*row (\d+)", markdown)]
    assert len(shown) == GALLERY_ROWS
    assert shown[0] == 0
    assert {later - number for number, later in itertools.pairwise(shown)} == {4, 5}
    assert gallery_markdown([], of=0) == "# 0 of 0 rows\n"


def test_the_gallery_drops_its_largest_rows_until_it_fits() -> None:
    thumbnails = {"small": THUMBNAIL, "large": THUMBNAIL + "A" * 100_000}
    rows = [
        row(where=f"{name} {n}", images=(SampledImage("a", thumbnail),))
        for n in range(12)
        for name, thumbnail in thumbnails.items()
    ]
    markdown = gallery_markdown(rows, of=40)
    assert len(markdown.encode()) < 1_000_000
    assert markdown.count("*small") == 12
    assert markdown.count("*large") == 8
    assert markdown.startswith("# 20 of 40 rows\n")
    assert gallery_markdown(rows, of=40, limit=100).startswith("# 0 of 40 rows")


def test_the_table_has_the_groups_of_quarantined_rows() -> None:
    groups = [
        QuarantineGroup("timeout", "<b>", 1234, ["[x](javascript:1)", "d.json[3]"]),
        *(QuarantineGroup("empty", "", 1, ["d"]) for _ in range(TABLE_ROWS)),
    ]
    table = quarantine_table(groups)
    assert len(table) == TABLE_ROWS
    assert table[0] == {
        "rows": 1234,
        "kind": "timeout",
        "reason": "<\u2060b>",
        "examples": "[x]\u2060(javascript:1), d.json[3]",
        "next run": "retries them",
    }
    assert (table[1]["reason"], table[1]["next run"][:10]) == ("other reasons", "skips them")


@pytest.mark.parametrize(
    ("output", "prefix"),
    [
        ("s3://bucket/Caps_Bench v2/", "image-qa-caps-bench-v2-"),
        ("/data/日本語", "image-qa-"),
        (f"/data/{'x' * 99}", f"image-qa-{'x' * 40}-"),
    ],
    ids=["punctuation", "not Latin", "long"],
)
def test_artifact_keys_are_valid_in_prefect(output: str, prefix: str) -> None:
    key = artifact_key(output, "summary")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
    assert key.startswith(prefix)
    assert key.endswith("-summary")


def test_outputs_with_the_same_name_have_different_keys() -> None:
    assert artifact_key("/a/qa", "gallery") != artifact_key("/b/qa", "gallery")
    assert artifact_key("/a/qa", "gallery") == artifact_key("/a/qa/", "gallery")
