"""The check `duplicates`: over pairs of a dataset of files, with images read from disk."""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect_imageqa.serving.demo_model.scenes import draw_scene, held_out_rng, random_scene
from prefect_imageqa.tasks.checking import duplicates, hashed_rows
from prefect_imageqa.tasks.checking.check import CheckedPair
from prefect_imageqa.tasks.checking.hashed_rows import HashedRows, HashRows, ImageSource, row_hasher
from prefect_imageqa.tasks.checking.known_hashes import DATASET_HASHES, KnownHashes
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.images.prepare import ImageSettings
from prefect_imageqa.tasks.images.reader import ImageReader
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.object_store.store import ObjectStore
from prefect_imageqa.tasks.records import QAPair


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two scenes, and copies of the first: a file, half the size, and in the format JPEG."""
    folder, rng = tmp_path / "images", held_out_rng(5)
    folder.mkdir()
    scene, other = (draw_scene(random_scene(rng), rng=rng) for _ in range(2))
    scene.save(folder / "0.png")
    other.save(folder / "1.png")
    shutil.copy(folder / "0.png", folder / "2.png")
    scene.resize((96, 96)).save(folder / "3.png")
    scene.save(folder / "4.jpg", quality=40)
    return folder


@pytest.fixture
def hasher(local: ObjectStore) -> Iterator[Callable[[Path], HashRows]]:
    """Makes what hashes the images of a dataset."""
    with ImageReader() as reader:

        def make(dataset: Path) -> HashRows:
            table = open_dataset(dataset)
            source = ImageSource(table.rows, table.columns, table.base, reader, ImageSettings())
            return row_hasher(source, local)

        yield make


def pair(row: int, question: str = "What is there?", number: int = 0, **fields: Any) -> CheckedPair:
    images = fields.pop("images", f"digest of {row}")
    return CheckedPair(row, number, QAPair(question, "A dog.", **fields), images)


def judged(pairs: Sequence[CheckedPair], hash_rows: HashRows) -> list[dict[str, Any]]:
    check = duplicates.check(hash_rows)
    names = [column.name for column in check.columns]
    return [dict(zip(names, values, strict=True)) for values in check.judge(lambda: pairs)]


def no_images(rows: Iterable[int]) -> HashedRows:
    assert not rows
    return HashedRows(KnownHashes(ObjectStore(uri="unused"), "unused").hashes, [])


def test_copies_name_the_row_that_came_first(
    images: Path, hasher: Callable[[Path], HashRows]
) -> None:
    found = judged([pair(row) for row in range(5)], hasher(images))
    firsts = [values["near_duplicate_image"] for values in found]
    assert firsts == ["", "", "row 0", "row 0", "row 0"]
    differences = [values["image_difference"] for values in found]
    assert differences[:3] == [None, None, 0]
    assert all(0 < difference <= 4 for difference in differences[3:])
    questions = [values["duplicate_question"] for values in found]
    assert questions == ["", "", *["row 0, pair 0"] * 3]


def test_rows_with_the_same_reference_are_about_one_image(
    images: Path, hasher: Callable[[Path], HashRows]
) -> None:
    pairs = [
        pair(0, "Why?"),
        pair(1, "Who?", images="digest of 0"),
        pair(1, "why", 1, images="digest of 0"),
    ]
    found = judged(pairs, hasher(images))
    assert [values["near_duplicate_image"] for values in found] == ["", "", ""]
    assert [values["duplicate_question"] for values in found] == ["", "", "row 0, pair 0"]


def test_a_second_run_decodes_nothing(
    images: Path,
    hasher: Callable[[Path], HashRows],
    local: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [pair(row) for row in range(5)]
    first = judged(pairs, hasher(images))
    assert local.exists(DATASET_HASHES)
    monkeypatch.setattr(hashed_rows, "hash_image", None)
    assert judged(pairs, hasher(images)) == first


def test_a_broken_image_is_no_result_and_told(
    images: Path, hasher: Callable[[Path], HashRows], caplog: pytest.LogCaptureFixture
) -> None:
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:300])
    (images / "3.png").unlink()
    with caplog.at_level(logging.WARNING):
        found = judged([pair(row) for row in range(3)], hasher(images))
    assert [values["near_duplicate_image"] for values in found] == ["", "", None]
    assert found[2]["image_difference"] is None
    assert found[2]["duplicate_question"] == ""
    assert "1 rows with images that cannot be read" in caplog.text
    assert "2.png" in caplog.text


def test_copies_are_known_by_the_first_images(
    images: Path, hasher: Callable[[Path], HashRows]
) -> None:
    (images / "1.png").write_bytes(b"no image")
    pairs = [*map(pair, range(5)), pair(5, images="")]
    found = duplicates.first_images(pairs, hasher(images))
    assert found == dict.fromkeys(["digest of 2", "digest of 3", "digest of 4"], "digest of 0")


def test_a_shorter_dataset_is_an_error(images: Path, hasher: Callable[[Path], HashRows]) -> None:
    with pytest.raises(DatasetError, match="fewer rows"):
        judged([pair(9)], hasher(images))


def test_several_images_are_compared_together(
    images: Path, tmp_path: Path, hasher: Callable[[Path], HashRows]
) -> None:
    lists = ['["0.png", "1.png"]', '["3.png", "1.png"]', '["1.png", "0.png"]', '["0.png"]']
    lines = [f'{{"images": {names}}}' for names in lists]
    (images / "metadata.jsonl").write_text("\n".join(lines))
    table = tmp_path / "images" / "metadata.jsonl"
    found = judged([pair(row) for row in range(4)], hasher(table))
    assert [values["near_duplicate_image"] for values in found] == ["", "row 0", "", ""]


def test_only_the_same_question_is_a_duplicate() -> None:
    pairs = [
        pair(0, "What colour is the car?", 0, images=""),
        pair(0, "In the image, what colour is the car?", 1, images=""),
        pair(0, "What colour is the van?", 2, images=""),
        pair(0, "Which?", 3, images="", options=("a", "b"), correct="A"),
        pair(0, "Which?", 4, images="", options=("b", "a"), correct="B"),
        pair(0, "Which?", 5, images="", options=("b", "c"), correct="B"),
        pair(0, "And then?", 6, images="", turn=1),
        pair(0, "And then?", 7, images="", turn=2),
        pair(1, "What colour is the car?", 0, images=""),
    ]
    found = [values["duplicate_question"] for values in judged(pairs, no_images)]
    assert found == ["", "row 0, pair 0", "", "", "row 0, pair 3", "", "", "", ""]


def test_the_share_of_images_that_are_asked_a_question() -> None:
    pairs = [
        pair(0, "What is shown?", 0, images=""),
        pair(0, "What is shown in the image?", 1, images=""),
        pair(1, "what is shown", 0, images=""),
        pair(2, "Where?", 0, images=""),
        pair(3, "Why?", 0, images=""),
    ]
    found = [values["question_share"] for values in judged(pairs, no_images)]
    assert found == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_no_pairs_give_nothing() -> None:
    assert judged([], no_images) == []


def test_embedded_images_are_compared_by_content(
    tmp_path: Path, images: Path, hasher: Callable[[Path], HashRows]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [
        {"bytes": (images / name).read_bytes(), "path": name}
        for name in ("0.png", "3.png", "1.png")
    ]
    pq.write_table(pa.table({"image": cells}), tmp_path / "images.parquet")
    found = judged([pair(row) for row in range(3)], hasher(tmp_path / "images.parquet"))
    assert [values["near_duplicate_image"] for values in found] == ["", "row 0", ""]


def test_images_of_another_shape_are_hashed(
    tmp_path: Path, hasher: Callable[[Path], HashRows]
) -> None:
    folder = tmp_path / "thin"
    folder.mkdir()
    Image.new("L", (1500, 8), 90).save(folder / "a.png")
    Image.new("RGBA", (16, 16), (10, 20, 30, 0)).save(folder / "b.png")
    found = judged([pair(row) for row in range(2)], hasher(folder))
    assert [values["near_duplicate_image"] for values in found] == ["", ""]
