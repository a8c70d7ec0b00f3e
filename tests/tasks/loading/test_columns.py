import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect_imageqa.tasks.errors import DatasetError
from prefect_imageqa.tasks.loading.columns import Columns, image_value
from prefect_imageqa.tasks.loading.dataset import Dataset
from prefect_imageqa.tasks.loading.load import open_dataset
from prefect_imageqa.tasks.records import Kind

TURNS = [{"from": "human", "value": "What?"}]
PARTS = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text"}]}]


def opened(folder: Path, *records: dict[str, Any], **columns: Any) -> Dataset:
    path = folder / "d.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return open_dataset(path, Columns(**columns))


@pytest.mark.parametrize(
    ("record", "image", "conversation"),
    [
        ({"image": "a", "conversation": "b"}, "image", "conversation"),
        ({"id": 1, "image": "a", "conversations": TURNS}, "image", "conversations"),
        ({"images": ["a"], "messages": TURNS}, "images", "messages"),
        ({"images": ["a"], "texts": [{"user": "a", "assistant": "b"}]}, "images", "texts"),
        ({"images": ["a"], "texts": ["a caption", "another"]}, "images", None),
        ({"messages": PARTS}, "messages", "messages"),
        ({"images": [], "messages": PARTS}, "messages", "messages"),
        ({"image": "a", "image_path": "b", "question": "c"}, "image", "question"),
        ({"image": None, "image_path": "b", "questions": ["c"]}, "image_path", "questions"),
        ({"file_name": "a", "text": "b"}, "file_name", None),
        ({"Image": "a", "Question": "b", "Answer": "c"}, "Image", "Question"),
        ({"image": "a", "conversation": "[{'user': 'b'}]"}, "image", "conversation"),
        ({"image": "a", "conversation": "", "question": "b"}, "image", "question"),
        ({"image": "a", "messages": "[]"}, "image", None),
        ({"messages": PARTS, "url": "https://host/page"}, "messages", "messages"),
        ({"messages": PARTS, "image": "b.png"}, "image", "messages"),
        ({"url": "a.png", "question": "b"}, "url", "question"),
    ],
)
def test_columns_are_found_by_name(
    record: dict[str, Any], image: str, conversation: str | None, tmp_path: Path
) -> None:
    columns = opened(tmp_path, record).columns
    assert (columns.image, columns.conversation) == (image, conversation)


def test_columns_are_looked_for_in_the_first_rows(tmp_path: Path) -> None:
    text_only = {"id": 1, "conversations": TURNS}
    columns = opened(tmp_path, *[text_only] * 99, text_only | {"image": "a"}).columns
    assert (columns.image, columns.conversation) == ("image", "conversations")
    with pytest.raises(DatasetError, match="no column of images found; its columns are: id, conv"):
        opened(tmp_path, *[text_only] * 100, text_only | {"image": "a"})
    found = opened(tmp_path, *[text_only] * 5000, text_only | {"photo": "a"}, image="photo")
    assert found.columns.image == "photo"


@pytest.mark.parametrize("column", ["image", "conversation"])
def test_a_named_column_must_be_there(column: str, tmp_path: Path) -> None:
    row = {"image": "a.png", "conversation": TURNS}
    with pytest.raises(
        DatasetError, match=r"no column 'asked' in .* 2 rows; its columns are: image, conversation"
    ):
        opened(tmp_path, row, row, **{column: "asked"})
    frame = pd.DataFrame({"image": ["a"] * 2, "question": ["b"] * 2})
    with pytest.raises(DatasetError, match="no column 'asked'; its columns are: image, question"):
        open_dataset(frame, Columns(**{column: "asked"}))


def test_what_is_read_is_told(tmp_path: Path) -> None:
    row = {"image": "a", "question": "b", "answer": "c"}
    assert opened(tmp_path, row).notes == (
        "reading images from column 'image' and conversations from column 'question'; "
        "not sent to the model: answer",
    )
    assert opened(tmp_path, {"messages": PARTS}).notes == (
        "reading images and conversations from column 'messages'",
    )
    assert opened(tmp_path, {"image": "a"}).notes == (
        "reading images from column 'image'; without conversations, every row is asked the user "
        "prompt",
    )


def test_a_conversation_under_another_name_is_not_overlooked(tmp_path: Path) -> None:
    """Its row would be asked the user prompt, without a word."""
    first = {"image": "a", "conversations": TURNS}
    rows = list(opened(tmp_path, first, {"image": "b", "messages": TURNS}, {"image": "c"}).rows())
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert rows[1].problem
    assert rows[1].problem.kind is Kind.BAD_ROW
    assert "in column 'messages', but that of the first rows is 'conversations'" in (
        rows[1].problem.message
    )
    frame = pd.DataFrame({"image": ["a"] * 2, "question": ["?", None], "messages": [None, TURNS]})
    (tmp_path / "d.csv").write_text("image,question\n" + "a,\n" * 100 + "a,What?\n")
    for table in (frame, tmp_path / "d.csv"):
        assert sum(bool(row.problem) for row in open_dataset(table).rows()) == 1
    late = list(opened(tmp_path, *[{"image": "a"}] * 100, first).rows())
    assert [bool(row.problem) for row in late] == [False] * 100 + [True]
    rows = list(opened(tmp_path, first, {"messages": TURNS}, conversation="conversations").rows())
    assert not rows[1].problem, "a given name is what is meant"


def test_the_image_of_a_row_is_not_mistaken_for_another(tmp_path: Path) -> None:
    """The likeliest column is empty in the first row, in the second it is not."""
    (tmp_path / "d.csv").write_text("image,url,question\n,c.png,0\na.png,b.png,1\n")
    assert open_dataset(tmp_path / "d.csv").columns.image == "image"
    text_only = {"image": None, "url": "https://host/page", "question": "0"}
    rows = list(opened(tmp_path, {"image": "a.png", "question": "0"}, text_only).rows())
    assert not rows[1].problem, "it has no image, and says so when its prompt is built"
    first = {"url": "a.png", "question": "0"}
    rows = list(opened(tmp_path, first, {"image": "a.png", **first}).rows())
    assert rows[1].problem
    assert "the row's image is in column 'image', but that of the first rows is 'url'" in (
        rows[1].problem.message
    )


@pytest.mark.parametrize(
    "questions",
    [
        ["a", "b"],
        ["a", "", None, "b"],
        "['a', 'b']",
        [{"question": "a", "answer": "1"}, {"question": "b", "id": 7}],
    ],
    ids=["list", "blank", "text", "objects"],
)
def test_each_question_of_a_record_is_a_row(questions: Any, tmp_path: Path) -> None:
    record = {"image": "a.png", "id": 7, "questions": questions}
    dataset = opened(tmp_path, record, {"image": "b.png", "questions": ["c"]})
    assert [(row.index, row.where, row.record.get("questions")) for row in dataset.rows()] == [
        (0, "d.jsonl:1, question 1", "a"),
        (1, "d.jsonl:1, question 2", "b"),
        (2, "d.jsonl:2", "c"),
    ]
    frame = open_dataset(pd.DataFrame([record]))
    too_many = opened(tmp_path, {**record, "questions": ["a"] * 1001})
    (row,) = too_many.rows()
    assert row.problem
    assert "1,001 questions, more than 1,000" in row.problem.message
    assert (frame.count, len(list(frame.rows()))) == (None, 2)


def test_images_of_a_record() -> None:
    embedded = Columns(image="messages", conversation="messages")
    assert image_value({"messages": PARTS}, embedded) == ["a.png"]
    assert image_value({"image": "['a', 'b']"}, Columns(image="image")) == ["a", "b"]
    assert image_value({"image": "a"}, Columns(image=None)) is None


@pytest.mark.parametrize("source", [[{"image": "a.png"}], {"image": "a.png"}, b"a.png"])
def test_other_objects_are_not_datasets(source: Any) -> None:
    with pytest.raises(DatasetError, match="is not read directly: give a path or a DataFrame"):
        open_dataset(source)
