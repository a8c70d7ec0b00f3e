"""What a run shows in Prefect's UI: complete, small, and nothing in it but text and thumbnails."""

import itertools
import json
import re
from pathlib import Path

import pytest
from prefect_imageqa.tasks.errors import ObjectCorruptedError
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair
from prefect_imageqa.tasks.reporting.artifacts import (
    GALLERY_ROWS,
    TABLE_ROWS,
    artifact_key,
    as_cell,
    as_text,
    gallery_markdown,
    quarantine_table,
    summary_markdown,
)
from prefect_imageqa.tasks.reporting.samples import SampledRow
from prefect_imageqa.tasks.runs.records import RunCounts

PICTURE = "data:image/jpeg;base64,/9j/4AAQ"
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
    told: dict[str, object] = {
        "row": 17,
        "where": "data.json:17",
        "key": "0" * 32,
        "thumbnails": (PICTURE,),
        "pairs": (QAPair("What is it?", "A cat."),),
        "text": "raw",
    }
    return SampledRow(**(told | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_character_of_markdown_is_left_to_work(text: str) -> None:
    shown = as_text(text)
    # In CommonMark every ASCII punctuation mark after a backslash is itself.
    assert not re.sub(r"\\[!-/:-@\[-`{-~]", "", shown).strip("\n").count("\n")
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\[!-/:-@\[-`{-~]", "", shown))
    plain = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown).replace("\u2060", "")
    assert plain == " ".join(text.split())


@pytest.mark.parametrize("shown", [as_text, as_cell])
def test_nothing_becomes_a_link(shown: object) -> None:
    assert callable(shown)
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown(HOSTILE["bare link"]))
    assert not re.search(r"(?i)https?://|www\.|[-.\w+]@", text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_cell_is_harmless_as_markdown_and_readable_as_text(text: str) -> None:
    shown = as_cell(text)
    assert not re.search(r"<[A-Za-z/!?]|\]\(|\]:|!\[", shown)
    assert shown.replace("\u2060", "") == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("line\r\nline\ttab\x00\x1b[31m", r"line line tab \[31m"),
        ("turned \u202e around", "turned around"),
        ("half a \ud83d pair", "half a pair"),
        ("नमस्ते 👩\u200d🔬", "नमस्ते 👩\u200d🔬"),
    ],
    ids=["controls", "bidi", "surrogate", "joiners"],
)
def test_what_cannot_be_seen_is_left_out(text: str, shown: str) -> None:
    assert as_text(text) == shown


def test_long_texts_are_cut() -> None:
    assert len(as_text("a" * 10_000_000)) == 600
    assert as_text("a" * 601).endswith("…")


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
    told = summary_markdown(
        run, dataset="qa.json", model="qwen<b>", files={"Report": "/data/out/report.html"}
    )
    for line in (
        r"# qa\.json",
        "| answered | 9,988 |",
        "| of them before this run | 988 |",
        "| QA pairs | 9,990 |",
        r"| Model | qwen\<b\> |",
        "| Completion tokens | 45,000 |",
        "| New answers per second | 100.0 |",
        "| Completion tokens per second | 500.0 |",
        r"| Report | \/data\/out\/report\.html |",
    ):
        assert line in told.splitlines()
    assert told.index(r"| not\_an\_image | 9 | 0.09% |") < told.index("| truncated | 3 | 0.03% |")


def test_a_run_without_rows_or_time_has_a_summary_too() -> None:
    told = summary_markdown(RunCounts(), dataset="x", model="m", files={})
    assert "| New answers per second | 0.0 |" in told
    assert "## Quarantined" not in told


def test_the_gallery_shows_images_pairs_and_reasons() -> None:
    rows = [
        row(),
        row(pairs=(), text="no pair <b>"),
        row(pairs=(), kind="truncated", reason="cut at 64 tokens"),
        row(pairs=tuple(QAPair(f"Q{n}", "A") for n in range(8))),
    ]
    told = gallery_markdown(rows, of=1234)
    assert told.startswith("# 4 of 1,234 rows\n")
    assert told.count(f"![]({PICTURE})") == 4
    assert "**Q:** What is it\\?\n\n**A:** A cat\\." in told
    assert "**Reply:** no pair \\<b\\>" in told
    assert "**truncated:** cut at 64 tokens" in told
    assert "and 2 more" in told


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/x.png",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,AA) [x](javascript:alert(1)",
    ],
)
def test_only_thumbnails_of_our_own_form_are_shown(uri: str) -> None:
    assert "![" not in gallery_markdown([row(thumbnails=(uri,))], of=1)


def test_the_gallery_shows_rows_from_everywhere() -> None:
    told = gallery_markdown([row(where=f"row {number}") for number in range(100)], of=5000)
    shown = [int(number) for number in re.findall(r"### row (\d+)", told)]
    assert len(shown) == GALLERY_ROWS
    assert shown[0] == 0
    assert {later - number for number, later in itertools.pairwise(shown)} == {4, 5}
    assert gallery_markdown([], of=0) == "# 0 of 0 rows\n"


def test_the_gallery_drops_its_largest_rows_until_it_fits() -> None:
    pictures = {"small": PICTURE, "large": PICTURE + "A" * 100_000}
    rows = [
        row(where=f"{name} {n}", thumbnails=(pictures[name],))
        for n in range(12)
        for name in pictures
    ]
    told = gallery_markdown(rows, of=40)
    assert len(told.encode()) < 1_000_000
    assert told.count("### small") == 12
    assert told.count("### large") == 8
    assert told.startswith("# 20 of 40 rows\n")
    assert gallery_markdown(rows, of=40, limit=100).startswith("# 0 of 40 rows")


def test_the_table_has_the_first_quarantined_rows(tmp_path: Path) -> None:
    lines = [
        {"row": n, "where": "[x](javascript:1)", "kind": "empty", "message": "<b>", "text": "raw"}
        for n in range(TABLE_ROWS + 50)
    ]
    store = ObjectStore(uri=str(tmp_path))
    store.write("quarantine.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    table = quarantine_table(store)
    assert [entry["row"] for entry in table] == list(range(TABLE_ROWS))
    assert table[0] == {
        "row": 0,
        "where": "[x]\u2060(javascript:1)",
        "kind": "empty",
        "reason": "<\u2060b>",
    }


def test_a_damaged_quarantine_is_named(tmp_path: Path) -> None:
    store = ObjectStore(uri=str(tmp_path))
    store.write("quarantine.jsonl", b"{broken\n")
    with pytest.raises(ObjectCorruptedError, match=r"quarantine\.jsonl is corrupted"):
        quarantine_table(store)


@pytest.mark.parametrize(
    ("output", "begins"),
    [
        ("s3://bucket/Caps_Bench v2/", "image-qa-caps-bench-v2-"),
        ("/data/日本語", "image-qa-"),
        (f"/data/{'x' * 99}", f"image-qa-{'x' * 40}-"),
    ],
)
def test_a_key_is_one_that_prefect_takes(output: str, begins: str) -> None:
    key = artifact_key(output, "summary")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
    assert key.startswith(begins)
    assert key.endswith("-summary")


def test_outputs_of_one_name_have_keys_of_their_own() -> None:
    assert artifact_key("/a/qa", "gallery") != artifact_key("/b/qa", "gallery")
    assert artifact_key("/a/qa", "gallery") == artifact_key("/a/qa/", "gallery")
