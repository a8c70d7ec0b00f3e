from typing import Any

import pytest
from prefect_imageqa.tasks.loading.conversations import (
    ImageIndex,
    has_images,
    questions,
    read_conversation,
)
from prefect_imageqa.tasks.records import Kind, RowError


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        (None, ()),
        ("", (("user", ""),)),
        (" \n", (("user", " \n"),)),
        ("What?", (("user", "What?"),)),
        ([], ()),
        ({"from": "human", "value": "a"}, (("user", "a"),)),
        (
            [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            (("user", "a"), ("assistant", "b")),
        ),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            (("system", "s"), ("user", "a")),
        ),
        ([{"role": "Assistant", "content": "a"}], (("assistant", "a"),)),
        ([{"from": "model", "value": ""}], (("assistant", ""),)),
        # a Parquet file with both formats
        ([{"from": None, "role": "user", "value": None, "content": "a"}], (("user", "a"),)),
        (
            [{"role": "user", "content": [text("a"), {"type": "image"}, text("b")]}],
            (("user", "a\n<image>\nb"),),
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            (("user", "<image>"),),
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], (("user", ""),)),
        ([{"user": "a", "assistant": "b", "source": "vqa"}], (("user", "a"), ("assistant", "b"))),
        ([{"question": "a", "answer": None}], (("user", "a"),)),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": None}], (("user", "a"),)),
        ([{"role": "user", "content": [{"text": "a", "image": "x"}]}], (("user", "a\n<image>"),)),
        ([{"role": "user", "content": [{"text": "", "image": "x"}]}], (("user", "<image>"),)),
        (["What?"], (("user", "What?"),)),
        ([{"role": "user", "content": ["a", {"image": "x"}]}], (("user", "a\n<image>"),)),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], (("user", "a"),)),
        ("half a \ud83d pair", (("user", "half a ? pair"),)),
        ([{"from": "human", "value": "half a \ud83d pair"}], (("user", "half a ? pair"),)),
        ([{"role": "user", "content": [text("\udcff")]}], (("user", "?"),)),
    ],
)
def test_conversation_formats(value: Any, turns: tuple[tuple[str, str], ...]) -> None:
    assert tuple((turn.role, turn.text) for turn in read_conversation(value)) == turns


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "the conversation is a int, not a list"),
        (["a", "b"], "turn 1 of the conversation is not an object"),
        ([{"from": "human", "value": "a"}, None], "turn 2 of the conversation is not an object"),
        (
            [{"from": "robot", "value": "a"}],
            "is from 'robot'; known speakers: system, developer, human, user",
        ),
        ([{"from": "x" * 500, "value": "a"}], f"is from '{'x' * 37}...'; known speakers"),
        ([{"value": "a"}], "has no speaker: it has value, not from and value, role and content"),
        ([{}], "has no speaker: it has nothing"),
        ([dict.fromkeys(map(str, range(10**5)))], "it has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not from"),
        ([{"role": "tool", "content": "a"}], "is from 'tool'; known speakers"),
        ([{"from": "human"}], "turn 1 of the conversation has no text"),
        ([{"from": "human", "value": 5}], "turn 1 of the conversation has no text"),
        ([{"from": "human", "value": b"a"}], "turn 1 of the conversation has no text"),
        ([{"role": "user", "content": [{"type": "video"}]}], "has a part of type 'video'"),
        ([{"role": "user", "content": [5]}], "conversation has no text"),
    ],
)
def test_an_invalid_conversation_affects_only_its_row(value: Any, message: str) -> None:
    with pytest.raises(RowError) as raised:
        read_conversation(value)
    assert raised.value.problem.kind is Kind.BAD_ROW
    assert message in raised.value.problem.message


@pytest.mark.parametrize(
    ("part", "image"),
    [
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"image": "a.png"}, "a.png"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "a.png"),
        ({"type": "image_url", "image_url": "a.png"}, "a.png"),
        ({"type": "input_image", "image_url": "a.png"}, "a.png"),
        ({"type": "image", "path": "a.png"}, {"bytes": None, "path": "a.png"}),
        ({"type": "image", "url": "a.png"}, "a.png"),
        ({"type": "image"}, None),
        ({"type": "image", "index": 1}, ImageIndex(1)),
        # a Parquet file gives every part the names of all kinds
        ({"type": "image", "text": None, "image": "a.png", "image_url": None}, "a.png"),
    ],
)
def test_image_parts(part: dict[str, Any], image: Any) -> None:
    value = [{"role": "user", "content": [part, text("<image> What?")]}]
    (turn,) = read_conversation(value)
    assert (turn.text, turn.images) == ("<image>\n<image> What?", (image, None))
    assert has_images(value) is (not isinstance(image, ImageIndex | None))


def test_several_questions() -> None:
    assert questions(["a", "b"]) == ["a", "b"]
    assert questions(["a"]) == ["a"]
    assert questions("a") == questions([{"user": "a"}, "b"]) == questions([None]) == []
    assert questions([{"user": "a", "question": "b"}] * 2) == [], "a dialogue"
    assert not has_images(5)
    assert not has_images("a")
