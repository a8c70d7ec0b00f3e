"""The benchmark of `duplicates` and `contamination`, with few images."""

from pathlib import Path

from duplicates import BEGIN, END, PAGE, planted_tables


def test_planted_copies_and_reworded_questions_are_counted(tmp_path: Path) -> None:
    text = planted_tables(tmp_path, 4)
    all_of_2, all_of_4 = "100.0% [34.2-100.0]", "100.0% [51.0-100.0]"
    assert f"| half the size | {' | '.join([all_of_2] * 4)} |" in text
    assert f"| the same | {all_of_4} | {all_of_2} |" in text
    assert "| another question | 0.0% [0.0-49.0] | 0.0% [0.0-65.8] |" in text
    assert "named another image 0 times" in text


def test_the_page_has_room_for_the_tables() -> None:
    text = PAGE.read_text("utf-8")
    assert text.index(BEGIN) < text.index(END)
