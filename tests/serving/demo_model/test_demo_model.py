"""The demo model's scenes, questions and committed checkpoint, without a server or torch."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from prefect_imageqa.serving.demo_model import scenes
from prefect_imageqa.serving.demo_model.judge import Verdict, judge_pair
from prefect_imageqa.serving.demo_model.questions import (
    QuestionKind,
    parse_question,
    questions_of,
)
from prefect_imageqa.serving.demo_model.scenes import (
    COLOURS,
    Scene,
    Shape,
    draw_scene,
    held_out_rng,
    random_scene,
    write_demo_dataset,
)
from prefect_imageqa.serving.demo_model.training import lessons
from prefect_imageqa.serving.demo_model.truth import (
    answer_to,
    detailed_answer,
    is_present,
    random_question,
    short_answer,
)

FOLDER = Path(scenes.__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
SIZE_LIMIT = 4_000_000  # bytes

CIRCLE = Shape("circle", "red", "small", 0, 2, 5 / 6, 1 / 6, 0.1)
STAR = Shape("star", "red", "large", 1, 1, 1 / 2, 1 / 2, 0.16)
SQUARE = Shape("square", "blue", "large", 2, 0, 1 / 6, 5 / 6, 0.16)
SCENE: Scene = (CIRCLE, STAR, SQUARE)


def answer(scene: Scene, text: str) -> str | None:
    known = parse_question(text)
    return answer_to(scene, known) if known else None


def random_scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What color is the circle?", "The circle is red."),
        ("What is the color of the square?", "The square is blue."),
        ("How big is the star?", "The star is large."),
        ("Where is the circle?", "The circle is in the top right."),
        ("Where is the star in the image?", "The star is in the center."),
        ("How many shapes are there?", "There are three shapes."),
        ("How many red objects are in the image?", "There are two red shapes."),
        ("How many blue shapes are there?", "There is one blue shape."),
        ("How many pink shapes are there?", "There are no pink shapes."),
        ("What shape is blue?", "The square is blue."),
        ("What shape is pink?", "There is no pink shape in the image."),
        ("What shape is red?", None),
        ("Is the star red?", "Yes, the star is red."),
        ("Is the star blue?", "No, the star is red."),
        ("Is the triangle red?", "There is no triangle in the image."),
        ("Is the star large?", "Yes, the star is large."),
        ("Is there a triangle in the image?", "No, there is no triangle in the image."),
        ("Does the image show a star?", "Yes, there is a star in the image."),
        ("What shape is in the center?", "The star is in the center."),
        ("Which shape is in the top left?", "There is no shape in the top left."),
        ("What shapes are in the image?", "The image shows a circle, a square and a star."),
        ("How many other shapes are there?", "There are two other shapes."),
        ("Are there more than two shapes?", "There are three shapes, so yes."),
        ("Are there more than three shapes?", "There are three shapes, so no."),
        ("How many corners does the star have?", "A star has ten corners."),
        ("Is there any text in the image?", "No, there is no text in the image."),
        ("What kind of image is this?", "It is a drawing of three shapes on a plain background."),
        ("What is the background like?", "The background is plain and pale."),
        ("Describe the star.", "The star is red. It is large. It is in the center."),
        ("Who drew the circle?", "The image does not show who drew the circle."),
        (
            "Describe the image.",
            "The image shows a small red circle in the top right, a large blue square in the "
            "bottom left and a large red star in the center.",
        ),
        ("  What color is the circle?\n", "The circle is red."),
        ("what color is the circle?", None),
        ("What is the weather like?", None),
        ("", None),
    ],
)
def test_a_question_has_one_correct_answer(question: str, expected: str | None) -> None:
    assert answer(SCENE, question) == expected


@pytest.mark.parametrize(
    ("question", "reply", "verdict"),
    [
        ("What color is the circle?", "The circle is red.", Verdict.RIGHT),
        (" What color is the circle? ", "\nThe circle is red. ", Verdict.RIGHT),
        ("What color is the circle?", "The circle is blue.", Verdict.WRONG),
        ("What color is the circle?", "the circle is red", Verdict.WRONG),
        ("What color is the circle?", "", Verdict.WRONG),
        ("Who painted this?", "The circle is red.", Verdict.UNKNOWN_QUESTION),
        ("Which shape is red?", "The star is red.", Verdict.UNDEFINED),
        ("What color is the triangle?", "There is no triangle in the image.", Verdict.ABSENT),
        ("How many pink shapes are there?", "There are no pink shapes.", Verdict.ABSENT),
        ("Is the star blue?", "No, the star is red.", Verdict.RIGHT),
        ("What color is the star?", "Red", Verdict.RIGHT),
        ("What color is the star?", "Blue", Verdict.WRONG),
        ("Is there a triangle in the image?", "No", Verdict.RIGHT),
        (
            "Where is the star?",
            "The star is in the center. It is red. It is large.",
            Verdict.RIGHT,
        ),
        (
            "Where is the star?",
            "The star is in the center. It is red. It is small.",
            Verdict.WRONG,
        ),
    ],
)
def test_pairs_are_compared_with_the_truth(question: str, reply: str, verdict: Verdict) -> None:
    assert judge_pair(SCENE, question, reply) is verdict


def test_random_questions_are_answerable_and_parse_back() -> None:
    rng = random.Random(1)
    kinds = set()
    for scene in random_scenes(200):
        question = random_question(scene, rng, tuple(QuestionKind))
        truth = answer_to(scene, question)
        assert truth is not None
        kinds.add(question.kind)
        for text in question.phrasings():
            assert parse_question(text) == question
            assert judge_pair(scene, text, truth) is Verdict.RIGHT
    assert kinds == set(QuestionKind)


def test_questions_about_absent_things_are_drawn_only_on_request() -> None:
    rng = random.Random(2)
    scene = (CIRCLE,)
    absent = [
        not is_present(scene, random_question(scene, rng, (QuestionKind.COLOUR,), absent=0.5))
        for _ in range(200)
    ]
    assert 60 < sum(absent) < 140
    assert is_present(scene, random_question(scene, rng, (QuestionKind.COLOUR,)))


def test_a_scene_has_different_shapes_in_different_cells() -> None:
    for scene in random_scenes(500):
        assert 1 <= len(scene) <= 4
        assert len({shape.kind for shape in scene}) == len(scene)
        assert len({(shape.row, shape.column) for shape in scene}) == len(scene)
        for shape in scene:
            assert (int(shape.y * 3), int(shape.x * 3)) == (shape.row, shape.column)
            assert shape.colour in COLOURS


def test_scenes_are_immutable_values() -> None:
    assert random_scenes(20) == random_scenes(20)
    assert random_scenes(20) != random_scenes(20, seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CIRCLE.colour = "blue"  # type: ignore[misc]


def test_a_drawing_depends_only_on_its_seed() -> None:
    first, again, other = (draw_scene(SCENE, rng=random.Random(seed)) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert draw_scene(SCENE).tobytes() == draw_scene(SCENE).tobytes()


@pytest.mark.parametrize("size", [(192, 192), (96, 96), (160, 120)], ids=str)
def test_each_shape_is_drawn_in_its_colour_at_its_position(size: tuple[int, int]) -> None:
    for scene in random_scenes(40, seed=3):
        image = draw_scene(scene, *size)
        assert image.size == size
        for shape in scene:
            pixel = image.getpixel((int(shape.x * size[0]), int(shape.y * size[1])))
            assert isinstance(pixel, tuple)
            distance = {
                colour: sum(abs(a - b) for a, b in zip(pixel, value, strict=True))
                for colour, value in COLOURS.items()
            }
            assert min(distance, key=distance.__getitem__) == shape.colour


def test_a_demo_dataset_has_images_conversations_and_truth(tmp_path: Path) -> None:
    truth = write_demo_dataset(tmp_path / "new" / "demo", count=12, seed=7)
    folder = tmp_path / "new" / "demo"
    rows = json.loads((folder / "dataset.json").read_text())
    assert [row["image"] for row in rows] == [f"images/{index:03d}.png" for index in range(12)]
    assert rows[0]["conversation"] == [{"from": "human", "value": scenes.DEMO_QUESTION}]
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            assert image.size == (192, 192)
    written = json.loads((folder / "scenes.json").read_text())
    assert [tuple(Shape(**shape) for shape in scene) for scene in written] == truth


def test_a_smaller_demo_dataset_is_a_prefix_of_a_larger_one(tmp_path: Path) -> None:
    few = write_demo_dataset(tmp_path / "few", count=3, seed=7)
    many = write_demo_dataset(tmp_path / "many", count=5, seed=7)
    assert many[:3] == few
    last = "images/002.png"
    assert (tmp_path / "few" / last).read_bytes() == (tmp_path / "many" / last).read_bytes()


def test_held_out_scenes_do_not_occur_in_training() -> None:
    trained = {scene for seed in range(20) for scene in random_scenes(50, seed)}
    held_out = {random_scene(rng) for rng in map(held_out_rng, range(20)) for _ in range(50)}
    assert len(trained) == len(held_out) == 1000
    assert not trained & held_out


def test_the_checkpoint_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } == set(sizes)
    assert sum(sizes.values()) < SIZE_LIMIT


def test_the_files_of_the_checkpoint_are_consistent() -> None:
    config, tokenizer, processor = (
        json.loads((CHECKPOINT / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("config", "tokenizer", "processor_config")
    )
    assert config["architectures"] == ["Idefics3ForConditionalGeneration"]
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert added[lessons.IMAGE] == config["image_token_id"]
    assert added[lessons.END] == config["text_config"]["eos_token_id"]
    assert len(tokenizer["model"]["vocab"]) <= config["text_config"]["vocab_size"]
    vision = config["vision_config"]
    side = vision["image_size"] // vision["patch_size"] // config["scale_factor"]
    assert processor["image_seq_len"] == side**2
    assert processor["image_processor"]["size"] == {"longest_edge": vision["image_size"]}


def test_the_checkpoint_is_safetensors_in_bfloat16() -> None:
    data = (CHECKPOINT / "model.safetensors").read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    assert {tensor["dtype"] for tensor in tensors} == {"BF16"}
    assert max(tensor["data_offsets"][1] for tensor in tensors) == len(data) - 8 - header_size


def test_scenes_and_questions_need_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, prefect_imageqa.serving.demo_model.questions\n"
        "print([name for name in ('numpy', 'torch', 'prefect') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_answers_and_verdicts_agree_for_every_known_question() -> None:
    texts = [
        text
        for kind in QuestionKind
        for question in questions_of(kind)
        for text in question.phrasings()
    ]
    assert len(texts) == len(set(texts)) > 150
    for scene in random_scenes(20, seed=10):
        for text in texts:
            truth = answer(scene, text)
            verdict = judge_pair(scene, text, truth or "There is none.")
            assert (verdict is Verdict.UNDEFINED) == (truth is None)
            assert verdict is not Verdict.WRONG


def test_short_and_detailed_answers_are_short_and_detailed_and_right() -> None:
    rng = random.Random(12)
    for scene in random_scenes(100, seed=13):
        question = random_question(scene, rng, tuple(QuestionKind), absent=0.2)
        text = question.phrasings()[0]
        short, detailed = short_answer(scene, question), detailed_answer(scene, question)
        assert detailed is not None
        assert detailed.count(". ") >= 1 or "There is no" in detailed
        for reply in (short, detailed):
            assert reply is None or judge_pair(scene, text, reply) is not Verdict.WRONG
        if short is None:
            assert question.kind in (QuestionKind.OBJECTS, QuestionKind.CAPTION)
        else:
            assert len(short.split()) <= 3
