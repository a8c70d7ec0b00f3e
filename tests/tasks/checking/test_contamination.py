"""The check `contamination`, with benchmark sets on disk."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect_imageqa.serving.demo_model.scenes import draw_scene, held_out_rng, random_scene
from prefect_imageqa.tasks.checking import contamination, hashed_rows
from prefect_imageqa.tasks.checking.benchmarks import open_benchmark, read_benchmarks
from prefect_imageqa.tasks.checking.check import CheckedPair
from prefect_imageqa.tasks.checking.hashed_rows import ImageSource, row_hasher
from prefect_imageqa.tasks.checking.texts import form_digest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair

LIMITS = ImageSettings()
QUESTIONS = ("What is there?", "In the image, who is it?", "Where?")


@pytest.fixture
def scenes() -> list[Image.Image]:
    rng = held_out_rng(8)
    return [draw_scene(random_scene(rng), rng=rng) for _ in range(4)]


@pytest.fixture
def dataset(tmp_path: Path, scenes: Sequence[Image.Image]) -> Path:
    """A folder of three of the scenes."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for number, scene in enumerate(scenes[:3]):
        scene.save(folder / f"{number}.png")
    return folder


Judge = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def judge(dataset: Path, local: ObjectStore) -> Iterator[Judge]:
    """Judges a pair about each image of the dataset against benchmark sets."""
    with ImageReader() as reader:

        def judge(*benchmarks: Path) -> list[dict[str, Any]]:
            table = open_dataset(dataset)
            source = ImageSource(table.rows, table.columns, table.base, reader, LIMITS)
            check = contamination.check(
                row_hasher(source, local),
                lambda: read_benchmarks([str(path) for path in benchmarks], LIMITS, local),
            )
            pairs = [
                CheckedPair(row, 0, QAPair(question, "A dog."), f"digest of {row}")
                for row, question in enumerate(QUESTIONS)
            ]
            pairs.append(CheckedPair(3, 0, QAPair("What is there?", "A dog.")))
            names = [column.name for column in check.columns]
            return [dict(zip(names, values, strict=True)) for values in check.judge(lambda: pairs)]

        yield judge


def folder_of(path: Path, **images: Image.Image) -> Path:
    path.mkdir()
    for name, image in images.items():
        image.save(path / f"{name}.jpg", quality=70)
    return path


def test_copies_of_a_folder_of_images_are_found(
    tmp_path: Path, scenes: Sequence[Image.Image], judge: Judge
) -> None:
    benchmark = folder_of(tmp_path / "bench", small=scenes[1].resize((96, 96)), other=scenes[3])
    found = judge(benchmark)
    assert [values["contamination"] for values in found] == ["", "bench/small.jpg", "", ""]
    assert 0 < found[1]["contamination_difference"] <= 4
    assert found[1]["contamination_question"] is False
    assert found[0]["contamination_difference"] is found[0]["contamination_question"] is None


def test_a_table_of_questions_about_embedded_images(
    tmp_path: Path, dataset: Path, judge: Judge
) -> None:
    content = [(dataset / f"{row}.png").read_bytes() for row in (0, 1)]
    table = pa.table(
        {"image": [{"bytes": data} for data in content], "question": ["Who is it?", "Who is it?"]}
    )
    pq.write_table(table, tmp_path / "test.parquet")
    found = judge(tmp_path / "test.parquet")
    places = [values["contamination"] for values in found]
    assert places[0].startswith("test.parquet")
    assert places[1].startswith("test.parquet")
    assert places[0] != places[1]
    assert places[2:] == ["", ""]
    assert [values["contamination_difference"] for values in found] == [0, 0, None, None]
    assert [values["contamination_question"] for values in found] == [False, True, None, None]
    assert [values["benchmark_question"] for values in found] == ["", "test.parquet", "", ""]


def test_several_benchmarks_and_the_nearest_image(
    tmp_path: Path, dataset: Path, scenes: Sequence[Image.Image], judge: Judge
) -> None:
    first = folder_of(tmp_path / "first", copy=scenes[0])
    second = folder_of(tmp_path / "second")
    (second / "same.png").write_bytes((dataset / "0.png").read_bytes())
    assert judge(first, second)[0]["contamination"] == "second/same.png"


def test_questions_with_options_are_found_in_them(
    tmp_path: Path, judge: Judge, dataset: Path
) -> None:
    rows = [
        {
            "image": str(dataset / "2.png"),
            "question": "Hint: look\nQuestion: Where?\nOptions:\nA. x\nB. y",
        }
    ]
    benchmark = dataset / "mcq.json"
    benchmark.write_text(json.dumps(rows))
    read = read_benchmarks([str(benchmark)], LIMITS, ObjectStore(uri=str(tmp_path / "o")))
    assert form_digest("where") in read.questions


def test_a_second_run_decodes_nothing(
    tmp_path: Path, scenes: Sequence[Image.Image], judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = folder_of(tmp_path / "bench", copy=scenes[1])
    first = judge(benchmark)
    monkeypatch.setattr(hashed_rows, "hash_image", None)
    assert judge(benchmark) == first


def test_an_image_that_cannot_be_read_is_no_result(
    tmp_path: Path, dataset: Path, scenes: Sequence[Image.Image], judge: Judge
) -> None:
    (dataset / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = judge(folder_of(tmp_path / "bench", copy=scenes[1]))
    assert [values["contamination"] for values in found] == ["", None, "", ""]


def text_table(path: Path) -> Path:
    pq.write_table(pa.table({"question": ["Why?"], "answer": ["So."]}), path / "texts.parquet")
    return path / "texts.parquet"


def broken_images(path: Path) -> Path:
    (path / "broken").mkdir()
    (path / "broken" / "a.png").write_bytes(b"no image")
    return path / "broken"


def empty_folder(path: Path) -> Path:
    (path / "empty").mkdir()
    (path / "empty" / "readme.md").write_text("nothing")
    return path / "empty"


def missing(path: Path) -> Path:
    return path / "missing"


def images_elsewhere(path: Path) -> Path:
    """A table whose images are in another folder, as one from a stranger may name any file."""
    Image.new("RGB", (32, 32)).save(path / "secret.png")
    (path / "inside").mkdir()
    table = path / "inside" / "table.json"
    table.write_text(json.dumps([{"image": str(path / "secret.png"), "question": "Why?"}]))
    return table


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_table, "has no column of images"),
        (broken_images, "none of its rows has an image that can be read"),
        (empty_folder, "has no images and no tables"),
        (missing, "no such file or folder"),
        (images_elsewhere, "none of its rows has an image that can be read"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_one_clear_line(
    make: Callable[[Path], Path], message: str, tmp_path: Path, judge: Judge
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        judge(make(tmp_path))
    assert str(caught.value).startswith("benchmark ")
    assert "\n" not in str(caught.value)


def test_a_benchmark_is_found_without_reading_its_images(tmp_path: Path) -> None:
    assert open_benchmark(str(broken_images(tmp_path))).columns.image == "image"
