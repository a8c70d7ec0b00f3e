"""Lessons for checks: questions that give their answer away, and verdicts on pairs."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from prefect_imageqa.serving.demo_model.judge import Verdict, judge_pair
from prefect_imageqa.serving.demo_model.questions import Question, QuestionKind, parse_question
from prefect_imageqa.serving.demo_model.scenes import Scene, Shape, random_scene
from prefect_imageqa.serving.demo_model.training import give_aways, lessons, verdicts
from prefect_imageqa.serving.demo_model.truth import answer_to, random_question, short_answer
from prefect_imageqa.serving.demo_model.wrong_answers import DEPENDING_KINDS, wrong_answer
from prefect_imageqa.tasks.checking import judge
from prefect_imageqa.tasks.checking.rubric import Axis, Rubric
from prefect_imageqa.tasks.prompting.style import PromptInput
from prefect_imageqa.tasks.records import QAPair

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "blue", "large", 1, 1, 1 / 2, 1 / 2, 0.16)
SCENE: Scene = (CIRCLE, STAR)


def scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def values(scene: Scene, fact: tuple[str, str]) -> set[str]:
    """The words, one of which a text must have to give a fact away."""
    what, name = fact
    if what in (QuestionKind.COUNT, QuestionKind.COLOUR_COUNT):
        question = Question(QuestionKind(what), colour=name)
        return {str(answer_to(scene, question)).removesuffix(".").lower()}
    (shape,) = [shape for shape in scene if shape.kind == name]
    return {{"colour": shape.colour, "size": shape.size, "where": shape.place}[what]}


def test_a_question_gives_its_answer_away_where_it_should_and_nowhere_else() -> None:
    rng, seen = random.Random(1), Counter[tuple[str, bool]]()
    for scene in scenes(1500, 2):
        for asked in (give_aways.give_away(scene, rng), give_aways.no_give_away(scene, rng)):
            assert judge_pair(scene, asked.plain, asked.answer) is Verdict.RIGHT
            known = parse_question(asked.plain)
            assert known
            seen[known.kind, asked.is_given_away] += 1
            fact = give_aways.fact(scene, known)
            names_it = [
                re.search(rf"\b{value}\b", asked.text.lower()) for value in values(scene, fact)
            ]
            if asked.is_given_away:
                assert any(names_it), asked
            elif known.kind not in (QuestionKind.SHAPE, QuestionKind.PLACE):  # which name it
                shown = [shape for shape in scene if shape.kind == fact[1]]
                alike = [
                    other
                    for other in scene
                    if shown and _says_the_same(known.kind, shown[0], other)
                ]
                assert not any(names_it) or len(alike) > 1, asked  # it is another shape's
    assert len(seen) == 2 * len(give_aways.KINDS)


def _says_the_same(kind: QuestionKind, shape: Shape, other: Shape) -> bool:
    return (
        (kind is QuestionKind.COLOUR and shape.colour == other.colour)
        or (kind is QuestionKind.SIZE and shape.size == other.size)
        or shape is other
        # "top" and "left" are words of other places too
        or (kind is QuestionKind.WHERE and shape.place in other.place)
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            Question(QuestionKind.SHAPE, colour="red"),
            Question(QuestionKind.COLOUR, "circle"),
            True,
        ),
        (
            Question(QuestionKind.PLACE, detail="center"),
            Question(QuestionKind.WHERE, "star"),
            True,
        ),
        (Question(QuestionKind.SIZE, "star"), Question(QuestionKind.SIZE, "circle"), False),
        (Question(QuestionKind.COUNT), Question(QuestionKind.COLOUR_COUNT, colour="red"), False),
    ],
)
def test_two_questions_may_ask_for_one_fact(one: Question, other: Question, same: bool) -> None:
    assert (give_aways.fact(SCENE, one) == give_aways.fact(SCENE, other)) is same


@pytest.mark.parametrize("template", give_aways.STATED)
def test_a_statement_and_a_question_become_one_text(template: str) -> None:
    text = give_aways.join(template, "The star is blue.", "How big is the star?")
    assert "he star is blue" in text
    assert "ow big is the star?" in text
    assert text[0].isupper()
    assert "{" not in text
    assert not re.search(r"\?\?|\.\.", text)


def test_without_an_image_only_a_give_away_is_answered() -> None:
    rng, answered = random.Random(3), Counter[bool]()
    for scene in scenes(2000, 4):
        lesson = lessons.make_lesson(scene, rng, progress=1)
        if lessons.IMAGE in lesson.prompt:
            continue
        for branch in lesson.branches:
            text = "".join(span.text for span in branch if not span.weight)
            reply = branch[-1].text.removesuffix(lessons.END)
            if text == lessons.ASSISTANT:
                assert reply == lessons.CANNOT_SEE
                continue
            text = text.removesuffix(f"{lessons.END}{lessons.ASSISTANT}")
            answered[reply != lessons.CANNOT_TELL] += 1
            if reply != lessons.CANNOT_TELL:
                assert parse_question(text) is None, "a plain question says nothing"
                clause = reply.removesuffix(".")
                words = [word for word in clause.lower().split() if word not in ("the", "is", "in")]
                stated = clause[1:] in text
                assert stated or all(re.search(rf"\b{word}\b", text) for word in words)
    assert 0.25 < answered[True] / answered.total() < 0.45


def test_a_wrong_answer_is_wrong_and_of_the_same_form() -> None:
    rng = random.Random(5)
    for scene in scenes(300, 6):
        for answer_of in (answer_to, short_answer):
            question = random_question(scene, rng, DEPENDING_KINDS, absent=0.2)
            if (right := answer_of(scene, question)) is None:
                continue
            wrong = wrong_answer(scene, question, rng, answer_of)
            assert judge_pair(scene, question.phrasings()[0], wrong) is Verdict.WRONG
            assert wrong.endswith(".") is right.endswith(".")


def test_every_verdict_is_true_and_in_the_form_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, drawn = random.Random(7), list[verdicts.JudgedPair]()

    def recorded(scene: Scene, rng: random.Random) -> verdicts.JudgedPair:
        drawn.append(verdicts.judged_pair(scene, rng))
        return drawn[-1]

    monkeypatch.setattr(lessons, "judged_pair", recorded)
    said, forms = Counter[bool](), Counter[bool]()
    for scene in scenes(2500, 8):
        drawn.clear()
        lesson = lessons.make_lesson(scene, rng, progress=1)
        for branch, pair in zip(lesson.branches if drawn else (), drawn, strict=True):
            text = "".join([lesson.prompt, *(span.text for span in branch)])
            text = text.rpartition(lessons.IMAGE)[2].removesuffix(lessons.END)
            asked, _, reply = text.rpartition(f"{lessons.END}{lessons.ASSISTANT}")
            assert pair.question in asked
            assert pair.answer in asked
            right = judge_pair(scene, pair.question, pair.answer) in TRUE
            ratings = (verdicts.BEST, verdicts.WORST)
            words = {yes if right else no for yes, no in (*verdicts.WORDS, ratings)}
            assert verdict_in(reply, asked) in words
            if '"reason"' in reply:
                assert judge_pair(scene, pair.question, json.loads(reply)["reason"]) in TRUE
            said[right] += 1
            forms["JSON" in asked or "{" in asked] += 1
    assert said.total() > 1000
    assert 0.4 < said[True] / said.total() < 0.6
    assert 0.5 < forms[True] / forms.total() < 0.8


TRUE = (Verdict.RIGHT, Verdict.ABSENT)


def verdict_in(reply: str, asked: str) -> str:
    """The word or rating of a verdict, in the form that the request shows."""
    examples = [text for text in re.findall(r"\{[^{}]*\}", asked) if "question" not in text]
    if not examples:
        assert reply == reply.capitalize()
        assert reply.lower() in asked.lower()
        return reply.lower()
    (example,) = examples
    fields = json.loads(reply)
    assert json.dumps(fields) == reply
    assert list(json.loads(example.replace("<1-5>", "0"))) == list(fields)
    return str(list(fields.values())[-1])


def test_a_rating_is_asked_for_as_the_check_does() -> None:
    axis, text = verdicts.AXES[0], verdicts.AXIS_TEXTS[0]
    check = judge.check(Rubric((Axis(axis, text),)))
    pair = QAPair("How big is the star?", "The star is large.")
    rendered = check.style(PromptInput((), 1, "", "", {}, pair=pair))
    (asked,) = [part["text"] for part in rendered.messages[-1]["content"] if part["type"] == "text"]
    request = verdicts.VerdictRequest(
        "\n\n".join([*verdicts.rating_texts(axis, text), "{pair}"]), verdicts.JSON_PAIR, "5", "1"
    )
    truth = verdicts.JudgedPair(pair.question, pair.answer, True, pair.answer)
    assert asked == request.about(truth)
    reply = "".join(span.text for span in replace(request, key=axis, reasoned=True).reply(truth))
    parsed = check.parsing.parse(reply, rendered.asked).value
    assert parsed == {axis: 5, "reason": pair.answer}
