from pathlib import Path

import pytest
from prefect_imageqa.flows.cli.styles import styles
from prefect_imageqa.tasks.errors import ImageQAError
from prefect_imageqa.tasks.prompting.open_style import style_names
from prefect_imageqa.tasks.prompting.style_files import read_built_in

Capture = pytest.CaptureFixture[str]


def test_every_style_is_listed_with_an_example(capsys: Capture) -> None:
    assert styles() == 0
    entries = capsys.readouterr().out.split("\n\n")
    assert [entry.split(":")[0] for entry in entries[:-1]] == style_names()
    assert all("\n    " in entry for entry in entries[:-1])
    assert "--style mine.md" in entries[-1]


def test_a_built_in_style_is_printed_to_begin_with(tmp_path: Path, capsys: Capture) -> None:
    assert styles("short") == 0
    text = capsys.readouterr().out
    assert text == read_built_in("short").text
    own = tmp_path / "mine.md"
    own.write_text(text)
    with pytest.raises(ImageQAError, match="choose another name"):
        styles(str(own))
    own.write_text(text.replace("name: short", "name: mine").replace("# user\n", "# user\n{{ a }}"))
    assert styles(str(own)) == 0
    assert capsys.readouterr().out == "mine@1: can be used\nneeds the columns a\n"


@pytest.mark.parametrize(
    ("style", "reason"),
    [
        ("chat", "style chat is no file"),
        ("knowledge/x", "has no value 'x'"),
        ("none.md", "not found"),
        ("nope", "there is no style 'nope'"),
        ("short=0", "give a number above 0"),
    ],
)
def test_what_is_no_style_is_said_in_one_line(style: str, reason: str) -> None:
    with pytest.raises(ImageQAError, match=reason):
        styles(style)
