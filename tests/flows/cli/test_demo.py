"""What `prefect-imageqa demo` shows of its pairs."""

import io
from typing import Any

import pandas as pd
from prefect_imageqa.flows.cli.demo import judged, pairs_table
from prefect_imageqa.serving.demo_model.judge import Verdict
from prefect_imageqa.serving.demo_model.scenes import Scene, Shape
from rich.console import Console

SCENE: Scene = (
    Shape("star", "red", "large", 1, 1, 1 / 2, 1 / 2, 0.16),
    Shape("square", "blue", "small", 2, 0, 1 / 6, 5 / 6, 0.1),
)
COLOURS = ["red", "green", "blue", "yellow"]


def pair(row: int, number: int, question: str, answer: str, **more: Any) -> dict[str, Any]:
    fields = {"options": None, "correct": None, "turn": None, "style": "single@1"} | more
    image = [f"images/{row}.png"]
    return {"row": row, "pair": number, "image": image, "question": question, "answer": answer} | (
        fields
    )


def test_pairs_dialogues_and_choices_are_judged_and_shown() -> None:
    choice = {"options": COLOURS, "correct": "C", "style": "multiple-choice@1"}
    dialogue = [{"turn": turn, "style": "dialogue@1"} for turn in (1, 2)]
    pairs = judged(
        pd.DataFrame(
            [
                pair(2, 1, "How big is it?", "It is small.", **dialogue[1]),
                pair(2, 0, "What shape is blue?", "The square is blue.", **dialogue[0]),
                pair(0, 0, "What color is the star?", "The star is \x1b[31mred.", turn=0),
                pair(1, 0, "What color is the square?", "blue", **choice),
                *(pair(row, 0, "Who is it?", f"Somebody {row}.") for row in (3, 4)),
            ]
        ),
        [SCENE] * 5,
    )
    right = [Verdict.WRONG, Verdict.RIGHT, Verdict.RIGHT, Verdict.RIGHT]
    assert list(pairs["verdict"]) == [*right, *[Verdict.UNKNOWN_QUESTION] * 2]
    text = io.StringIO()
    Console(file=text, width=150).print(pairs_table(pairs))
    shown = text.getvalue()
    assert "C. blue" in shown
    assert "D. yellow" in shown
    assert shown.index("What shape is blue?") < shown.index("How big is it?")
    assert r"\x1b[31mred" in shown
    assert shown.count("images/2.png") == 1
    assert "Somebody 3." in shown
    assert "Somebody 4." not in shown  # two images of each style
