import json
import random
import time

import pytest
from prefect_imageqa.tasks.generating.runaway import is_runaway

PAIR = (
    "**Question:** What is the colour of the large circle at the top left of the image?\n"
    "**Answer:** It is red, and it is the only circle that touches the border.\n\n"
)
LOOPS = {
    "spaces": '{"question": "How many?",' + " " * 400,
    "mixed whitespace": '{"question": "How many?",' + "\n \t\n  \r\n" * 60 + "\n\n",
    "newlines after JSON": '{"question": "How many?", "answer": "Two"}' + "\n" * 100,
    "indented lines": '[\n  {\n    "a": 1\n  }\n]' + ("\n" + " " * 30) * 40,
    "one character": "The sign says H" + "a" * 200,
    "escaped newlines": '{"answer": "Two' + "\\n" * 200,
    "a word": "It is a " + "very " * 80 + "ve",
    "a sentence": "Hello. " + "There is a cat on the mat. " * 12 + "There is a c",
    "a sentence, four times": "Hello. " + "There is a cat on the mat. " * 4,
    "a Chinese sentence": "图中有什么:" + "图中有一只猫。" * 40 + "图中有",
    "one Chinese character": "图中有" + "猫" * 200,
    "a pair": "Here they are:\n" + PAIR * 6 + PAIR[:70],
    "JSON objects": "[" + '{"question": "How many?", "answer": "Two"}, ' * 9 + '{"que',
    "empty cells": "| a | b |\n|---|---|\n" + "|   |   |\n" * 40,
    "zeros": "[" + "0.0, " * 100,
    "emoji": "So nice! " + "\U0001f600\u200d" * 90,
    "a surrogate": "\ud83d" * 120,
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_reply_that_ends_in_a_loop_is_a_runaway(text: str) -> None:
    assert is_runaway(text)
    assert is_runaway("Something else. " * 100_000 + text)


COLOURS = ("red", "blue", "green", "yellow", "purple", "grey", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "arrow")


def things(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{draw.choice(COLOURS)} {draw.choice(SHAPES)}" for _ in range(count)]


ANSWERS = {
    "nothing": "",
    "short": "ha" * 20,
    "prose": " ".join(f"There is a {thing} in row {n}." for n, thing in enumerate(things(60))),
    "pairs": "".join(
        f"**Question:** What is in cell {n}?\n**Answer:** It is a {thing}.\n\n"
        for n, thing in enumerate(things(40))
    ),
    "numbered list": "".join(f"{n}. the {thing}\n" for n, thing in enumerate(things(80), 1)),
    "list that differs in its numbers": "".join(f"{n}. a red circle\n" for n in range(200)),
    "table": "| n | what |\n|---|---|\n"
    + "".join(f"| {n} | {thing} |\n" for n, thing in enumerate(things(60))),
    "padded table": "".join(f"| {n:<40} | {thing:<40} |\n" for n, thing in enumerate(things(40))),
    "rule of a wide table": "| " + " | ".join(COLOURS) + " |\n" + "| --- " * 8 + "|",
    "heading with a rule": "Contents of the image\n" + "=" * 80,
    "table of numbers": "".join(f"{n:6.2f} {n * n:8.2f} {n / 7:6.2f}\n" for n in range(90)),
    "boxes": json.dumps([[n, n + 7, 2 * n, 3 * n % 640] for n in range(100)]),
    "JSON": json.dumps(
        [{"q": f"What is at {n}?", "a": thing} for n, thing in enumerate(things(40))]
    ),
    "indented JSON": json.dumps([{"a": {"b": {"c": [n, n + 1]}}} for n in range(30)], indent=8),
    "code": "".join(f"    cell_{n} = draw('{thing}')\n" for n, thing in enumerate(things(60))),
    "closing brackets": json.dumps(json.loads("[" * 20 + "]" * 20), indent=2),
    "Chinese": "".join(
        f"第{n}格里有一个{thing[:3]}色的图形。" for n, thing in enumerate(things(60))
    ),
    "a chorus, three times": PAIR + "Row, row, row your boat, gently down the stream.\n" * 3,
}


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS)
def test_a_long_answer_is_no_runaway_wherever_it_is_cut_off(text: str) -> None:
    cuts = range(max(0, len(text) - 400), len(text) + 1)
    assert not [cut for cut in cuts if is_runaway(text[:cut])]


def test_a_loop_that_ended_is_no_runaway() -> None:
    assert not is_runaway("very " * 100 + "red")
    assert not is_runaway('{"colour":' + " " * 400 + '"red"}')


@pytest.mark.parametrize("unit", [1, 2, 7, 25, 26, 99, 100, 101, 299, 300])
def test_how_often_a_text_must_be_repeated(unit: int) -> None:
    draw = random.Random(unit)
    text = "".join(chr(draw.randrange(97, 123)) for _ in range(unit))
    length = max(100, 4 * unit)
    loop = (text * length)[:length]
    assert is_runaway(loop)
    assert is_runaway("#" + loop)
    assert not is_runaway(loop[1:])
    assert not is_runaway("#" + loop[1:])


def test_a_text_of_more_than_300_characters_is_not_looked_for() -> None:
    draw = random.Random(5)
    assert not is_runaway("".join(chr(draw.randrange(97, 123)) for _ in range(301)) * 20)


def test_hostile_texts_take_no_time() -> None:
    almost = ("a" * 299 + "b") * 3 + "a" * 299 + "c"
    texts = [" " * 1_000_000 + "x", "ab" * 500_000 + "x", almost * 1000, "\U0001f600" * 10**6 + "x"]
    start = time.process_time()
    assert not any(map(is_runaway, texts))
    assert time.process_time() - start < 2  # measured: 2 ms for all of them
