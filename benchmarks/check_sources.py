"""Datasets of drawn scenes whose pairs are known to be right or wrong, to measure checks by.

Each is a folder that `prefect-imageqa run` takes: `dataset.jsonl` and its images. The rows either
have a question with a given answer, of which a known share is wrong; or a question that the model
answers; or nothing, so that the model writes the pair. In the last two the truth is known
afterwards, by comparing pairs with the scenes.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter
from prefect_imageqa.serving.demo_model.judge import Verdict, is_denial, judge_pair
from prefect_imageqa.serving.demo_model.questions import (
    GENERATED_KINDS,
    QuestionKind,
    parse_question,
)
from prefect_imageqa.serving.demo_model.scenes import Scene, draw_scene, random_scene
from prefect_imageqa.serving.demo_model.training.give_aways import give_away
from prefect_imageqa.serving.demo_model.truth import answer_to, random_question, short_answer
from prefect_imageqa.serving.demo_model.wrong_answers import wrong_answer

PLANTED = 0.2
"""Share of the given pairs that are wrong, or give their answer away."""
SIDE = 192
"""Of the images, in pixels."""


@dataclass(frozen=True)
class Item:
    """A row of a source.

    Attributes:
        scene: what its image shows.
        question: what is asked about it; "" if the model writes the question.
        answer: the given answer; "" if the model answers.
        plain: the question in words that `parse_question` knows, if its own are others.
        group: what is particular about it, such as the kind of a hard image.
        gives_away: whether the question gives its answer away.
        denies: whether only an answer is right that says that the image does not show it.
    """

    scene: Scene
    question: str = ""
    answer: str = ""
    plain: str = ""
    group: str = ""
    gives_away: bool = False
    denies: bool = False

    def is_right(self, question: str, answer: str) -> bool:
        """Whether a pair about the image is right; a question that nobody can understand is not."""
        question = self.plain or question
        if self.denies:
            return is_denial(self.scene, question, answer)
        return judge_pair(self.scene, question, answer) in (Verdict.RIGHT, Verdict.ABSENT)

    def group_of(self, question: str) -> str:
        """The group of a pair: the kind of its question, if its row is of no group."""
        if self.group:
            return self.group
        known = parse_question(self.plain or question)
        return known.kind.value if known else "other questions"


@dataclass(frozen=True)
class Goal:
    """The share of right pairs that a filter should reach at least, and what it keeps for that."""

    right: float
    kept: float


@dataclass(frozen=True)
class Source:
    """How the rows of a dataset are drawn and asked, and how it is filtered.

    Attributes:
        about: what is known about it, for the docs.
        item: draws a row; the number is its position.
        draw: draws the image of a row.
        temperature: of the run.
        keep: the condition of the filter that goes with it; none if empty.
        best: the shares that it keeps of the pairs that meet the condition.
        goal: what the filter should reach.
    """

    about: str
    item: Callable[[random.Random, int], Item]
    keep: str
    draw: Callable[[Item, random.Random], Image.Image]
    temperature: float = 0.7
    best: tuple[str, ...] = ()
    goal: Goal | None = None


def draw_source(name: str, folder: Path, count: int, seed: int) -> list[Item]:
    """Write the dataset of a source.

    Args:
        name: one of `SOURCES`.
        folder: created if missing; files of the same names are replaced.
        count: number of rows; a smaller dataset of the same seed is a prefix of a larger one.
        seed: any; no seed produces scenes of the training.
    """
    source, items = SOURCES[name], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "dataset.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            rng = random.Random(f"held out: {name} {seed} {number}")
            item = source.item(rng, number)
            path = f"images/{number:05}.png"
            source.draw(item, rng).save(folder / path, compress_level=1)
            file.write(json.dumps(_record(item, path)) + "\n")
            items.append(item)
    return items


def _record(item: Item, path: str) -> dict[str, str | bool]:
    record: dict[str, str | bool] = {"image": path}
    if item.question:
        record["question"] = item.question
    if item.answer:
        record["answer"] = item.answer
        record["is_right"] = item.is_right(item.question, item.answer)
    if item.group:
        record["group"] = item.group
    return record


def _plain(item: Item, rng: random.Random) -> Image.Image:
    return draw_scene(item.scene, SIDE, SIDE, rng)


def _planted(rng: random.Random, number: int) -> Item:
    """Every fifth answer is what would be right about another scene."""
    scene = random_scene(rng)
    question = random_question(scene, rng, GENERATED_KINDS)
    answer_of = short_answer if rng.random() < 0.3 else answer_to
    answer = str(answer_of(scene, question))
    if _is_planted(number):
        answer = wrong_answer(scene, question, rng, answer_of)
    return Item(scene, rng.choice(question.phrasings()), answer)


def _is_planted(number: int) -> bool:
    return number % round(1 / PLANTED) == 0


def _written(rng: random.Random, number: int) -> Item:
    """The model writes the pair."""
    del number
    return Item(random_scene(rng))


def _given_question(rng: random.Random, number: int) -> Item:
    """A question of each kind in turn."""
    kinds = [kind for kind in QuestionKind if kind is not QuestionKind.CAPTION]
    scene, kind = random_scene(rng), kinds[number % len(kinds)]
    while kind is QuestionKind.SHAPE and not _has_single_colour(scene):
        scene = random_scene(rng)
    question = random_question(scene, rng, (kind,))
    return Item(scene, rng.choice(question.phrasings()))


def _has_single_colour(scene: Scene) -> bool:
    colours = [shape.colour for shape in scene]
    return any(colours.count(colour) == 1 for colour in colours)


TOLD = (
    "You can see that {clause}. {Question}?",
    "{Question}? Note that {clause}.",
    "Since {clause}, {question}?",
    "It is known that {clause}. {Question}?",
    "{Question}, considering that {clause}?",
    "Here {clause}. {Question}?",
)
"""How a question gives its answer away; the demo model was trained on none of these."""


def _give_away(rng: random.Random, number: int) -> Item:
    """Right pairs; every fifth question gives its answer away."""
    scene = random_scene(rng)
    if _is_planted(number):
        asked = give_away(scene, rng, TOLD, named=0)
        return Item(scene, asked.text, asked.answer, asked.plain, "gives away", gives_away=True)
    question = random_question(scene, rng, GENERATED_KINDS)
    text = rng.choice(question.phrasings())
    return Item(scene, text, str(answer_to(scene, question)), group="does not")


def _absent(rng: random.Random, number: int) -> Item:
    """A question about a shape or color that is not there, or about what no image shows."""
    kinds = (
        *(QuestionKind.COLOUR, QuestionKind.SIZE, QuestionKind.WHERE, QuestionKind.SHAPE),
        QuestionKind.UNSHOWN,
    )
    kind = kinds[number % len(kinds)]
    scene = random_scene(rng)
    while len(scene) == 4:  # all shapes are there
        scene = random_scene(rng)
    question = random_question(scene, rng, (kind,), absent=0 if kind is QuestionKind.UNSHOWN else 1)
    return Item(scene, rng.choice(question.phrasings()), group=kind.value, denies=True)


HARD = ("16 px", "pale", "rotated", "off-cell", "blurred")
"""What is wrong with hard images, in turn."""


def _hard(rng: random.Random, number: int) -> Item:
    """The model writes the pair about a hard image."""
    scene, group = random_scene(rng), HARD[number % len(HARD)]
    if group == "off-cell":
        scene = tuple(
            replace(
                shape,
                x=(shape.column + 0.5) / 3 + rng.choice((-0.065, 0.065)),
                y=(shape.row + 0.5) / 3 + rng.choice((-0.065, 0.065)),
            )
            for shape in scene
        )
    return Item(scene, group=group)


def _hard_image(item: Item, rng: random.Random) -> Image.Image:
    image = _plain(item, rng)
    match item.group:
        case "16 px":
            return image.resize((16, 16), Image.Resampling.BOX).resize(image.size)
        case "pale":
            return ImageEnhance.Color(image).enhance(0.3)
        case "rotated":
            degrees = rng.choice((-10, 10))
            background = image.getpixel((0, 0))
            return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=background)
        case "blurred":
            return image.filter(ImageFilter.GaussianBlur(6))
    return image


_AGREES = "consistency >= 0.5"

SOURCES = {
    "planted": Source(
        "questions of the kinds that the model is sure of, with given answers: every fifth is one "
        "that would be right about another scene",
        _planted,
        _AGREES,
        _plain,
        goal=Goal(0.995, 0.75),
    ),
    "hot": Source(
        "pairs that the model writes at temperature 1.6",
        _written,
        f"{_AGREES} AND form = ''",
        _plain,
        temperature=1.6,
        best=("confidence=0.97", "fluency=0.95"),
        goal=Goal(0.99, 0.85),
    ),
    "given": Source(
        "questions of all kinds, answered by the model at temperature 0.7",
        _given_question,
        "",
        _plain,
        best=("confidence=0.9",),
        goal=Goal(0.99, 0.9),
    ),
    "hard": Source(
        "pairs that the model writes at temperature 0.7 about images that are shrunk to 16 px, "
        "pale, rotated by 10 degrees, blurred, or have shapes off the centers of their cells",
        _hard,
        "perturbed >= 0.75",
        _hard_image,
        best=("confidence=0.9",),
        goal=Goal(0.9, 0.8),
    ),
    "give-away": Source(
        "right pairs, of which every fifth question contains its answer",
        _give_away,
        "NOT blind_answerable",
        _plain,
    ),
    "absent": Source(
        "questions about what is not in the image, answered by the model at temperature 0.7; "
        "right is to say so",
        _absent,
        _AGREES,
        _plain,
    ),
}
"""All sources; the docs have them in this order."""
