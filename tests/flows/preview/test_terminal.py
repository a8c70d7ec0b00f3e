"""A preview in a terminal."""

import io
from dataclasses import replace

import pytest
from prefect_imageqa.flows.preview.cells import Preview, PreviewReply, PreviewRow
from prefect_imageqa.flows.preview.terminal import print_preview
from rich.console import Console


def shown(preview: Preview, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    print_preview(preview, console)
    return console.export_text()


def test_styles_are_side_by_side(compared: Preview) -> None:
    text = shown(compared)
    (heads, *_) = (line for line in text.splitlines() if "mine.md" in line)
    assert heads.split() == ["short", "mine.md"]
    (questions,) = (line for line in text.splitlines() if "What is it?" in line)
    assert "Which colour?" in questions or "multiple-choice@2" in questions
    for part in (
        *("a.png  d.json[0]", "no image  d.json[1]", "[objects]", "12 tokens, 0.5 s"),
        *("A. red", "B. blue  ✓", "[turn 2]", "The sun shines.", "unanswered: Who? (no)"),
        *("unparsed: found nothing", "I cannot.", "1 of 2"),
    ):
        assert part in text, part
    assert "raw short" not in text  # parsed, and in the page


@pytest.mark.parametrize("width", [40, 80, 200])
def test_nothing_is_wider_than_the_terminal(compared: Preview, width: int) -> None:
    wide = replace(compared.rows[0].cells[0][0], text="wide" * 400, pairs=(), reason="w" * 300)
    row = PreviewRow("d.json" + "x" * 200, (), ((wide,), (wide,)))
    lines = shown(replace(compared, rows=(row,)), width).splitlines()
    assert max(map(len, lines)) <= width


def test_texts_are_data_for_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J [red]x[/red]\r"
    reply = PreviewReply(hostile, "k", text=f"{hostile}\n{hostile}", kind="empty", reason=hostile)
    row = PreviewRow(hostile, (), ((reply,),))
    console = Console(file=io.StringIO(), width=80)
    print_preview(Preview(hostile, hostile, (hostile,), (row,)), console)
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


def test_of_a_long_reply_only_the_beginning_is_shown(compared: Preview) -> None:
    long = replace(compared.rows[0].cells[0][0], text="line\n" * 10_000, pairs=())
    row = PreviewRow("d.json[0]", (), ((long,),))
    assert shown(Preview("d", "m", ("short",), (row,))).count("line") == 30
