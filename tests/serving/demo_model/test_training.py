"""What the demo model is taught, and how it is measured; no server and no torch."""

import ast
import dataclasses
import json
import random
from pathlib import Path

import pytest
from prefect_imageqa.serving.demo_model import scenes
from prefect_imageqa.serving.demo_model.questions import (
    GENERATED_KINDS,
    Question,
    QuestionKind,
    Verdict,
    answer,
    answer_to,
    judge_pair,
    parse_question,
)
from prefect_imageqa.serving.demo_model.scenes import Scene, Shape, random_scene
from prefect_imageqa.serving.demo_model.training import evaluate, lessons, probes
from prefect_imageqa.serving.demo_model.training.prompts import Form, instruct

FOLDER = Path(scenes.__file__).parent

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "red", "large", 1, 1, 1 / 2, 1 / 2, 0.16)
SQUARE = Shape("square", "blue", "large", 2, 0, 1 / 6, 5 / 6, 0.16)
SCENE: Scene = (CIRCLE, STAR, SQUARE)


def some_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def test_generated_questions_of_one_reply_differ() -> None:
    rng = random.Random(4)
    for scene in some_scenes(200):
        lesson = lessons.make_lesson(scene, rng, progress=1)
        for branch in lesson.branches:
            text = "".join(span.text for span in branch)
            asked = [line.split("** ")[1] for line in text.split("\n") if "Question:**" in line]
            assert len(set(asked)) == len(asked)
            assert {known.kind for line in asked if (known := parse_question(line))} <= set(
                GENERATED_KINDS
            )


def test_lessons_teach_only_true_pairs() -> None:
    rng = random.Random(5)
    seen = 0
    for scene in some_scenes(300):
        lesson = lessons.make_lesson(scene, rng, progress=1)
        for branch in lesson.branches:
            text = "".join(span.text for span in branch).removeprefix(lessons.ASSISTANT)
            assert text.endswith(lessons.END)
            text = text.removesuffix(lessons.END)
            if text.startswith("{"):
                pair = json.loads(text)
                assert judge_pair(scene, pair["question"], pair["answer"]) is Verdict.RIGHT
                seen += 1
            elif "**Question:**" in text:
                for block in text.split("\n\n"):
                    question, reply = block.split("**Question:** ")[1].split("\n**Answer:** ")
                    assert judge_pair(scene, question, reply) is Verdict.RIGHT
                    seen += 1
    assert seen > 500


@pytest.mark.parametrize("form", list(Form))
def test_training_prompts_ask_for_the_form_somewhere(form: Form) -> None:
    rng = random.Random(6)
    for _ in range(300):
        prompt = instruct(form, rng, count=3)
        whole = f"{prompt.system}\n{prompt.user}".lower()
        assert ("json" in whole) == (form is Form.JSON)
        if form is Form.MANY:
            assert "3" in whole or "three" in whole
        assert "{n}" not in whole
        assert len(prompt.system) < 1200


def test_probes_word_their_prompts_differently_from_training() -> None:
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
def test_probes_judge_a_perfect_reply_right_and_junk_wrong(probe: probes.Probe) -> None:
    rng = random.Random(8)
    image = probes.scene_image(SCENE, 0, rng)
    trial = probe.make(SCENE, image, rng)
    assert trial.judge("junk").right == 0
    user = json.dumps(trial.request.messages[-1])
    assert ("image_url" in user) == ("without an image" not in probe.name)
    mark = trial.judge(perfect_reply(probe, trial))
    assert (mark.form, mark.right) == (True, 1)


def perfect_reply(probe: probes.Probe, trial: probes.Trial) -> str:
    asked = [Question(QuestionKind.COUNT), Question(QuestionKind.COLOUR, "star")]
    asked += [Question(QuestionKind.SIZE, "star"), Question(QuestionKind.WHERE, "star")]
    pairs = [(question.phrasings()[0], str(answer_to(SCENE, question))) for question in asked]
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


def test_write_card_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"before\n{evaluate.TABLE_START}\nold\n{evaluate.TABLE_END}\nafter\n")
    evaluate.write_card("new", card)
    evaluate.write_card("newer", card)
    assert card.read_text() == (
        f"before\n{evaluate.TABLE_START}\nnewer\n{evaluate.TABLE_END}\nafter\n"
    )


def test_tables_count_forms_and_rights() -> None:
    rng = random.Random(9)
    results = {}
    for probe in probes.PROBES:
        trial = probe.make(SCENE, "data:image/png;base64,AA==", rng)
        results[probe.name] = [(trial, probes.Mark(True, 1)), (trial, probes.Mark(True, 0))]
    tables = evaluate.accuracy_tables(results, 2)
    assert "| one pair, greedy | 100.0% | 50.0% |" in tables
    assert "1 of 2" in tables


def test_training_imports_nothing_of_the_rest_of_the_package() -> None:
    for name in ("train", "vision", "optimise", "batches", "model", "lessons", "prompts"):
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert max(levels) <= 1
