"""The demo model's training data and evaluation, without a server or torch."""

import ast
import random
from pathlib import Path

import pytest
from prefect_imageqa.serving.demo_model.judge import (
    Claim,
    Verdict,
    is_denial,
    judge_choice,
    judge_claims,
    judge_dialogue,
    judge_pair,
)
from prefect_imageqa.serving.demo_model.questions import parse_question
from prefect_imageqa.serving.demo_model.scenes import Scene, Shape, random_scene
from prefect_imageqa.serving.demo_model.training import forms, lessons
from prefect_imageqa.serving.demo_model.training.contents import KNOWLEDGE, content_of
from prefect_imageqa.serving.demo_model.training.prompts import Form, instruct
from prefect_imageqa.serving.demo_model.training.style_prompts import style_files, style_prompt
from prefect_imageqa.tasks.parsing.qa_pairs import find_pairs
from prefect_imageqa.tasks.prompting.reply_forms import reply_format
from prefect_imageqa.tasks.records import Asked, QAPair, ReplyForm

TRAINING = Path(lessons.__file__).parent

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "red", "large", 1, 1, 1 / 2, 1 / 2, 0.16)
SQUARE = Shape("square", "blue", "large", 2, 0, 1 / 6, 5 / 6, 0.16)
SCENE: Scene = (CIRCLE, STAR, SQUARE)


def test_lessons_of_plain_requests_have_only_correct_and_different_pairs() -> None:
    rng = random.Random(5)
    for scene in [random_scene(rng) for _ in range(300)]:
        lesson = lessons.make_lesson(scene, rng, progress=1)
        for branch in lesson.branches:
            text = "".join(span.text for span in branch)
            assert text.endswith(lessons.END)
            if "**Question:**" not in text or "**Question:**" in lesson.prompt:
                continue
            reply = text.removeprefix(lessons.ASSISTANT).removesuffix(lessons.END)
            pairs = find_pairs(reply).pairs
            assert len({pair.question for pair in pairs}) == len(pairs) > 0
            if not any(pair.options for pair in pairs) and " it?" not in reply:
                for pair in pairs:
                    verdict = judge_pair(scene, pair.question, pair.answer)
                    assert verdict in (Verdict.RIGHT, Verdict.ABSENT)


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_what_the_styles_ask_for_is_right_and_is_read_from_the_reply(json: bool) -> None:
    rng = random.Random(15)
    seen = set()
    for scene in [random_scene(rng) for _ in range(400)]:
        prompt = style_prompt(rng)
        seen.add(prompt.style)
        letter = prompt.drawn
        content = content_of(prompt.style, letter, prompt.pairs, scene, rng, letter_given=True)
        text = "".join(span.text for span in forms.write_reply(prompt.form, content, json=json))
        asked = Asked(question=content.pairs[0][0], form=ReplyForm(prompt.form))
        pairs = find_pairs(text, asked).pairs
        assert [pair.question for pair in pairs] == [question for question, _ in content.pairs]
        if prompt.form is not forms.ReplyForm.QUESTIONS:
            assert_right_and_as_asked(scene, prompt.style, letter, pairs)
    assert seen == {file.name for file in style_files()}


def assert_right_and_as_asked(scene: Scene, style: str, drawn: str, pairs: list[QAPair]) -> None:
    claims = [Claim(pair.question, pair.answer, pair.options, pair.turn) for pair in pairs]
    first = claims[0]
    if style == "unanswerable":
        assert is_denial(scene, first.question, first.answer)
        return
    assert set(judge_claims(scene, claims)) == {Verdict.RIGHT}
    known = parse_question(first.question)
    match style:
        case "multiple-choice":
            assert pairs[0].correct == drawn
        case "yes-no":
            assert first.answer.lower().startswith(drawn)
        case "short":
            assert len(first.answer.split()) <= 3
        case "detailed":
            assert first.answer.count(".") > 1
        case "knowledge":
            assert known
            assert known.detail == drawn or known.kind in KNOWLEDGE[drawn]


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("form", [form for form in ReplyForm if form is not ReplyForm.GIVEN])
def test_training_asks_for_a_form_as_the_styles_do(form: ReplyForm, pairs: int, json: bool) -> None:
    known = forms.reply_format(forms.ReplyForm(form), pairs, json=json)
    assert known == reply_format(form, pairs, json=json)


def test_a_style_prompt_says_what_is_drawn() -> None:
    rng = random.Random(16)
    for _ in range(300):
        prompt = style_prompt(rng)
        assert "{{" not in prompt.user
        if prompt.style == "yes-no" or (prompt.style == "multiple-choice" and prompt.letter_given):
            assert prompt.drawn in prompt.user
        if prompt.style in ("several", "dialogue"):
            assert str(prompt.pairs) in prompt.user


@pytest.mark.parametrize(
    ("options", "answer", "verdict"),
    [
        (("red", "blue", "pink", "cyan"), "red", Verdict.RIGHT),
        (("Blue", "Red"), "Red", Verdict.RIGHT),
        (("red", "blue", "pink", "cyan"), "blue", Verdict.WRONG),
        (("red", "blue", "Blue", "cyan"), "red", Verdict.WRONG),
        (("blue", "pink"), "red", Verdict.WRONG),
    ],
)
def test_an_option_is_right_if_it_is_true_and_the_options_differ(
    options: tuple[str, ...], answer: str, verdict: Verdict
) -> None:
    assert judge_choice(SCENE, "What color is the star?", options, answer) is verdict


def test_a_choice_about_what_is_not_there_has_no_right_option() -> None:
    question = "What color is the triangle?"
    assert judge_choice(SCENE, question, ("red", "blue"), "red") is Verdict.UNDEFINED


def test_it_is_the_shape_that_was_named_last() -> None:
    turns = [
        ("What shape is in the center?", "The star is in the center."),
        ("What color is it?", "It is red."),
        ("How big is it?", "It is small."),
        ("Where is the square?", "The square is in the bottom left."),
        ("How big is it?", "It is large."),
        ("How many other shapes are there?", "There are two other shapes."),
    ]
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    assert judge_dialogue(SCENE, turns) == [right, right, wrong, right, right, right]
    assert judge_dialogue(SCENE, turns[1:2]) == [Verdict.UNKNOWN_QUESTION]


@pytest.mark.parametrize(
    ("question", "answer", "denial"),
    [
        ("Where is the triangle?", "There is no triangle in the image.", True),
        ("Who drew the star?", "The image does not show who drew the star.", True),
        ("Where is the triangle?", "The triangle is in the center.", False),
        ("Where is the star?", "The star is in the center.", False),
    ],
)
def test_a_denial_says_that_the_image_does_not_show_it(
    question: str, answer: str, denial: bool
) -> None:
    assert is_denial(SCENE, question, answer) is denial


@pytest.mark.parametrize("form", list(Form))
def test_a_training_prompt_requests_the_form_somewhere(form: Form) -> None:
    rng = random.Random(6)
    for _ in range(300):
        prompt = instruct(form, rng, count=3)
        text = f"{prompt.system}\n{prompt.user}".lower()
        assert ("json" in text) == (form is Form.JSON)
        if form is Form.MANY:
            assert "3" in text or "three" in text
        assert "{n}" not in text
        assert len(prompt.system) < 1200


def test_training_imports_only_the_demo_model() -> None:
    """It runs in the server environment, which does not have this package."""
    files = list(TRAINING.glob("*.py"))
    assert files
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert max(levels, default=0) <= 2
        assert "prefect_imageqa" not in ast.dump(tree)
