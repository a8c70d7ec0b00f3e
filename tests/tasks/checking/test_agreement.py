"""Whether two answers say the same, on a table of labelled pairs and on hostile texts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect_imageqa.serving.demo_model.scenes import held_out_rng, random_scene
from prefect_imageqa.serving.demo_model.truth import (
    answer_to,
    detailed_answer,
    random_question,
    short_answer,
)
from prefect_imageqa.serving.demo_model.wrong_answers import DEPENDING_KINDS, wrong_answer
from prefect_imageqa.tasks.checking.agreement import LONGEST, agree

TOPICS: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("agreement_cases.yaml").read_text("utf-8")
)
CASES = {
    f"{topic['topic']}: {one!r} {'=' if expected else '!'} {other!r}": (topic, one, other, expected)
    for topic in TOPICS
    for expected in (True, False)
    for one, other in topic["same" if expected else "different"]
}


@pytest.mark.parametrize(("topic", "one", "other", "expected"), CASES.values(), ids=CASES)
def test_answers_agree(topic: Mapping[str, Any], one: str, other: str, expected: bool) -> None:
    given = {name: topic[name] for name in ("options", "correct", "question") if name in topic}
    assert agree(one, other, **given) is expected
    if "correct" not in topic:
        assert agree(other, one, **given) is expected


def test_the_table_is_large() -> None:
    assert len(CASES) > 200
    assert (
        min(sum(case[3] is expected for case in CASES.values()) for expected in (True, False)) > 80
    )


def test_all_forms_of_a_right_answer_agree_and_those_of_a_wrong_one_do_not() -> None:
    rng = held_out_rng(7)
    for _ in range(600):
        scene = random_scene(rng)
        question = random_question(scene, rng, DEPENDING_KINDS)
        full, detailed = answer_to(scene, question), detailed_answer(scene, question)
        assert full
        assert detailed
        assert agree(full, detailed), (full, detailed)
        wrong = wrong_answer(scene, question, rng)
        assert not agree(full, wrong), (full, wrong)
        if short := short_answer(scene, question):
            assert agree(short, full), (short, full)
            assert agree(short, detailed), (short, detailed)
            wrong = wrong_answer(scene, question, rng, short_answer)
            assert not agree(wrong, full), (wrong, full)
            assert not agree(short, wrong), (short, wrong)


HOSTILE = {
    "one letter": "a",
    "words": "red ",
    "digits": "1",
    "separators": ",",
    "grouped digits": "1,",
    "number words": "hundred ",
    "scales": "thousand million ",
    "and": "one hundred and ",
    "quotes": "'",
    "dots": "a.",
    "minus": "-",
    "minus words": "minus ",
    "negations": "not ",
    "lines": "no\n",
    "money": "$1",
    "decomposed": "e\u0301",
    "chinese": "红",
    "options": "B) ",
    "answers": "the answer is ",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_long_texts_take_linear_time(unit: str) -> None:
    megabyte = unit * (1_000_000 // len(unit))
    limit = unit * (LONGEST // len(unit))
    start = time.process_time()
    for text in (megabyte, limit):
        agree(text, "red")
        agree("red", text)
        agree(text, text + "x")
        agree(text, "red", options=("red", text, "blue", text + "x"), correct="B")
    assert time.process_time() - start < 2


def test_a_short_answer_does_not_agree_with_a_page_that_has_its_word() -> None:
    assert not agree("red", "The cube is red. " + "It stands on the table. " * 60)
