"""Text of others on a terminal."""

import pytest
from prefect_imageqa.serving.errors import ImageQAError, ServerError
from prefect_imageqa.serving.printable import printable, printable_lines, printable_traceback


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Überschrift 图", "Überschrift 图"),
        (" a\tb\r\nc ", "a b c"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("broken \udcff", "broken ?"),
        ("a\u061cb\u200bc\ufeffd\xade", r"a\u061cb\u200bc\ufeffd\xade"),
        ("a\U000e0041\U000e007f", r"a\U000e0041\U000e007f"),
    ],
    ids=[
        "letters",
        "white space",
        "window title",
        "C1",
        "right to left",
        "surrogate",
        "zero width",
        "tags",
    ],
)
def test_a_text_is_one_printable_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(ImageQAError(text)) == shown
    assert shown.isprintable()


def test_joiners_shape_words() -> None:
    word = "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert printable(word) == word
    assert printable("\U0001f469\u200d\U0001f52c") == "\U0001f469\u200d\U0001f52c"


def test_a_long_text_is_cut_with_bounded_work() -> None:
    assert printable("x" * 100, 10) == "xxxxxxx..."
    assert printable("\x1b" * 10_000_000, 10) == r"\x1b\x1..."


def test_more_lines_do_not_look_like_messages_of_their_own() -> None:
    text = "it died:\nprefect-imageqa: all is well\x1b[2J\n"
    shown = "it died:\n  prefect-imageqa: all is well\\x1b[2J"
    assert printable_lines(text) == shown
    assert str(ServerError(text)) == shown


def test_a_traceback_stays_readable() -> None:
    try:
        raise ValueError("\x1b[2J\nfake")
    except ValueError as error:
        lines = printable_traceback(error).split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "')
    assert lines[-2:] == [r"ValueError: \x1b[2J", "fake"]
