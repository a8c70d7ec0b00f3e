"""The form of pairs, on a table of labelled pairs, the demo model's replies and hostile texts."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect_imageqa.serving.demo_model.questions import QuestionKind
from prefect_imageqa.serving.demo_model.scenes import held_out_rng, random_scene
from prefect_imageqa.serving.demo_model.truth import (
    answer_to,
    detailed_answer,
    random_question,
    short_answer,
)
from prefect_imageqa.tasks.checking.check import CheckedPair, ComputedCheck
from prefect_imageqa.tasks.checking.form import (
    LONGEST_ANSWER,
    LONGEST_QUESTION,
    PROBLEMS,
    check,
    problem_of,
)
from prefect_imageqa.tasks.records import QAPair

GROUPS: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("form_cases.yaml").read_text("utf-8")
)
REPLIES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "parsing" / "reply_forms.yaml").read_text("utf-8")
)


def pair_of(fields: Mapping[str, Any] | list[Any]) -> QAPair:
    if isinstance(fields, list):
        return QAPair(*fields)
    return QAPair(**{**fields, "options": tuple(map(str, fields.get("options", ())))})


CASES = [(pair_of(fields), group["problem"]) for group in GROUPS for fields in group["pairs"]]


@pytest.mark.parametrize(
    ("pair", "problem"), CASES, ids=[f"{p or 'fine'}: {c.question} {c.answer}" for c, p in CASES]
)
def test_problem(pair: QAPair, problem: str) -> None:
    name, detail = problem_of(pair)
    assert name == problem, detail
    assert bool(detail) is bool(name)
    assert "\n" not in detail
    assert len(detail) <= 100


def test_the_table_is_large_and_has_every_problem() -> None:
    assert len(CASES) > 200
    assert {problem for _, problem in CASES} == {"", *PROBLEMS}


def test_the_check_gives_a_name_and_a_detail_for_each_pair() -> None:
    form = check()
    assert isinstance(form, ComputedCheck)
    assert [column.name for column in form.columns] == ["form", "form_detail"]
    pairs = [
        CheckedPair(0, 0, QAPair("What color is the bus?", "Red")),
        CheckedPair(0, 1, QAPair("What color is the bus?", "Red<|im_end|>")),
    ]
    assert list(form.judge(lambda: pairs)) == [("", ""), ("control_text", "'<|im_end|>'")]


def test_right_pairs_of_the_demo_model_are_fine() -> None:
    rng = held_out_rng(8)
    seen = 0
    for _ in range(1500):
        scene = random_scene(rng)
        question = random_question(scene, rng, list(QuestionKind), absent=0.2)
        for answer in (answer_to(scene, question), short_answer(scene, question)):
            for text in question.phrasings() if answer else ():
                assert problem_of(QAPair(text, answer or "")) == ("", "")
                seen += 1
        detailed = QAPair(question.phrasings()[0], detailed_answer(scene, question) or "")
        assert problem_of(detailed) == ("", "")
    assert seen > 3000


def test_pairs_parsed_from_the_forms_of_replies_are_fine() -> None:
    found = [
        (pair, problem_of(pair_of(pair)))
        for section in REPLIES
        if section["form"] in ("pairs", "multiple_choice", "dialogue")
        for reply in section["replies"]
        for pair in reply.get("pairs", ())
    ]
    marked = [(pair, name) for pair, (name, _) in found if name]
    assert len(found) > 150
    assert marked == []


def test_too_long() -> None:
    assert problem_of(QAPair("a " * LONGEST_QUESTION, "b"))[0] == "too_long"
    assert problem_of(QAPair("What is it?", "b" * (LONGEST_ANSWER + 1)))[0] == "too_long"
    many = tuple(map(str, range(11)))
    assert problem_of(QAPair("What is it?", "1", options=many))[0] == "too_long"


UNITS = ["a", "a ", "?", "what? ", "(", ")", '"', "“", "“a", "'", "**", "`", "<", "<|", "<|a", "["]
UNITS += ["[insert ", "{", "{{", ". ", "…", "is ", "the ", "and ", "1", "\n", "sorry ", "i cannot "]
UNITS += [
    "红",
    "e\u0301",
    "###",
    "\x00",
    "apologies ",
    "죄송합니다",
    "申し訳ない",
    "_",
    "or ",
    "< ",
]


@pytest.mark.parametrize("unit", UNITS, ids=map(repr, UNITS))
def test_long_texts_take_linear_time(unit: str) -> None:
    megabyte = unit * (1_000_000 // len(unit))
    question = unit * (LONGEST_QUESTION // len(unit))
    answer = unit * (LONGEST_ANSWER // len(unit))
    start = time.process_time()
    problem_of(QAPair(megabyte, megabyte, options=(megabyte, "x"), language="German"))
    for text in (question, answer):
        problem_of(QAPair(question, text, language="German"))
        problem_of(QAPair("What is it? " + question[:-12], text, language="Japanese"))
        problem_of(QAPair("What is it?", text, options=(text, "b"), correct="A"))
    assert time.process_time() - start < 1
