"""The demo model's training data and evaluation, without a server or torch."""

import ast
import dataclasses
import json
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
from prefect_imageqa.serving.demo_model.questions import Question, QuestionKind, parse_question
from prefect_imageqa.serving.demo_model.scenes import Scene, Shape, random_scene
from prefect_imageqa.serving.demo_model.training import evaluate, forms, lessons, probes
from prefect_imageqa.serving.demo_model.training.contents import KNOWLEDGE, content_of
from prefect_imageqa.serving.demo_model.training.prompts import Form, instruct
from prefect_imageqa.serving.demo_model.training.style_prompts import style_files, style_prompt
from prefect_imageqa.serving.demo_model.truth import answer, answer_to
from prefect_imageqa.tasks.prompting.reply_forms import reply_format
from prefect_imageqa.tasks.records import ReplyForm

TRAINING = Path(lessons.__file__).parent

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "red", "large", 1, 1, 1 / 2, 1 / 2, 0.16)
SQUARE = Shape("square", "blue", "large", 2, 0, 1 / 6, 5 / 6, 0.16)
SCENE: Scene = (CIRCLE, STAR, SQUARE)


def test_lessons_have_only_correct_pairs_with_different_questions() -> None:
    rng = random.Random(5)
    count = 0
    for scene in [random_scene(rng) for _ in range(300)]:
        lesson = lessons.make_lesson(scene, rng, progress=1)
        for branch in lesson.branches:
            text = "".join(span.text for span in branch).removeprefix(lessons.ASSISTANT)
            assert text.endswith(lessons.END)
            text = text.removesuffix(lessons.END)
            if text.startswith("{"):
                pair = json.loads(text)
                assert judge_pair(scene, pair["question"], pair["answer"]) is Verdict.RIGHT
                count += 1
            elif "**Question:**" in text:
                questions = []
                for block in text.split("\n\n"):
                    question, reply = block.split("**Question:** ")[1].split("\n**Answer:** ")
                    assert judge_pair(scene, question, reply) is Verdict.RIGHT
                    known = parse_question(question)
                    assert known
                    assert known.kind in GENERATED_KINDS
                    questions.append(question)
                assert len(set(questions)) == len(questions)
                count += len(questions)
    assert count > 500


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


def test_the_prompts_of_probes_do_not_occur_in_training() -> None:
    rng = random.Random(7)
    trained = {
        text
        for form in Form
        for _ in range(500)
        for text in dataclasses.astuple(instruct(form, rng, count=2))
    }
    assert not trained & set(probes.ODD_SYSTEMS)
    assert probes.JSON_GENERATOR not in trained


@pytest.mark.parametrize("probe", probes.PROBES, ids=lambda probe: probe.name)
def test_a_probe_accepts_a_perfect_reply_and_rejects_junk(probe: probes.Probe) -> None:
    rng = random.Random(8)
    image = probes.scene_image(SCENE, 0, rng)
    trial = probe.make(SCENE, image, rng)
    assert trial.judge("junk").right == 0
    user = json.dumps(trial.request.messages[-1])
    assert ("image_url" in user) == ("without an image" not in probe.name)
    mark = trial.judge(perfect_reply(probe, trial))
    assert (mark.form, mark.right) == (True, 1)


def perfect_reply(probe: probes.Probe, trial: probes.Trial) -> str:
    questions = [Question(QuestionKind.COUNT), Question(QuestionKind.COLOUR, "star")]
    questions += [Question(QuestionKind.SIZE, "star"), Question(QuestionKind.WHERE, "star")]
    pairs = [(question.phrasings()[0], str(answer_to(SCENE, question))) for question in questions]
    bold = [f"**Question:** {question}\n**Answer:** {reply}" for question, reply in pairs]
    if probe.name == "question without an image":
        return lessons.CANNOT_TELL
    if probe.name == "pair without an image":
        return lessons.CANNOT_SEE
    if trial.kind is not None:
        parts = trial.request.messages[-1]["content"]
        return str(answer(SCENE, next(part["text"] for part in parts if "text" in part)))
    if "JSON" in probe.name or "schema" in probe.name:
        return json.dumps({"question": pairs[0][0], "answer": pairs[0][1]})
    if not probe.name.startswith("2 to 4"):
        return bold[0]
    replies = [
        "\n\n".join(f"{number}. {pair}" for number, pair in enumerate(bold[:count], 1))
        for count in (2, 3, 4)
    ]
    return next(reply for reply in replies if trial.judge(reply).form)


def test_write_card_replaces_only_the_text_between_the_markers(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"before\n{evaluate.TABLE_START}\nold\n{evaluate.TABLE_END}\nafter\n")
    evaluate.write_card("new", card)
    evaluate.write_card("newer", card)
    assert card.read_text() == (
        f"before\n{evaluate.TABLE_START}\nnewer\n{evaluate.TABLE_END}\nafter\n"
    )


def test_the_tables_show_shares_of_form_and_right() -> None:
    rng = random.Random(9)
    results = {}
    for probe in probes.PROBES:
        trial = probe.make(SCENE, "data:image/png;base64,AA==", rng)
        results[probe.name] = [(trial, probes.Mark(True, 1)), (trial, probes.Mark(True, 0))]
    tables = evaluate.accuracy_tables(results, 2)
    assert "| one pair, greedy | 100.0% | 50.0% |" in tables
    assert "1 of 2" in tables


def test_training_imports_only_the_demo_model() -> None:
    """It runs in the server environment, which does not have this package."""
    for name in ("train", "vision", "optimise", "batches", "model", "lessons", "prompts"):
        tree = ast.parse((TRAINING / f"{name}.py").read_text(encoding="utf-8"))
        levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert max(levels) <= 2
        assert "prefect_imageqa" not in ast.dump(tree)
